"""`evaluate.py judge` on models: responses generated once, the run's own groups, a reward model's verdicts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gipo_mc.evaluation.judges.journal import read_entries
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.rl import gi_ppo
from gipo_mc.run.model_sources import ModelSource, resolve
from gipo_mc.tools.evaluate.command import main
from tests.ranks import run_ranks
from tests.runs import rl_config, save_models

COUNT = 12
SET = [
    "data.evaluation=[builtin:easy]", "data.prompt_length=8", "rollout.max_new_tokens=8", f"eval.prompts={COUNT}",
    "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A policy, two reward models, and the run that trained the policy with one of them."""
    folder = tmp_path_factory.mktemp("models")
    found = save_models(folder)
    other = save_models(folder / "other", seed=4)["reward"]
    config = rl_config(folder, found, "run.iterations=1", "algorithm.groups=3")
    run_ranks(lambda rank: gi_ppo.train(config), 1)
    return found | {"run": str(folder / "run"), "other": other}


def _judged(folder: Path, models: dict[str, str], *more: str) -> int:
    words = ["judge", "--ours", models["run"], "--against", f"sft={models['policy']}", "--out", str(folder / "eval")]
    return int(run_ranks(lambda rank: main([*words, "--set", *SET, *more]), 1)[0])


def _judge_file(folder: Path, model: str) -> str:
    (file := folder / "reward.yaml").write_text(f"kind: reward\nmodel: {model}\ndevice: cpu\nbatch: 5\n")
    return str(file)


def _rewards(model: str, rows: list[tuple[str, str, bool]]) -> list[float]:
    """By transformers, a row at a time."""
    tokenizer, scorer = AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model)
    found = []
    for prompt, response, cut in rows:
        ids = tokenizer(f"{prompt} {response}".strip(), add_special_tokens=False)["input_ids"]
        ids = [*([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []), *ids]
        ids += [] if cut else [tokenizer.eos_token_id]
        with torch.no_grad():
            found.append(float(scorer(torch.tensor([ids])).logits[0, 0]))
    return found


def test_models_are_generated_once_and_scored(models: dict[str, str], tmp_path: Path, capfd: Any) -> None:
    judge = _judge_file(tmp_path, models["other"])
    of_a_cluster = ["--set", "parallel.tensor=4", "parallel.pipeline=2", "parallel.sequence=true"]
    assert _judged(tmp_path, models, "--judge", judge, *of_a_cluster) == 0
    pairs = read_pairs(tmp_path / "eval")
    assert len(pairs) == COUNT and {pair.group for pair in pairs} <= {0, 1, 2}
    assert pairs[0].ours_model.startswith(f"{models['run']} [step_00000001, ") and pairs[0].domain == "easy"
    assert pairs[0].row == "builtin:easy:1"
    entries = read_entries(tmp_path / "eval")
    different = [pair for pair in pairs if not pair.identical]
    assert len(entries) == len(different) > 3
    by_pair = {entry.pair: entry for entry in entries}
    for pair in different:
        sides = [(pair.prompt, pair.ours, pair.ours_truncated), (pair.prompt, pair.theirs, pair.theirs_truncated)]
        ours, theirs = _rewards(models["other"], sides)
        assert by_pair[pair.pair].verdict == ("ours" if ours > theirs else "theirs"), (pair, ours, theirs)

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "eval" / "responses").iterdir()}
    assert len(files) == 4
    capfd.readouterr()
    assert _judged(tmp_path, models, "--judge", judge) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files, "nothing was generated again"
    assert f"0 verdicts of 0 requests, {len(entries)} were in the journal" in capfd.readouterr().out
    assert _judged(tmp_path, models, "--set", "rollout.max_new_tokens=4") == 0
    assert all(path.stat().st_mtime_ns != written for path, written in files.items()), "other settings, other responses"


def test_the_reward_that_trained_a_policy_is_no_judge_of_it(models: dict[str, str], tmp_path: Path, capfd: Any) -> None:
    assert _judged(tmp_path, models, "--judge", _judge_file(tmp_path, models["reward"])) == 0
    assert "was trained with this reward model" in capfd.readouterr().err


def test_a_row_of_a_run_without_a_classifier_has_no_group(models: dict[str, str], tmp_path: Path) -> None:
    assert _judged(tmp_path, models) == 0
    theirs = [json.loads(line) for line in (tmp_path / "eval/responses/sft.jsonl").read_text().splitlines()]
    assert {row["group"] for row in theirs} == {None}


def test_reading_large_models_is_told(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Weights that are hashed, and checkpoints that are verified, take minutes where they are large."""

    def slow(name: str, *_: Any, **__: Any) -> ModelSource:
        time.sleep(0.2)
        return resolve(name, "slow")

    monkeypatch.setattr("gipo_mc.run.terminal.waiting.FIRST", 0.05)
    monkeypatch.setattr("gipo_mc.run.model_sources.resolve", slow)
    monkeypatch.setattr("gipo_mc.evaluation.judges.reward_judge.resolve", slow)
    assert _judged(tmp_path, models, "--judge", _judge_file(tmp_path, models["other"])) == 0
    said = capfd.readouterr().err
    for what in ("--ours: reading its weights", "--against sft: reading its weights", "reward: looking at its model"):
        assert f"{what}, 0 s" in said
    assert "reward: reading its model, 0 s" in said
