"""How a run stands, of every state that a folder can be in."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from gipo_mc.monitor.follow import Follower, View, followers
from tests.monitor.folders import append, rows, run, status


def _view(path: Path) -> View:
    return Follower(path, path.name).refresh()


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    follower = Follower(run(tmp_path / "gi"), "gi")
    view = follower.refresh()
    assert (view.phase, view.step, view.total, view.title) == ("running", 40, 80, "GI-PPO")
    assert view.pace == 3.5 and view.left == 140.0
    assert view.headline == "The reward rose from 0.025 to 0.385, but the responses show signs of reward hacking."
    assert ("warn", "The responses repeat themselves: look. (step 40)") in view.alarms
    assert follower.refresh() is view, "nothing changed"
    append(tmp_path / "gi" / "metrics.jsonl", rows(41, 41))
    later = follower.refresh()
    assert (later.step, later.revision) == (41, 2)


def test_a_run_that_has_not_begun_begins_and_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "later"
    run(tmp_path / "latter")
    follower = Follower(path, "later")
    view = follower.refresh()
    assert view.phase == "absent" and "Did you mean" in view.said and "latter" in view.said
    path.mkdir()
    assert follower.refresh().phase == "waiting"
    status(path, "running", 0)
    view = follower.refresh()
    assert view.phase == "waiting" and "first iteration" in view.said and view.data is None
    append(path / "metrics.jsonl", rows(1, 1))
    assert follower.refresh().phase == "running"
    (path / "metrics.jsonl").unlink()
    assert follower.refresh().phase == "waiting"


@pytest.mark.parametrize(
    ("state", "more", "phase", "words"),
    [
        ("running", {"pid": 2**22 + 1}, "silent", "ended without a word after step 40"),
        ("running", {"host": "elsewhere", "updated": "2020-01-01T00:00:00+00:00"}, "silent", "2020-01-01"),
        ("failed", {"exit_code": 5, "message": "Not\x1b[31m a number."}, "failed", "exit code 5. Not\ufffd"),
        ("requeue", {"exit_code": 75, "message": "Asked to stop."}, "requeue", "waits to be started again"),
        ("done", {"exit_code": 0}, "done", ""),
        ("odd", {}, "unknown", "cannot be told"),
    ],
)  # fmt: skip
def test_how_it_ended(tmp_path: Path, state: str, more: dict[str, object], phase: str, words: str) -> None:
    path = run(tmp_path / "r")
    status(path, state, 40, **more)
    view = _view(path)
    assert view.phase == phase and words in view.said and view.left is None


def test_damaged_files_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    path = run(tmp_path / "r")
    append(path / "metrics.jsonl", [{"step": 41, "reward/mean": None, "kl/mean": "high", "reward/domain/easy": True}])
    with open(path / "metrics.jsonl", "a") as file:
        file.write("nonsense\n")
    (path / "run_status.json").write_text("{")
    (path / "config.yaml").write_text("a: [")
    (path / "about.json").write_text("7")
    append(path / "samples.jsonl", [{"step": 41, "prompt": 7, "group_probs": "x", "reward": "high", "response": None}])
    view = _view(path)
    assert view.phase == "unknown" and view.total == 0 and view.data is not None
    said = " ".join(text for _, text in view.alarms)
    assert "reward/mean was NaN or infinite at step 41" in said and "1 lines of metrics.jsonl are damaged" in said


def test_supervised_runs_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "sft"
    path.mkdir()
    append(path / "metrics.jsonl", [{"step": s, "loss": 3.0 / s, "time/total": 0.1} for s in range(1, 30)])
    status(path, "running", 29, command="train_sft")
    view = _view(path)
    assert view.title == "Supervised fine-tuning" and view.headline.startswith("The model learned")


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    found = followers([tmp_path / "a" / "ppo", tmp_path / "b" / "ppo"])
    assert [each.name for each in found] == ["a/ppo", "b/ppo"] and [each.mark for each in found] == ["of-0", "of-1"]


def test_a_run_of_a_hundred_thousand_steps_costs_little(tmp_path: Path) -> None:
    path = run(tmp_path / "r", 2)
    more = {f"m/{at}": 0.123456789 for at in range(12)}
    with open(path / "metrics.jsonl", "w") as file:
        text = json.dumps(more)[1:]
        file.writelines(f'{{"step": {step}, "reward/mean": 0.5, {text}\n' for step in range(1, 100_001))
    follower = Follower(path, "r")
    begin = time.process_time()
    assert follower.refresh().step == 100_000
    first = time.process_time() - begin
    append(path / "metrics.jsonl", [{"step": 100_001, "reward/mean": 0.5} | more])
    begin = time.process_time()
    assert follower.refresh().step == 100_001
    assert first < 3.0 and time.process_time() - begin < 1.0
