"""The section `memory`: what a run spends time or host memory on to need less memory of the device."""

from __future__ import annotations

from typing import Literal

from gipo_mc.config.section import Section, changeable


class MemoryConfig(Section):
    recompute: Literal["none", "selective", "full"] = changeable(
        "none",
        description="what the backward pass computes again: nothing, attention between its projections, whole layers",
    )
    offload: list[Literal["frozen", "optimizer", "idle"]] = changeable(
        default_factory=list,
        description="RL: what is on the device only while it works: frozen (reference, reward model), optimizer (its "
        "state), idle (trained models between turns, gradients, KV cache)",
    )
