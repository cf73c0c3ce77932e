"""What a tracker is, what it is told of a run, and what it remembers of it in the run folder.

metrics.jsonl and the files beside it are the truth of a run. A tracker is fed from them and may lack lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gipo_mc.config import TrackingConfig
from gipo_mc.run.folder import State
from gipo_mc.run.jsonl import read_file, write_atomically


@dataclass(frozen=True)
class About:
    """A run, as its trackers show it. Nothing in it is secret: what came from the environment is a reference to it.

    folder: of the trackers in the run folder. tracking: names and addresses, name and mlflow_uri filled in.
    tags: those of the user, the command, the algorithm. options: by key. yaml: config.yaml. begin: step that this start
    goes on from. logged: last step that the attempts before have logged, which is later where steps were lost.
    """

    folder: Path
    command: str
    tracking: TrackingConfig
    tags: Sequence[str]
    options: Mapping[str, Any]
    yaml: str
    begin: int = 0
    logged: int = 0


@dataclass(frozen=True)
class End:
    """How a run ended. state, exit_code, message: those of run_status.json. report: the HTML file, if there is one."""

    state: State
    exit_code: int
    message: str = ""
    report: Path | None = None


class Tracker(Protocol):
    """A place that shows metrics. Its methods may raise anything, or hang: `Feed` calls them on a thread of its own."""

    #: What people call it.
    title: str

    def start(self, about: About) -> None:
        """Open the run there, or go on with the one that this run folder has. Called again after a failure."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step, finite."""

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """A distribution: finite values, or evenly spaced quantiles of many."""

    def text(self, step: int, name: str, text: str) -> None:
        """Words on a step, control characters escaped."""

    def finish(self, end: End) -> None:
        """Write what is left, and say how the run ended."""


@dataclass
class Memory:
    """What a tracker remembers of a run over its starts: a JSON file in the run folder. values: what the file held."""

    path: Path
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        try:
            found = json.loads(read_file(self.path))
        except (OSError, ValueError, RecursionError):
            found = {}  # none yet, or damaged: the tracker begins another run
        self.values = found if isinstance(found, dict) else {}

    def keep(self, **values: Any) -> None:
        """Remember these, too. Raises StorageError."""
        self.values |= values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.values, indent=2) + "\n")
