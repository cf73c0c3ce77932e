"""All blocks of Python in docs/ run as they stand, and so do the examples."""

from __future__ import annotations

import json
import math
import re
import threading
import tomllib
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.rl.reward_sources.protocol import read_reply, request_body
from gipo_mc.run.functions.rewards import form_of
from gipo_mc.types import Sample
from tests.api.apart import in_a_process
from tests.source_rules import ROOT


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run_blocks(page: str) -> dict[str, Any]:
    """All Python blocks of a page, one after the other, in one namespace; what is in it afterwards."""
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/my-sft and models/my-reward, tiny, with a byte-level tokenizer that reads any text."""
    folder = tmp_path_factory.mktemp("library")
    torch.manual_seed(2)
    for name, kind in (("my-sft", LlamaForCausalLM), ("my-reward", LlamaForSequenceClassification)):
        path = folder / "models" / name
        tokenizer = train_bpe_tokenizer(["How do I boil an egg?", " Boil it for ten minutes."], 300, path)
        config = LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=512, initializer_range=0.2, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, num_labels=1,
        )  # fmt: skip
        kind(config).save_pretrained(path)
    return folder


def _library() -> tuple[int, list[float], bool, dict[str, list[float]]]:
    names = run_blocks("library.md")
    from examples import own_reward, sft_reward_dpo

    run = own_reward.main("models/my-sft", iterations=1)
    losses = {name: one.metrics()["loss"].tolist() for name, one in sft_reward_dpo.main("models/my-sft").items()}
    gradient = names["logp"].grad
    return len(names["responses"]), run.metrics()["reward/mean"].tolist(), bool(gradient.isfinite().all()), losses


def test_the_blocks_of_the_library_page_and_the_examples_run(folder: Path) -> None:
    count, means, finite, losses = in_a_process(_library, folder)
    assert count == 4 and len(means) == 1 and finite
    assert list(losses) == ["sft", "reward", "dpo"] and all(len(one) == 4 for one in losses.values())
    assert losses["sft"][-1] < losses["sft"][0] and losses["dpo"][0] == pytest.approx(math.log(2))


def test_pages_with_blocks_of_python_are_those_that_run() -> None:
    pages = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "```python" in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(ROOT / "docs")) for path in pages] == ["howto/reward.md", "library.md", "rewards.md"]


def test_the_blocks_of_the_rewards_pages_run() -> None:
    reward = run_blocks("howto/reward.md")["reward"]
    paid = reward(Sample("2 + 2 =", " 4", columns={"answer": "4"}, response_ids=(1, 2)))
    assert form_of(reward) == "sample" and paid == pytest.approx(0.998)
    names = run_blocks("rewards.md")
    forms = {name: form_of(names[name]) for name in ("one_at_a_time", "all_at_once", "three_lists")}
    assert forms == {"one_at_a_time": "sample", "all_at_once": "samples", "three_lists": "texts"}
    asked, answered = (json.loads(block) for block in blocks("rewards.md", "json"))
    (sample,) = asked["samples"]
    ours = json.loads(
        request_body([Sample(**{**sample, "messages": (), "response_ids": tuple(sample["response_ids"])})])
    )
    assert ours == asked
    server = ThreadingHTTPServer(("127.0.0.1", 0), names["Score"])
    names["Score"].log_message = lambda *words: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(asked).encode())) as reply:
        assert json.loads(reply.read()) == answered
    server.shutdown()
    server.server_close()
    assert read_reply(200, {}, json.dumps(answered).encode(), 1).rewards == [1.0]


def test_type_checkers_are_told_of_the_types() -> None:
    """`make lint` checks tests/api/typed_program.py, a program of a user's, against them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert {"py.typed", "*.pyi"} <= set(settings["setuptools"]["package-data"]["gipo_mc"])
    assert {"examples", "tests/api/typed_program.py"} <= set(settings["mypy"]["files"])
    assert (ROOT / "gipo_mc" / "py.typed").is_file() and (ROOT / "tests" / "api" / "typed_program.py").is_file()


def test_the_loop_of_ones_own_learns_both_kinds(folder: Path) -> None:
    from examples.torch_loop import main

    history = in_a_process(main, folder, 24)
    early, late = (torch.tensor(part).mean(0) for part in (history[:4], history[-4:]))
    assert (late > early + 0.5).all(), history


def test_the_loop_of_ones_own_is_ppo_without_beta(folder: Path) -> None:
    from examples.torch_loop import main

    ours, ppo = (in_a_process(main, folder, 16, beta) for beta in (0.3, 0.0))
    assert ppo[0] == ours[0] and ppo[-1] != ours[-1]
