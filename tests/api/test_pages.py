"""The blocks of docs/library.md and docs/rewards.md run as they stand; a program of a user's passes a type checker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.rl.reward_sources.functions import form_of
from gipo_mc.rl.reward_sources.protocol import read_reply, request_body
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


def _library() -> tuple[int, list[float], bool]:
    names = run_blocks("library.md")
    from examples.own_reward import main

    run = main("models/my-sft", iterations=1)
    gradient = names["logp"].grad
    return len(names["responses"]), run.metrics()["reward/mean"].tolist(), bool(gradient.isfinite().all())


def test_the_blocks_of_the_library_page_run(folder: Path) -> None:
    count, means, finite = in_a_process(_library, folder)
    assert count == 4 and len(means) == 1 and finite


def test_the_blocks_of_the_rewards_page_run() -> None:
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


USERS = """
import pandas
import torch

import gipo_mc


async def mine(samples: list[gipo_mc.Sample]) -> list[float]:
    return [float(len(sample.response)) for sample in samples]


def main() -> pandas.DataFrame:
    with gipo_mc.load_policy("models/x", dtype="float32") as policy:
        texts: list[str] = [one.text for one in policy.sample(["a"], top_k=3)]
        log_probs: list[torch.Tensor] = policy.log_probs(["a"], texts)
    run: gipo_mc.Run = gipo_mc.train(policy="models/x", reward=mine, prompts=[{"prompt": "a"}], run="runs/x")
    try:
        weights: torch.Tensor = gipo_mc.kl_weights(0.1, log_probs[0], None, "adaptive")
        found: gipo_mc.GroupVariance = gipo_mc.group_variance(weights, weights, 3, weights="size")
        print(found.variance, gipo_mc.__version__)
    except gipo_mc.errors.ConfigError as error:
        print(error.exit_code)
    return run.metrics()
"""
WRONG = """
import gipo_mc

gipo_mc.load_policy(3)
gipo_mc.train(policy="x", reward="y", prompts="z")
gipo_mc.group_variance(None, None, 3, weights="other")
gipo_mc.no_such_name
"""


def test_a_type_checker_knows_the_library(tmp_path: Path) -> None:
    """mypy finds the types where the package is installed, and what is wrong in a user's program."""
    (tmp_path / "right.py").write_text(USERS)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache"), "--config-file", "mypy.ini"]
    environment = {"PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(lines) == 5 and all(line.startswith("wrong.py") for line in lines), done.stdout + done.stderr


def test_the_loop_of_ones_own_learns_both_kinds(folder: Path) -> None:
    from examples.torch_loop import main

    history = in_a_process(main, folder, 20)
    early, late = (torch.tensor(part).mean(0) for part in (history[:4], history[-4:]))
    assert late[0] > early[0] + 0.5, history
