"""How a model is computed: choices of memory, time and rounding. What is computed does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from gipo_mc.config import Config
from gipo_mc.errors import ConfigError
from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron import transformer_engine

#: FP8 kernels take sizes of matrices that are multiples of this, numbers of tokens among them.
FP8_MULTIPLE = 16
_FP8_CAPABILITY = (8, 9)


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


def check_machine(execution: Execution, shape: ModelShape, layout: Layout, dtype: torch.dtype) -> None:
    """Raises ConfigError where this machine, model or layout has no FP8."""
    if not execution.fp8:
        return
    way_out = "set precision.fp8=off"
    if layout.device.type != "cuda" or dtype is not torch.bfloat16:
        raise ConfigError(
            f"precision.fp8=hybrid needs a GPU and bfloat16, and this model is {str(dtype).removeprefix('torch.')} on "
            f"{layout.device.type}: {way_out}."
        )
    capability = torch.cuda.get_device_capability(layout.device)
    if capability < _FP8_CAPABILITY:
        raise ConfigError(
            f"precision.fp8=hybrid needs a GPU of compute capability {_FP8_CAPABILITY[0]}.{_FP8_CAPABILITY[1]} or more "
            f"(Ada, Hopper, Blackwell), and {torch.cuda.get_device_name(layout.device)} has {capability[0]}."
            f"{capability[1]}: {way_out}."
        )
    if problem := transformer_engine.problem():
        raise ConfigError(
            f"precision.fp8=hybrid needs TransformerEngine: {problem}. Install one that fits this torch and CUDA (pip "
            f"install -e '.[te]'), or {way_out}."
        )
    sizes = {
        "hidden_size": shape.hidden_size,
        "intermediate_size / tensor": shape.intermediate_size // layout.tensor,
        "heads * head_dim / tensor": shape.heads * shape.head_dim // layout.tensor,
    }
    odd = {name: size for name, size in sizes.items() if size % FP8_MULTIPLE}
    if odd:
        named = ", ".join(f"{name}={size}" for name, size in odd.items())
        raise ConfigError(
            f"precision.fp8=hybrid multiplies matrices whose sizes are multiples of {FP8_MULTIPLE}, and this model on "
            f"parallel.tensor={layout.tensor} has {named}: lower parallel.tensor, or {way_out}."
        )


#: Everything kept, nothing widened or narrowed.
PLAIN = Execution()
