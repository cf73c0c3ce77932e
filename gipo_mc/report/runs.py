"""A run folder, read back: metrics as arrays, distributions, samples, warnings, configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gipo_mc.config import check_yaml
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.jsonl import read_file, read_jsonl

#: First and last values are means over this share of the iterations, at most WINDOW_CAP of them.
WINDOW_SHARE = 0.1
WINDOW_CAP = 20


@dataclass(frozen=True)
class Distribution:
    """Values of one iteration: all of them, or evenly spaced quantiles (see MetricsLogger.histogram)."""

    step: int
    values: np.ndarray


@dataclass(frozen=True)
class RunData:
    """One run. Arrays in `series` are float64 [iterations], NaN where a metric was not logged or not finite. mark: CSS
    class of what a page shows of it, "" where nothing tells runs apart."""

    name: str
    path: Path
    status: dict[str, Any]
    about: list[tuple[str, str]]
    config: dict[str, Any]
    steps: np.ndarray
    series: dict[str, np.ndarray]
    nonfinite: dict[str, list[int]]
    distributions: dict[str, list[Distribution]]
    samples: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    notes: list[str]
    mark: str = ""

    @property
    def kind(self) -> str:
        """What may share axes: "rl", or the command of a supervised run."""
        if "reward/mean" in self.series:
            return "rl"
        return str(self.status.get("command") or "supervised")

    @property
    def algorithm(self) -> str:
        """algorithm.name of an RL run (gi_ppo, ppo, ...), else the command."""
        if self.kind == "rl":
            return str(self.option("algorithm.name") or "rl")
        return self.kind

    def option(self, key: str) -> Any:
        """Value of a dotted configuration key; None where the run has no such key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def iterations(self) -> int:
        """Iterations that were logged; step 0, the state before the first one, is none."""
        return int((self.steps > 0).sum())

    @property
    def window(self) -> int:
        """Iterations that the first and last values of a metric logged in each of them are means of."""
        return window_of(self.iterations)

    def first(self, name: str) -> float | None:
        """Mean over the first tenth of a metric's values; None where there are none."""
        values = self.values(name)
        return float(values[: window_of(len(values))].mean()) if len(values) else None

    def last(self, name: str) -> float | None:
        """Mean over the last tenth of a metric's values; None where there are none."""
        values = self.values(name)
        return float(values[-window_of(len(values)) :].mean()) if len(values) else None

    def values(self, name: str) -> np.ndarray:
        """The finite values of a metric, float64 [n], in order; empty where it was not logged."""
        values = self.series.get(name, np.empty(0))
        return values[np.isfinite(values)]

    def keys(self, prefix: str, suffix: str = "") -> list[str]:
        """The `<key>` of the metrics named prefix<key>suffix, sorted; numbers by their value."""
        found = [
            name[len(prefix) : len(name) - len(suffix)]
            for name in self.series
            if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
        ]
        return sorted(found, key=lambda key: (not key.isdigit(), key.zfill(9) if key.isdigit() else key))

    def domains(self, prefix: str) -> tuple[list[str], list[str]]:
        """(domains that are trained on, the others) of the metrics prefix<domain>. The worst domain is one of the
        first. Where none of the names is one of training, nothing tells them apart, and all are the first."""
        found, known = self.keys(prefix), self.keys("reward/domain/")
        trained = [key for key in found if key in known] or found
        return trained, [key for key in found if key not in trained]


def window_of(count: int) -> int:
    """Values that a first or last mean is over, of `count`."""
    return min(WINDOW_CAP, max(1, round(WINDOW_SHARE * count)))


