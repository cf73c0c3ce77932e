"""The units of work that have more than one form. Standard library only: every side reads this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Sampling at temperature 1 from the first `prompts` prompts, `samples` responses each."""

    prompts: int
    samples: int
    top_p: float


#: 64 responses each.
GENERATION = {
    "sampled": Unit(64, 1, 1.0),
    "top_p": Unit(64, 1, 0.9),
    "four_samples": Unit(16, 4, 1.0),
}
