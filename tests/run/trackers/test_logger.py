"""What MetricsLogger gives its trackers, beside the files of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import Config
from gipo_mc.errors import ConfigError
from gipo_mc.run import trackers
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.metrics import MetricsLogger
from gipo_mc.run.trackers import feeds, report
from gipo_mc.run.trackers.protocol import About
from tests.run.files import lines
from tests.run.trackers.fakes import FakeTracker

WANDB: Any = {"run": {"trackers": ["wandb"]}, "tracking": {"tags": ["mine"]}}


class Seen(FakeTracker):
    """One that keeps what it is told of the run."""

    about: About

    def start(self, about: About) -> None:
        super().start(about)
        self.about = about


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """The trackers that are made in the place of W&B, each new one last. No report is drawn."""
    found: list[Seen] = []

    def make() -> Seen:
        found.append(Seen())
        return found[-1]

    monkeypatch.setitem(feeds.FED, "wandb", make)
    monkeypatch.setattr(feeds, "make_report", lambda run, out, seconds: out)
    monkeypatch.setattr(trackers, "_installed", lambda package: True)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    with RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True) as opened:
        yield opened


def test_a_tracker_gets_what_the_files_get(folder: RunFolder, made: list[Seen]) -> None:
    with MetricsLogger(folder, Config(**WANDB)) as log:
        assert log.log(1, {"policy/loss": 0.5, "bad": float("nan")}) == []
        log.histogram(1, "reward", [2.0, 1.0, float("inf")])
        log.warn(1, "careful\x1b")
        folder.write_status("done", 0, "", 1)
    (tracker,) = made
    assert tracker.got == [
        ("scalars", 1, {"policy/loss": 0.5}),
        ("histogram", 1, "distribution/reward", [1.0, 2.0]),
        ("text", 1, "warnings", "careful\\x1b"),
    ]
    assert tracker.end is not None and (tracker.end.state, tracker.end.exit_code) == ("done", 0)
    assert tracker.end.report == folder.path / "trackers" / "report.html"
    assert list(tracker.about.tags) == ["mine", "train_gi_ppo", "gi_ppo"] and tracker.about.tracking.name == "toy"
    assert not folder.tensorboard.exists(), "run.trackers does not name it"


def test_a_run_that_goes_back_says_where_it_was(folder: RunFolder, made: list[Seen]) -> None:
    for begin in (-1, 2):
        with MetricsLogger(folder, Config(**WANDB)) as log:
            log.truncate_after(begin)
            for step in range(max(begin, 0) + 1, 6):
                log.log(step, {"a": 1.0})
            folder.write_status("requeue", 75, "Asked to stop", 5)
    assert [(tracker.about.begin, tracker.about.logged) for tracker in made] == [(0, 0), (2, 5)]
    assert made[1].end is not None and (made[1].end.state, made[1].end.report) == ("requeue", None)


def test_trouble_is_one_sentence_and_the_files_have_everything(
    folder: RunFolder, made: list[Seen], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Seen, about: About) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(Seen, "start", refuse)
    said: list[str] = []
    with MetricsLogger(folder, Config(**WANDB)) as log:
        for step in range(1, 200):
            said += log.log(step, {"a": 1.0})
        log._fed()._feeds[0]._thread.join(0.05)
        said += log.log(200, {"a": 1.0})
    assert len(said) == 1 and "Fake does not take the metrics (ConnectionError: no route)" in said[0]
    assert len(lines(folder.metrics)) == 200
    assert "Fake did not get 200 entries, nor how the run ended" in capsys.readouterr().err


def test_a_refused_start_begins_no_run_there(folder: RunFolder, made: list[Seen]) -> None:
    with MetricsLogger(folder, Config(**WANDB)):
        folder.write_status("failed", 2, "The run cannot continue", 0)
    assert made == []


def test_nothing_secret_reaches_a_tracker(folder: RunFolder, made: list[Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    from gipo_mc.config import environment, load_config

    monkeypatch.setattr(environment, "_hidden", {})
    monkeypatch.setenv("HUB_TOKEN", "s3cret-token")
    config = load_config(None, ["model.policy=hub/${oc.env:HUB_TOKEN}", "run.trackers=wandb"])
    with MetricsLogger(folder, config) as log:
        log.log(1, {"a": 1.0})
        log.warn(1, "hub/s3cret-token is slow")
        folder.write_status("failed", 3, "hub/s3cret-token is gone", 1)
    (tracker,) = made
    told = json.dumps([dict(tracker.about.options), tracker.about.yaml, tracker.got, str(tracker.end)])
    assert "s3cret" not in told and "${oc.env:HUB_TOKEN}" in told


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"pip install 'gipo-mc\[wandb\]', or take it out of run\.trackers"):
        MetricsLogger(folder, Config(**WANDB))
    MetricsLogger(folder, Config()).close()


def test_a_report_that_cannot_be_made_is_none(tmp_path: Path) -> None:
    assert report.make_report(tmp_path / "no_run", tmp_path / "t" / "report.html", 60.0) is None
    assert report.make_report(tmp_path, tmp_path / "t" / "report.html", 0.0) is None
