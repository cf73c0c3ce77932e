"""What a run logs: metrics.jsonl, samples and distributions, without duplicates after a resume. Its trackers are fed
from here: TensorBoard at once, the others on threads of their own (`gipo_mc.run.trackers`).

A metric is a finite number. A NaN or infinity is still logged, because the line that shows it is the one that is
needed: its value is null (JSON has no NaN, and readers of tables take null for missing) and the line carries
`"nonfinite": ["policy/loss=nan"]`. Trackers do not get it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from gipo_mc.config import Config
from gipo_mc.run.arguments import say_warning
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.jsonl import JsonLines, printable, read_jsonl
from gipo_mc.run.terminal.waiting import waiting
from gipo_mc.run.trackers import check_trackers
from gipo_mc.run.trackers.feeds import Feeds
from gipo_mc.run.trackers.tensorboard import TensorBoard

#: Values kept of a distribution: all of a small batch, evenly spaced quantiles of a larger one.
KEPT_VALUES = 201


class MetricsLogger:
    """Writer of a run's log files; one per run, on rank 0.

    Steps rise strictly. Continuing an existing run begins with `truncate_after(step of the checkpoint)`.
    """

    def __init__(self, folder: RunFolder, config: Config | None = None) -> None:
        """config: names the trackers; None: the defaults. Raises ConfigError where one is not installed, DataError
        where metrics.jsonl is damaged."""
        self._config = config or Config()
        check_trackers(self._config)
        self._folder = folder
        self._metrics = JsonLines(folder.metrics)
        self._samples = JsonLines(folder.samples)
        self._distributions = JsonLines(folder.distributions)
        self._warnings = JsonLines(folder.warnings)
        self._board = TensorBoard(folder.tensorboard) if "tensorboard" in self._config.run.trackers else None
        self._feeds: Feeds | None = None
        rows = read_jsonl(folder.metrics).rows if folder.metrics.exists() else []
        self._last_step: int | None = int(rows[-1]["step"]) if rows else None

    def log(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Append the metrics of iteration `step`: one flat object, and scalars of the same names for the trackers.

        Returns sentences on trackers that do not take what they are given, each once. Raises ValueError where `step`
        does not rise (the caller logs once an iteration, and truncates on resume), StorageError where the disk refuses.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"step {step} was logged already (last: {self._last_step}): truncate_after() comes before a resume"
            )
        values = {name: float(value) for name, value in metrics.items() if name != "step"}
        bad = {name for name, value in values.items() if not math.isfinite(value)}
        row: dict[str, Any] = {"step": step, **values}
        if bad:
            row["nonfinite"] = [f"{name}={values[name]}" for name in values if name in bad]
        self._metrics.append(row)
        self._last_step = step
        finite = {printable(name): value for name, value in values.items() if name not in bad}
        if self._board:
            self._board.scalars(step, finite)
        self._fed().put("scalars", step, finite)
        return self._fed().complaints()

    def histograms(self, step: int, name: str, values_B: Tensor, domains: Sequence[str]) -> None:
        """The distribution of `values_B` [B], whole and by domain; domains: of each value."""
        self.histogram(step, name, values_B)
        for domain in sorted(set(domains)):
            rows = [row for row, own in enumerate(domains) if own == domain]
            self.histogram(step, f"{name}/domain/{domain}", values_B[rows])

    def histogram(self, step: int, name: str, values: Tensor | np.ndarray | Sequence[float]) -> None:
        """Keep the distribution of `values` (any shape), for the trackers and for the report.

        The report's copy, a line of distributions.jsonl, holds count, mean, std and up to KEPT_VALUES sorted values.
        Non-finite values are counted in `dropped`. Nothing is written where none is left (a domain absent from a
        batch).
        """
        flat = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
        flat = flat.astype(np.float64).ravel()
        finite = np.sort(flat[np.isfinite(flat)])
        if not len(finite):
            return
        kept = finite
        if len(finite) > KEPT_VALUES:
            kept = np.quantile(finite, np.linspace(0.0, 1.0, KEPT_VALUES))
        self._distributions.append(
            {
                "step": step,
                "name": name,
                "count": len(finite),
                "dropped": len(flat) - len(finite),
                "mean": float(finite.mean()),
                "std": float(finite.std()),
                "values": [float(f"{value:.5g}") for value in kept],
            }
        )
        shown = f"distribution/{printable(name)}"
        if self._board:
            self._board.histogram(step, shown, finite)
        self._fed().put("histogram", step, shown, kept.tolist())

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sampled responses: prompt, response, reward, domain, group_probs, kl, length (more is allowed)."""
        self._samples.append(*({"step": step, **row} for row in rows))

    def warn(self, step: int, text: str) -> None:
        """Keep a warning in words for the report."""
        self._warnings.append({"step": step, "text": text})
        if self._board:
            self._board.text(step, "warnings", printable(text))
        self._fed().put("text", step, "warnings", printable(text))

    def truncate_after(self, step: int) -> int:
        """Forget everything logged after iteration `step`, and the line a killed job left half written.

        Trackers are told, too. Returns how many lines went away. Raises DataError, with
        file and line, where a log file is damaged.
        """
        if self._feeds is not None:
            raise ValueError("truncate_after() comes before the first log()")
        logged = self._last_step or 0
        files = (self._metrics, self._samples, self._distributions, self._warnings)
        dropped = sum(file.keep(lambda row: row["step"] <= step) for file in files)
        rows = read_jsonl(self._folder.metrics).rows if self._folder.metrics.exists() else []
        self._last_step = int(rows[-1]["step"]) if rows else None
        if self._board:
            self._board.purge(step + 1)
        self._feeds = Feeds(self._folder, self._config, max(step, 0), logged)
        return dropped

    def flush(self) -> None:
        """Wait until everything logged is on the disk; call it before a checkpoint is made visible."""
        for file in (self._metrics, self._samples, self._distributions, self._warnings):
            file.sync()
        if self._board:
            self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file, and tell the other trackers how the run ended: run_status.json has it already. The
        report for them takes seconds, and one that is away has a minute."""
        if self._board:
            self._board.close()
        with waiting("Telling the trackers how the run ended"):
            said = self._feeds.close() if self._feeds else []
        for text in said:
            say_warning(text)

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fed(self) -> Feeds:
        # Made at the first use: truncate_after() has to come before it.
        if self._feeds is None:
            self._feeds = Feeds(self._folder, self._config, self._last_step or 0, self._last_step or 0)
        return self._feeds
