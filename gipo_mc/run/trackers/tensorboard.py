"""TensorBoard: event files in the run folder, written at once. It is no service that could be away, so a disk that
refuses them is an error of the run, as for metrics.jsonl.

A run that continues has one more event file, which tells TensorBoard to disregard the steps that were lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from gipo_mc.run.jsonl import storage_errors

#: Histograms have no bin beyond this, and fail without a value in one.
_EDGE = 0.9e20


class TensorBoard:
    """Writer of the event files in `folder`. Every method raises StorageError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None

    def purge(self, step: int) -> None:
        """Disregard what was written of this step and later ones. Comes before anything is written."""
        if self._writer is not None:
            raise ValueError("purge() comes before the first entry")
        self._purge_step = step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite metrics of a step."""
        # One event for all of them: a hundred metrics an iteration cost a hundred times less as one message.
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with storage_errors(self._folder):
            if scalars:
                self._opened()._get_file_writer().add_summary(Summary(value=scalars), step)
            self._opened().flush()

    def histogram(self, step: int, name: str, values: Sequence[float] | np.ndarray) -> None:
        """A distribution of finite values."""
        with storage_errors(self._folder):
            self._opened().add_histogram(name, np.asarray(values).clip(-_EDGE, _EDGE), step)

    def text(self, step: int, name: str, text: str) -> None:
        """Words on a step."""
        with storage_errors(self._folder):
            self._opened().add_text(name, text, step)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        if self._writer is not None:
            with storage_errors(self._folder):
                self._writer.flush()

    def close(self) -> None:
        """Close the file; a further entry opens a new one."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with storage_errors(self._folder):
                writer.close()

    def _opened(self) -> SummaryWriter:
        # Made at the first use: `purge` has to come before it.
        if self._writer is None:
            _pass_newest_event_file(self._folder)
            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        return self._writer


def _pass_newest_event_file(folder: Path) -> None:
    """Wait until a new file's name comes behind those that are there, for a second at most.

    TensorBoard reads event files in the order of their names, which begin with the second they were made in. One that
    a resumed run made in the same second may come first, and its steps would then be replaced by older ones.
    """
    made = [int(name) for path in folder.glob("events.out.tfevents.*") if (name := path.name.split(".")[3]).isdigit()]
    if made and max(made) == int(time.time()):
        time.sleep(max(made) + 1 - time.time())
