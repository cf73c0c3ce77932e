"""GI-PPO with vLLM as its rollout engine: in every layout it has, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from gipo_mc.config import Config
from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer
from gipo_mc.errors import ConfigError
from gipo_mc.rl import gi_ppo
from gipo_mc.tools.respond import respond
from tests.ranks import run_ranks
from tests.runs import read_metrics, rl_config, save_models
from tests.source_rules import ROOT

LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {"1": ({}, 1), "DP2": ({}, 2), "TP2": ({"tensor": 2}, 2)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The built-in task's models, with two heads of 32 numbers in place of four of 16."""
    folder = tmp_path_factory.mktemp("models")
    fields = {**builtin_llama_config(), "num_attention_heads": 2, "initializer_range": 0.2}
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**fields)).save_pretrained(folder / "policy")
    LlamaForSequenceClassification(LlamaConfig(num_labels=1, **fields)).save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        builtin_tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("policy", "reward")}


def config_of(folder: Path, models: dict[str, str], **layout: Any) -> Config:
    return rl_config(folder, models, "rollout.engine=vllm", "rollout.kv_cache_gib=0.05", "eval.every=1", **layout)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_generates_with_the_policy_of_each_iteration(name: str, models: dict[str, str], tmp_path: Path) -> None:
    """The training model's forward pass says what the log-probs of the responses are; vLLM's are the same, after each
    update and in evaluation between them."""
    layout, ranks = LAYOUTS[name]
    run_ranks(lambda _: gi_ppo.train(config_of(tmp_path, models, **layout)) and None, ranks)
    lines = [line for line in read_metrics(tmp_path / "run") if "rollout/logp_difference" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["rollout/logp_difference"] < 1e-4


def _start(folder: Path, models: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    arguments = [
        f"run.dir={folder}", "run.name=run", "run.iterations=4", "device=cpu", "checkpoint.every=1",
        *(f"model.{key}={value}" for key, value in models.items()), "data.prompts=[builtin]", "data.prompt_length=8",
        "data.max_rows=64", "rollout.engine=vllm", "rollout.batch_size=18", "rollout.max_new_tokens=8",
        "algorithm.mini_batch_size=6", "parallel.tensor=2", "eval.prompts=0",
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, str(ROOT / "scripts" / "train_gi_ppo.py"), *arguments],
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_run_goes_on_after_a_kill(models: dict[str, str], tmp_path: Path) -> None:
    """Under torchrun with TP2: a killed run leaves nothing in /dev/shm that the next would meet."""
    before = set(os.listdir("/dev/shm"))
    first = _start(tmp_path, models, tmp_path / "first.log")
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") >= 1):
        assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "first.log").read_text()[-3000:]
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    left = {name for name in set(os.listdir("/dev/shm")) - before if "cpushm" in name}
    assert not left
    second = _start(tmp_path, models, tmp_path / "second.log")
    assert second.wait(250) == 0, (tmp_path / "second.log").read_text()[-3000:]
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-1] == 4


def test_a_model_that_vllm_cannot_serve_is_refused_before_models_are_loaded(tmp_path: Path) -> None:
    narrow = save_models(tmp_path)  # four heads of 16

    def job(_: int) -> str:
        with pytest.raises(ConfigError) as error:
            gi_ppo.train(config_of(tmp_path, {**narrow, "reward": "python:gipo_mc.data.synthetic:gold"}))
        return str(error.value)

    assert "those of the policy have 16" in run_ranks(job, 1)[0]


def test_a_single_prompt_is_answered(models: dict[str, str], tmp_path: Path) -> None:
    """`scripts/generate.py`, whose engine is told of the longest of its own prompts."""

    def job(_: int) -> list[str]:
        config = config_of(tmp_path, models)
        ours = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": "megatron"})})
        return [respond(one, ["s1 s2"], greedy=True)[0].response for one in (config, ours)]

    vllm, megatron = run_ranks(job, 1)[0]
    assert vllm == megatron
