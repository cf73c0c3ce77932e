"""Counter-based random streams: a draw depends on (seed, purpose, step, item) and on nothing else.

Neither the layout nor the history of a run changes what is drawn, which is what makes rollouts independent of batch
neighbours and a resumed run equal to one that never stopped. Philox4x64 is NumPy's; the key is a hash of the names.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, step: int = 0, item: int = 0) -> np.random.Generator:
    """The stream of one (seed, purpose, step, item)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}/{item}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def uniforms(seed: int, purpose: str, step: int, item: int, count: int) -> np.ndarray:
    """float64 [count] in [0, 1)."""
    return generator(seed, purpose, step, item).random(count)


def permutation(seed: int, purpose: str, step: int, count: int) -> np.ndarray:
    """int64 [count], a random order of range(count)."""
    return generator(seed, purpose, step).permutation(count)
