"""A run folder in another program: its metrics as a table, its samples, warnings, options and status."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gipo_mc.config import saved_values
from gipo_mc.errors import DataError
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.jsonl import read_jsonl

if TYPE_CHECKING:
    import pandas


class Run:
    """A run folder. It is read each time that something of it is asked for, so a run that goes on may be followed."""

    def __init__(self, path: str | Path) -> None:
        """Raises DataError where `path` is no run folder."""
        self._folder = RunFolder(path)
        if not self._folder.config.is_file() and not self._folder.status.is_file():
            raise DataError(f"{path} is no run folder: it holds neither config.yaml nor run_status.json.")

    @property
    def path(self) -> Path:
        """The run folder; `load_policy` takes it."""
        return self._folder.path

    def metrics(self) -> pandas.DataFrame:
        """Metrics by iteration: float64 columns by the names of the metrics, int64 index "step". Step 0, where there is
        one, is the state before the first iteration. NaN where a metric was not logged, or was not finite.
        """
        import pandas

        rows = self._rows(self._folder.metrics)
        names = list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "nonfinite")))
        index = pandas.Index([row["step"] for row in rows], dtype="int64", name="step")
        columns = {name: [row.get(name) for row in rows] for name in names}
        return pandas.DataFrame(columns, index=index, dtype="float64")

    def samples(self) -> list[dict[str, Any]]:
        """The responses that were kept: "step", "prompt", "response", "reward", "domain", "kl", "group_probs" ..."""
        return self._rows(self._folder.samples)

    def warnings(self) -> list[dict[str, Any]]:
        """Warnings in words: "step" and "text"."""
        return self._rows(self._folder.warnings)

    def options(self) -> Mapping[str, Any]:
        """The value of every option by its key ("algorithm.groups"). Raises ConfigError where it cannot be read."""
        return saved_values(self._folder.config)

    def status(self) -> Mapping[str, Any]:
        """What run_status.json says: "state" (running, done, failed, requeue), "exit_code", "message", "step" ..."""
        return self._folder.read_status()

    def _rows(self, file: Path) -> list[dict[str, Any]]:
        return read_jsonl(file).rows if file.exists() else []

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def read_run(path: str | Path) -> Run:
    """The run in a folder. Raises DataError where there is none."""
    return Run(path)
