"""The demo: its commands are ones that the trainers accept, and what it says is what its runs found."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
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


def commands(folder: Path, iterations: int) -> list[demo.Command]:
    return [command for _, beside in demo.steps(folder, iterations) for command in beside]


def test_its_steps_are_runs_of_the_trainers(tmp_path: Path) -> None:
    runs = []
    for _, ranks, trainer, overrides in commands(tmp_path, 0):
        config = load_config(None, overrides, BASES[trainer]() | {"parallel": builtin.layout_for(ranks)})
        check_layout(config, ranks)
        runs.append((config.run.name, ranks, config.run.iterations))
    names = [name for name, *_ in runs]
    assert names == ["builtin_sft", "builtin_reward", "builtin_gi_ppo", "builtin_ppo", "builtin_gi_ppo"]
    (_, shared, first), (_, _, of_ppo), (_, alone, last) = runs[2:]
    assert (shared, alone) == (4, 1) and 0 < first < last == of_ppo


def test_runs_side_by_side_have_names_and_folders_of_their_own(tmp_path: Path) -> None:
    for _, beside in demo.steps(tmp_path, 0):
        of_runs = [load_config(None, each.overrides, BASES[each.trainer]()).run.name for each in beside]
        assert len({*of_runs}) == len({each.name for each in beside}) == len(beside)


def test_gi_ppo_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "builtin_gi_ppo" / "checkpoints" / "step_00000040").mkdir(parents=True)
    shares = [each.ranks for each in commands(tmp_path, 0) if each.trainer == "train_gi_ppo"]
    assert shares == [1, 1]  # four ranks would find nothing to do


def test_a_demo_that_is_short_is_short_in_every_run(tmp_path: Path) -> None:
    short = [each for each in commands(tmp_path, 3) if each.trainer == "train_gi_ppo"]
    assert [each.ranks for each in short] == [4, 1]
    assert all("run.iterations=3" in each.overrides for each in short)


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


def test_commands_side_by_side_begin_their_lines_with_their_names(capfd: pytest.CaptureFixture[str]) -> None:
    one = "import sys; print('a'); print('b', file=sys.stderr)"
    assert attempt([sys.executable, "-c", one], [sys.executable, "-c", "print('c')"], names=["X", "Y"]) == (0, 0)
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["X | a", "Y | c"] and err == "X | b\n"


def test_one_of_two_commands_that_fails_leaves_the_other_alone(tmp_path: Path) -> None:
    other = f"import pathlib, time; time.sleep(0.3); pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    failed = [sys.executable, "-c", "raise SystemExit(7)"]
    assert attempt(failed, [sys.executable, "-c", other], names=["X", "Y"]) == (7, 0)
    assert (tmp_path / "done").exists()


def test_a_signal_reaches_both_commands(tmp_path: Path) -> None:
    """SIGTERM to the process that runs them, once both wait for it."""
    wait = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)"
    )
    ready = [tmp_path / "one", tmp_path / "two"]

    def ask() -> None:
        while not all(path.exists() for path in ready):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    found = attempt(*([sys.executable, "-c", wait, str(path)] for path in ready), names=["X", "Y"])
    asking.join()
    assert found == (3, signal.SIGTERM)
