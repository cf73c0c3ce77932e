"""What a run logs: metrics.jsonl, TensorBoard, samples and distributions, without duplicates after a resume.

A metric is a finite number. A NaN or infinity is still logged, because the line that shows it is the one that is
needed: its value is null (JSON has no NaN, and readers of tables take null for missing) and the line carries
`"nonfinite": ["policy/loss=nan"]`. TensorBoard does not get it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from gipo_mc.run.folder import RunFolder
from gipo_mc.run.jsonl import JsonLines, printable, read_jsonl, storage_errors

#: Values kept of a distribution: all of a small batch, evenly spaced quantiles of a larger one.
KEPT_VALUES = 201
#: TensorBoard's histograms have no bin beyond this, and fail without a value in one.
_EDGE = 0.9e20


class MetricsLogger:
    """Writer of a run's log files; one per run, on rank 0.

    Steps rise strictly. Continuing an existing run begins with `truncate_after(step of the checkpoint)`.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._metrics = JsonLines(folder.metrics)
        self._samples = JsonLines(folder.samples)
        self._distributions = JsonLines(folder.distributions)
        self._warnings = JsonLines(folder.warnings)
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        rows = read_jsonl(folder.metrics).rows if folder.metrics.exists() else []
        self._last_step: int | None = int(rows[-1]["step"]) if rows else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of iteration `step`: one flat object, and TensorBoard scalars of the same names.

        Raises ValueError where `step` does not rise (the caller logs once an iteration, and truncates on resume),
        StorageError where the disk refuses.
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
        with storage_errors(self._folder.tensorboard):
            for name, value in values.items():
                if name not in bad:
                    self._tensorboard().add_scalar(printable(name), value, step)
            self._tensorboard().flush()

    def histograms(self, step: int, name: str, values_B: Tensor, domains: Sequence[str]) -> None:
        """The distribution of `values_B` [B], whole and by domain; domains: of each value."""
        self.histogram(step, name, values_B)
        for domain in sorted(set(domains)):
            rows = [row for row, own in enumerate(domains) if own == domain]
            self.histogram(step, f"{name}/domain/{domain}", values_B[rows])

    def histogram(self, step: int, name: str, values: Tensor | np.ndarray | Sequence[float]) -> None:
        """Keep the distribution of `values` (any shape), for TensorBoard and for the report.

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
        with storage_errors(self._folder.tensorboard):
            edges = finite.clip(-_EDGE, _EDGE)
            self._tensorboard().add_histogram(f"distribution/{printable(name)}", edges, step)

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sampled responses: prompt, response, reward, domain, group_probs, kl, length (more is allowed)."""
        self._samples.append(*({"step": step, **row} for row in rows))

    def warn(self, step: int, text: str) -> None:
        """Keep a warning in words for the report."""
        self._warnings.append({"step": step, "text": text})
        with storage_errors(self._folder.tensorboard):
            self._tensorboard().add_text("warnings", printable(text), step)

    def truncate_after(self, step: int) -> int:
        """Forget everything logged after iteration `step`, and the line a killed job left half written.

        TensorBoard is told to disregard those steps too. Returns how many lines went away. Raises DataError, with
        file and line, where a log file is damaged.
        """
        if self._writer is not None:
            raise ValueError("truncate_after() comes before the first log()")
        files = (self._metrics, self._samples, self._distributions, self._warnings)
        dropped = sum(file.keep(lambda row: row["step"] <= step) for file in files)
        rows = read_jsonl(self._folder.metrics).rows if self._folder.metrics.exists() else []
        self._last_step = int(rows[-1]["step"]) if rows else None
        self._purge_step = step + 1
        return dropped

    def flush(self) -> None:
        """Wait until everything logged is on the disk; call it before a checkpoint is made visible."""
        for file in (self._metrics, self._samples, self._distributions, self._warnings):
            file.sync()
        if self._writer is not None:
            with storage_errors(self._folder.tensorboard):
                self._writer.flush()

    def close(self) -> None:
        """Close TensorBoard's writer; further calls would open a new event file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with storage_errors(self._folder.tensorboard):
                writer.close()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensorboard(self) -> SummaryWriter:
        # Made at the first use: truncate_after() has to come before it.
        if self._writer is None:
            _pass_newest_event_file(self._folder.tensorboard)
            self._writer = SummaryWriter(str(self._folder.tensorboard), purge_step=self._purge_step)
        return self._writer


def _pass_newest_event_file(folder: Path) -> None:
    """Wait until a new file's name comes behind those that are there, for a second at most.

    TensorBoard reads event files in the order of their names, which begin with the second they were made in. One that
    a resumed run made in the same second may come first, and its steps would then be replaced by older ones.
    """
    made = [int(name) for path in folder.glob("events.out.tfevents.*") if (name := path.name.split(".")[3]).isdigit()]
    if made and max(made) == int(time.time()):
        time.sleep(max(made) + 1 - time.time())
