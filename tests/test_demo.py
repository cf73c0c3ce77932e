"""The demo: its commands are ones that the trainers accept, and what it says is what its runs found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gipo_mc.config import check_layout, load_config
from gipo_mc.report.runs import load_run
from gipo_mc.tools import builtin
from gipo_mc.tools.commands import attempt
from gipo_mc.tools.verbs import demo

BASES = {
    "train_sft": builtin.sft_base,
    "train_reward": builtin.reward_base,
    "train_gi_ppo": builtin.gi_ppo_base,
}


def test_its_steps_are_runs_of_the_trainers(tmp_path: Path) -> None:
    runs = []
    for _, ranks, command, overrides in demo.steps(tmp_path, 0):
        config = load_config(None, overrides, BASES[command]() | {"parallel": builtin.layout_for(ranks)})
        check_layout(config, ranks)
        runs.append((config.run.name, ranks, config.run.iterations))
    assert [name for name, *_ in runs] == ["builtin_sft", "builtin_reward", "builtin_ppo", *["builtin_gi_ppo"] * 2]
    (_, _, of_ppo), (_, shared, first), (_, alone, last) = runs[2:]
    assert (shared, alone) == (4, 1) and 0 < first < last == of_ppo


def test_gi_ppo_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "builtin_gi_ppo" / "checkpoints" / "step_00000040").mkdir(parents=True)
    shares = [ranks for _, ranks, command, _ in demo.steps(tmp_path, 0) if command == "train_gi_ppo"]
    assert shares == [1, 1]  # four ranks would find nothing to do


def test_a_demo_that_is_short_is_short_in_every_run(tmp_path: Path) -> None:
    steps = [step for step in demo.steps(tmp_path, 3) if step[2] == "train_gi_ppo"]
    assert [ranks for _, ranks, *_ in steps] == [1, 4]
    assert all("run.iterations=3" in overrides for *_, overrides in steps)


@pytest.mark.parametrize(("hard", "easy"), [(0.25, 0.75), (0.75, 0.25)])
def test_the_comparison_is_of_the_last_evaluations(tmp_path: Path, hard: float, easy: float) -> None:
    gold = {"gi_ppo": (hard, easy, 0.5), "ppo": (0.125, 0.875, 0.625)}
    kl = {"gi_ppo": 5.862, "ppo": 2.531}
    runs = {}
    for name, values in gold.items():
        rows = [
            {"step": step, "reward/mean": 1.0} | dict.fromkeys(("gold/domain/hard", "gold/domain/easy"), 0.0)
            for step in (0, 1)
        ]
        rows.append({"step": 2, "reward/mean": 1.0, "kl/mean": kl[name]})
        rows[-1] |= dict(zip(("gold/domain/hard", "gold/domain/easy", "gold/domain/ood"), values, strict=True))
        path = tmp_path / name
        path.mkdir()
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (path / "config.yaml").write_text("run: {seed: 7}\n")
        runs[name] = load_run(path)
    text = demo.comparison(runs["ppo"], runs["gi_ppo"])
    assert "In this seed GI-PPO ends ahead of PPO on 1 of these 3." in text
    assert "seed 7" in text and "after 2 iterations" in text
    worst = "hard" if hard < easy else "hard and easy"
    assert f"worst domain ({worst}): PPO 0.125, GI-PPO 0.250 (+0.125)" in text
    assert "mean of easy and hard: PPO 0.500, GI-PPO 0.500 (+0.000)" in text
    assert "out of domain, never asked in training: PPO 0.625, GI-PPO 0.500 (-0.125)" in text
    away = (
        "At the end PPO is 2.53 nats a response away from the reference (KL) and GI-PPO 5.86: a gain at a larger KL is"
    )
    assert f"{away} not one at equal KL" in text
    assert "5.86 nats a response away from the reference (KL) and GI-PPO 2.53: what GI-PPO gains, it does not" in (
        demo.comparison(runs["gi_ppo"], runs["ppo"])
    )


@pytest.mark.parametrize("own", ["", "INFO"])
def test_a_step_hears_no_waiting_of_ranks_unless_asked(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    if own:
        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", own)
    look = f"import os, sys; sys.exit(os.environ['TORCH_CPP_LOG_LEVEL'] != {own or 'ERROR'!r})"
    assert attempt([sys.executable, "-c", look]) == (0, 0)
