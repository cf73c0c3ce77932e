"""How a run stands now, as far as its folder tells: what the terminal and the page show."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gipo_mc.monitor.tail import Tail
from gipo_mc.report import summary
from gipo_mc.report.runs import RunData, read_about, read_config, series_of
from gipo_mc.report.texts import readable
from gipo_mc.report.verdict import verdict
from gipo_mc.run.folder import RunFolder, fell_silent

Phase = Literal["absent", "waiting", "running", "silent", "done", "failed", "requeue", "unknown"]
#: Samples that are held, and the newest that are shown first.
_SAMPLES, _WARNINGS = 400, 200
#: What makes a folder one of a run.
_LEFT = ("run_status.json", "metrics.jsonl")
#: Iterations that the pace is the median of.
_PACE = 20


@dataclass(frozen=True)
class View:
    """phase: where the run is. said: a sentence on that, where it is more than a word. step, total: iterations done and
    wanted, total 0 where that is not known. pace: seconds of an iteration, and left: until the end; None where unknown.
    started, updated: as run_status.json has them. alarms: (tone, sentence). data: None before the first iteration.
    revision: rises with every change.
    """

    name: str
    path: Path
    phase: Phase
    said: str
    step: int = 0
    total: int = 0
    pace: float | None = None
    left: float | None = None
    started: str = ""
    updated: str = ""
    title: str = ""
    headline: str = ""
    tone: str = "info"
    alarms: list[tuple[str, str]] = field(default_factory=list)
    data: RunData | None = None
    revision: int = 0


class Follower:
    """Follows one run folder. mark: CSS class of its curves among those of others."""

    def __init__(self, path: Path, name: str, mark: str = "") -> None:
        self.path, self.name, self.mark = path, name, mark
        folder = RunFolder(path)
        self._folder = folder
        self._metrics = Tail(folder.metrics)
        self._samples = Tail(folder.samples, _SAMPLES, newest=True)
        self._warnings = Tail(folder.warnings, _WARNINGS, newest=True)
        self._status: dict[str, Any] = {}
        self._config: tuple[Any, dict[str, Any]] = (None, {})
        self._view: View | None = None

    def refresh(self) -> View:
        """How the run stands now; the same object as before where nothing has changed."""
        read = [tail.refresh() for tail in (self._metrics, self._samples, self._warnings)]
        changed = any(read)
        status = self._folder.read_status()
        if status != self._status:
            self._status, changed = status, True
        changed |= self._refresh_config()
        phase, said = self._phase()
        before = self._view
        if before is not None and not changed and (phase, said) == (before.phase, before.said):
            return before
        self._view = self._look(phase, said, before.revision + 1 if before else 1)
        return self._view

    def _refresh_config(self) -> bool:
        try:
            found = self._folder.config.stat()
            key: Any = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            key = None
        if key == self._config[0]:
            return False
        self._config = (key, read_config(self._folder.config, []) if key else {})
        return True

    def _phase(self) -> tuple[Phase, str]:
        state = self._status.get("state")
        message = readable(self._status.get("message") or "")
        if silent := fell_silent(self._status):
            return "silent", readable(silent)
        if state == "running":
            waits = "" if self._metrics.rows else "It has begun; the first iteration is not done yet."
            return ("running" if self._metrics.rows else "waiting"), waits
        if state == "failed":
            return "failed", f"It failed with exit code {self._status.get('exit_code')}. {message}".strip()
        if state == "requeue":
            return "requeue", f"It was saved and waits to be started again. {message}".strip()
        if state == "done":
            return "done", message
        if self._metrics.rows:
            return "unknown", "It left no run_status.json: whether it runs cannot be told."
        return ("waiting", "Nothing was logged yet.") if self.path.is_dir() else ("absent", absent(self.path))

    def _look(self, phase: Phase, said: str, revision: int) -> View:
        config = self._config[1]
        run = config.get("run")
        wanted = run.get("iterations") if isinstance(run, dict) else None
        total = wanted if isinstance(wanted, int) and not isinstance(wanted, bool) else 0
        rows = self._metrics.rows
        told = self._status.get("step")
        step = max(rows[-1]["step"] if rows else 0, told if isinstance(told, int) and phase != "running" else 0)
        view = View(
            self.name, self.path, phase, said, step, total,
            started=str(self._status.get("started") or ""), updated=str(self._status.get("updated") or ""),
            revision=revision,
        )  # fmt: skip
        return view if not rows else self._with_data(view, config)

    def _with_data(self, view: View, config: dict[str, Any]) -> View:
        data = self._data(config)
        times = data.values("time/total")[-_PACE:]
        pace = float(np.median(times)) if len(times) else None
        left = pace * max(0, view.total - view.step) if pace is not None and view.total else None
        found = verdict([data])
        alarms = [(tone, text) for tone, text in summary.notices(data) if tone != "info"]
        # What the header says of the run's state is no alarm once more.
        alarms = [item for item in alarms if item[1] not in (view.said, f"The run failed with {view.said[15:]}")]
        if self._metrics.damaged:
            alarms.append(("bad", f"{self._metrics.damaged} lines of metrics.jsonl are damaged and left out."))
        return replace(
            view, pace=pace, left=left if view.phase == "running" else None, title=summary.title(data),
            headline="" if view.phase == "failed" else found.headline, tone=found.tone, alarms=alarms, data=data,
        )  # fmt: skip

    def _data(self, config: dict[str, Any]) -> RunData:
        nonfinite: dict[str, list[int]] = {}
        for row in self._metrics.rows:
            for name, value in row.items():
                if value is None:
                    nonfinite.setdefault(name, []).append(row["step"])
        steps, series = series_of({row["step"]: row for row in self._metrics.rows})
        return RunData(
            name=self.name, path=self.path, status=self._status, about=read_about(self._folder.about, []),
            config=config, steps=steps, series=series, nonfinite=nonfinite, distributions={},
            samples=self._samples.rows, warnings=self._warnings.rows, notes=[], mark=self.mark,
        )  # fmt: skip


def told(view: View) -> dict[str, Any]:
    """What a program may want to know of it: the fields of `View` that are no pictures, and the newest metrics."""
    data = view.data
    metrics = {} if data is None else {name: float(values[-1]) for name, values in data.series.items()}
    return {
        "name": view.name, "path": str(view.path), "phase": view.phase, "says": view.said, "step": view.step,
        "total": view.total, "seconds_each": view.pace, "seconds_left": view.left, "verdict": view.headline,
        "alarms": [text for _, text in view.alarms], "metrics": metrics,
    }  # fmt: skip


def followers(paths: Sequence[Path]) -> list[Follower]:
    """One for each run, each with a name that no other has: the shortest end of its path that is unique."""
    resolved = [path.absolute() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return [
        Follower(path, name, f"of-{at}" if len(paths) > 1 else "")
        for at, (path, name) in enumerate(zip(paths, names, strict=True))
    ]


def absent(path: Path) -> str:
    """A sentence on a folder that is not there, with those that may have been meant."""
    near = difflib.get_close_matches(path.name, [each.name for each in _runs_in(path.parent)], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""
    return f"{path} is not there (yet).{hint}"


def holds_runs(path: Path) -> list[Path]:
    """Run folders in a folder that is none itself: what was probably meant."""
    folder = RunFolder(path)
    if folder.status.exists() or folder.metrics.exists():
        return []
    return _runs_in(path)


def _runs_in(path: Path) -> list[Path]:
    try:
        found = [each for each in path.iterdir() if any((each / name).exists() for name in _LEFT)]
    except OSError:
        return []
    return sorted(found)


def age(since: str) -> float | None:
    """Seconds since a time of run_status.json, never below 0; None where it is none."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())
    except (ValueError, TypeError):
        return None
