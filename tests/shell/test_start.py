"""Commands answer at once: `--help` and a refused configuration import neither torch nor Megatron, and `--help` shows
what the command reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import UNREAD, Config, load_config, options, read_by
from gipo_mc.config.section import Section
from gipo_mc.rl import gi_ppo
from gipo_mc.run.command import run_command
from gipo_mc.supervised import dpo, reward_model, sft
from gipo_mc.tools.respond import respond
from tests.ranks import run_ranks
from tests.runs import save_models
from tests.source_rules import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
#: What takes seconds to import.
SLOW = ("torch", "megatron", "transformers", "datasets", "matplotlib")
_PROGRAM = """
import runpy, sys
path, *words = sys.argv[1:]
sys.argv = [path, *words]
try:
    runpy.run_path(path, run_name="__main__")
finally:
    print("slow:", *sorted({name.split(".")[0] for name in sys.modules} & set(%r)))
"""


def _run(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _PROGRAM % (SLOW,), str(path), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_imports_nothing_slow(path: Path) -> None:
    done = _run(path, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["slow:"]


def test_a_refused_configuration_imports_nothing_slow(tmp_path: Path) -> None:
    done = _run(ROOT / "scripts" / "train_gi_ppo.py", f"run.dir={tmp_path}", "algorithm.betapolicy=1")
    assert done.returncode == 2 and "did you mean algorithm.beta_policy?" in done.stderr
    assert done.stdout.split() == ["slow:"]


@pytest.mark.parametrize("command", UNREAD)
def test_help_lists_what_the_command_reads(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("test", lambda config: None, argv=["--help"], command=command)
    said = capsys.readouterr().out
    listed = {word for line in said.splitlines() for word in line.split()[:1]} & set(options())
    assert listed == set(read_by(command)) and {"device", "parallel.tensor", "model.policy"} <= listed
    assert "gipo_mc/config/" in said and ("algorithm.name:" in said) == (command == "train_gi_ppo")
    assert all(any(f"{key}.".startswith(f"{name}.") for key in options()) for name in UNREAD[command])


def _read_keys(rank: int, work: Callable[[Config], object], words: list[str]) -> set[str]:
    """Every option that a short run looks at."""
    config = load_config(None, words)
    names = {id(value): f"{name}." for name, value in config if isinstance(value, Section)} | {id(config): ""}
    seen: set[str] = set()
    plain = Section.__getattribute__

    def look(self: Any, name: str) -> Any:
        seen.add(f"{names.get(id(self), '?')}{name}")
        return plain(self, name)

    Section.__getattribute__ = look  # type: ignore[method-assign, assignment]  # this process is the test's own
    work(config)
    return seen & set(options())


#: What code that commands share looks at, to no effect in a command that does not list it: does anything name data, how
#: many groups are there, are domains told by name.
LOOKED_AT = {"data.prompts", "data.preferences", "data.demonstrations", "dpo.groups_from", "algorithm.groups_from"} | {
    "algorithm.groups", "algorithm.group_head",
}  # fmt: skip

WORK: dict[str, tuple[Callable[[Config], object], list[str]]] = {
    "train_sft": (sft.train, ["data.demonstrations=[builtin]", "data.evaluation=[builtin:easy]"]),
    "train_reward": (reward_model.train, ["data.preferences=[builtin]", "data.evaluation=[builtin:easy]"]),
    "train_dpo": (dpo.train, ["data.preferences=[builtin]", "dpo.groups_from=domain"]),
    "train_gi_ppo": (
        gi_ppo.train,
        ["data.prompts=[builtin]", "model.reward=python:tests.reward_functions:length", "rollout.batch_size=8"],
    ),
    "generate": (respond, ["data.prompts=[builtin]"]),
}


@pytest.mark.parametrize("command", UNREAD)
def test_nothing_is_read_that_help_does_not_list(command: str, tmp_path: Path, models: dict[str, str]) -> None:
    work, words = WORK[command]
    words = [*words, f"run.dir={tmp_path}", "run.iterations=1", "device=cpu", f"model.policy={models['policy']}"]
    words += ["data.max_rows=16", "data.prompt_length=8", "data.sequence_length=24", "rollout.max_new_tokens=4"]
    words += ["train.batch_size=8", "algorithm.mini_batch_size=8", "eval.prompts=4"]
    (seen,) = run_ranks(_read_keys, 1, work, words)
    assert seen - LOOKED_AT <= set(read_by(command)) and len(seen) > 10
