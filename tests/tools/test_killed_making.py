"""A folder appears whole, wherever the job that makes it is killed, and the next job makes it again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gipo_mc.config import load_config
from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer
from gipo_mc.tools import builtin
from gipo_mc.tools.new_model import create_model
from tests.ranks import run_ranks

#: Where the job is killed: before the weights, between weights and tokenizer, before and after the rename.
POINTS: dict[str, tuple[object, str, bool]] = {
    "before the weights": (PreTrainedModel, "save_pretrained", False),
    "after the weights": (PreTrainedModel, "save_pretrained", True),
    "before the tokenizer": (PreTrainedTokenizerBase, "save_pretrained", False),
    "after the tokenizer": (PreTrainedTokenizerBase, "save_pretrained", True),
    "before the rename": (Path, "rename", False),
    "after the rename": (Path, "rename", True),
}


def _killed_at(point: str, work: Callable[[], None]) -> int:
    """Exit code of a forked child that ends like one that was killed at the point."""
    owner, name, after = POINTS[point]
    child = os.fork()
    if child == 0:
        real = getattr(owner, name)

        def dies(*arguments: object, **options: object) -> None:
            if after:
                real(*arguments, **options)
            os._exit(9)

        setattr(owner, name, dies)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _prepare(rank: int, folder: Path) -> None:
    builtin.SFT.prepare(load_config(None, [f"run.dir={folder}", "device=cpu"], builtin.sft_base()))


@pytest.mark.parametrize("point", POINTS)
def test_the_built_in_model_survives_a_kill(tmp_path: Path, point: str) -> None:
    folder = tmp_path / "builtin_model"

    def make() -> None:
        create_model(folder, builtin_tokenizer(), 1, **builtin_llama_config())

    assert _killed_at(point, make) == 9
    assert folder.exists() == (point == "after the rename")
    run_ranks(_prepare, 1, tmp_path)
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)


def test_a_folder_that_an_earlier_version_left_half_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "builtin_model").mkdir()
    (tmp_path / "builtin_model" / "config.json").write_text("{}")
    run_ranks(_prepare, 1, tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path / "builtin_model")