def load_run(path: Path, name: str = "") -> RunData:
    """Read the run folder `path`. Raises DataError (file:line: reason) where there is no run or a log is damaged."""
    folder = RunFolder(path)
    if not folder.metrics.is_file():
        raise DataError(
            f"{path} is no run folder: it has no metrics.jsonl. Give the folder of a run, such as runs/builtin_gi_ppo."
        )
    notes: list[str] = []
    steps, series, nonfinite = _metrics(folder.metrics, notes)
    config = read_config(folder.config, notes)
    return RunData(
        name=name or path.resolve().name,
        path=path,
        status=folder.read_status(),
        about=read_about(folder.about, notes),
        config=config,
        steps=steps,
        series=series,
        nonfinite=nonfinite,
        distributions=_distributions(folder.distributions, notes),
        samples=_rows(folder.samples, notes),
        warnings=_rows(folder.warnings, notes),
        notes=notes,
    )


def load_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read several runs and give each a name that no other has: the shortest end of its path that is unique."""
    if not paths:
        raise DataError("No run was named: give at least one run folder, such as runs/builtin_gi_ppo.")
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise DataError(f"{paths[number]} was named twice: name each run once.")
    longest = max(len(path.parts) for path in resolved)
    for depth in range(1, longest + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return [load_run(path, name) for path, name in zip(paths, names)]


def _rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = read_jsonl(path)
    if found.note:
        notes.append(found.note)
    return found.rows


def _metrics(path: Path, notes: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, list[int]]]:
    found = read_jsonl(path)
    if found.note:
        notes.append(found.note)
    if not found.rows:
        raise DataError(f"{path} holds no iteration yet: come back when the run has finished its first.")
    by_step: dict[int, dict[str, Any]] = {}
    nonfinite: dict[str, list[int]] = {}
    for row, line in zip(found.rows, found.lines):
        for name, value in row.items():
            if name == "nonfinite" and isinstance(value, list):
                continue
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise DataError(f"{path}:{line}: {name} must be a number, it is {value!r:.60}. Restore the file.")
            if value is not None and abs(value) > sys.float_info.max:
                raise DataError(f"{path}:{line}: {name} is larger than any number of a run. Restore the file.")
            if value is None:
                nonfinite.setdefault(name, []).append(row["step"])
        if row["step"] in by_step:
            notes.append(f"{path}:{line}: step {row['step']} was logged twice; the later line is shown.")
        by_step[row["step"]] = row
    steps, series = series_of(by_step)
    return steps, series, nonfinite


def series_of(by_step: Mapping[int, Mapping[str, Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(steps [n], metric -> its values, float64 [n]) of rows of metrics.jsonl by their step."""
    steps = np.array(sorted(by_step), dtype=np.int64)
    names = dict.fromkeys(name for step in steps for name in by_step[int(step)] if name not in ("step", "nonfinite"))
    series = {
        name: np.array([_number(by_step[int(step)].get(name)) for step in steps], dtype=np.float64) for name in names
    }
    return steps, series


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _distributions(path: Path, notes: list[str]) -> dict[str, list[Distribution]]:
    found: dict[str, list[Distribution]] = {}
    for row in _rows(path, notes):
        try:
            values = np.array(row["values"], dtype=np.float64).ravel()
            name = str(row["name"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: step {row['step']}: not a distribution ({error}). Restore the file.") from error
        if len(values):
            found.setdefault(name, []).append(Distribution(row["step"], values))
    return found


def read_config(path: Path, notes: list[str]) -> dict[str, Any]:
    """The resolved configuration. What is shown beside the numbers is worth a note where it is damaged, not the loss of
    the report."""
    try:
        config = _yaml(path) if path.exists() else {}
    except (OSError, ValueError, yaml.YAMLError, ConfigError, RecursionError) as error:
        notes.append(f"{path} cannot be read and is left out: {str(error).splitlines()[0]}")
        return {}
    return config if isinstance(config, dict) else {}


def _yaml(path: Path) -> Any:
    text = read_file(path).decode("utf-8")
    check_yaml(text, str(path))
    return yaml.safe_load(text)


def read_about(path: Path, notes: list[str]) -> list[tuple[str, str]]:
    """(label, value) of what ran; a damaged file is noted."""
    try:
        lines = json.loads(read_file(path)) if path.exists() else []
        return [(str(label), str(value)) for label, value in lines]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        notes.append(f"{path} cannot be read and is left out: {error}")
        return []
