"""Trackers that note what they get, and fail as they are told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gipo_mc.config import Config, TrackingConfig, values
from gipo_mc.run.trackers.protocol import About, End


def about(folder: Path, begin: int = 0, logged: int = 0, **tracking: Any) -> About:
    """Of a run in `folder`."""
    store = {"mlflow_uri": (folder.parent / "mlruns").absolute().as_uri(), "name": "toy", **tracking}
    config = Config(tracking=TrackingConfig(**store))
    shown = values(config)
    return About(folder, "train_sft", config.tracking, ["mine", "train_sft"], shown, "run: {seed: 1}\n", begin, logged)


class FakeTracker:
    """got: the entries. fail: called before each method with its name; raises or waits as the test wants it."""

    title = "Fake"

    def __init__(self, fail: Callable[[str], None] = lambda kind: None) -> None:
        self.got: list[tuple[Any, ...]] = []
        self.starts = 0
        self.end: End | None = None
        self.arrived = threading.Condition()
        self._fail = fail

    def start(self, about: About) -> None:
        self.starts += 1
        self._fail("start")

    def scalars(self, step: int, values: Any) -> None:
        self._take("scalars", step, dict(values))

    def histogram(self, step: int, name: str, values: Any) -> None:
        self._take("histogram", step, name, list(values))

    def text(self, step: int, name: str, text: str) -> None:
        self._take("text", step, name, text)

    def finish(self, end: End) -> None:
        self._fail("finish")
        self.end = end

    def wait_for(self, count: int) -> None:
        """Until it has so many entries."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, 20), self.got

    def _take(self, kind: str, *entry: Any) -> None:
        self._fail(kind)
        with self.arrived:
            self.got.append((kind, *entry))
            self.arrived.notify()
