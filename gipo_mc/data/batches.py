"""Which rows a step takes: a pure function of (seed, purpose, step), so that a resumed run needs no saved cursor."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gipo_mc.parallel import streams


def batch_indices(seed: int, purpose: str, step: int, size: int, rows: int) -> np.ndarray:
    """int64 [size], the rows of `step` (0, 1, ...) out of `rows`.

    The steps walk through one endless sequence of shuffled epochs: each row comes once an epoch, a batch may span
    the end of one epoch (or several, where size > rows), and nothing is dropped.
    """
    if rows < 1 or size < 1 or step < 0:
        raise ValueError(f"batch_indices needs rows >= 1, size >= 1 and step >= 0, not {rows}, {size} and {step}")
    position = np.arange(step * size, (step + 1) * size, dtype=np.int64)
    epoch, within = np.divmod(position, rows)
    chosen = np.empty(size, dtype=np.int64)
    for number in np.unique(epoch):
        here = epoch == number
        chosen[here] = _epoch_order(seed, purpose, int(number), rows)[within[here]]
    return chosen


@lru_cache(maxsize=8)
def _epoch_order(seed: int, purpose: str, epoch: int, rows: int) -> np.ndarray:
    order = streams.permutation(seed, purpose, epoch, rows)
    order.setflags(write=False)  # shared through the cache
    return order
