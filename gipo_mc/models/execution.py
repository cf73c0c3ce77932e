"""How a model is computed: choices of memory, time and rounding. What is computed does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gipo_mc.config import Config
from gipo_mc.parallel.layout import Layout

#: FP8 kernels take numbers of tokens that are multiples of this.
FP8_MULTIPLE = 16


@dataclass(frozen=True)
class Execution:
    """recompute: what the backward pass computes again, `memory.recompute`. fp32_logits, fp8: `precision`."""

    recompute: Literal["none", "selective", "full"] = "none"
    fp32_logits: bool = False
    fp8: bool = False

    @classmethod
    def of(cls, config: Config) -> Execution:
        """As a configuration has it."""
        precision = config.precision
        return cls(config.memory.recompute, precision.fp32_logits, precision.fp8 == "hybrid")

    def length_multiple(self, layout: Layout) -> int:
        """A stage pads its sequences to a multiple of this."""
        return layout.length_multiple * (FP8_MULTIPLE if self.fp8 else 1)

    @property
    def megatron(self) -> dict[str, Any]:
        """Fields of Megatron's configuration.

        Selective recomputation: attention between its projections. Full: each layer from its input, which is all that
        is kept. FP8 scales each tensor by its own maximum, so that no history of maxima has to be
        saved for a run to continue as it was.
        """
        fields: dict[str, Any] = {}
        if self.recompute == "selective":
            fields = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
        elif self.recompute == "full":
            fields = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        if self.fp8:
            fields |= {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
        return fields


#: Everything kept, nothing widened or narrowed.
PLAIN = Execution()
