"""Options that trade time for memory."""

from __future__ import annotations

from typing import Literal

from gipo_mc.config.section import Section, changeable


class MemoryConfig(Section):
    recompute: Literal["none", "selective", "full"] = changeable(
        "none",
        description="what the backward pass computes again: nothing, attention between its projections, whole layers",
    )
