"""The engine's schedule of one pass, stepped on every stage with a stand-in for its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.enums import ModelType
from torch import Tensor

from gipo_mc.config import OptimizerConfig
from gipo_mc.models.megatron_config import transformer_config
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.megatron.pretend import META, Exchange, Pretence
from gipo_mc.plan.run import Pass


@dataclass(frozen=True)
class Tokens:
    """A micro-batch of which only the size matters."""

    tokens_BL: Tensor

    @classmethod
    def of(cls, rows: int, length: int) -> Tokens:
        return cls(torch.zeros(rows, length, dtype=torch.int64, device=META))


@dataclass(frozen=True)
class Steps:
    """What one stage does in a pass.

    order: True for each forward, False for each backward, in their order. exchanges: what it posts.
    """

    order: tuple[bool, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def warm_up(self) -> int:
        """Forward passes before the one whose backward pass follows at once; as many backward passes end the pass."""
        held = most = 0
        for forward in self.order:
            held += 1 if forward else -1
            most = max(most, held)
        return most - 1 if False in self.order else 0

    @property
    def steady(self) -> int:
        return sum(self.order) - self.warm_up


class _Noted(torch.autograd.Function):
    """Notes when the backward pass comes by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, order: list[bool]) -> Tensor:
        ctx.order = order
        order.append(True)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        ctx.order.append(False)
        return gradient.clone(), gradient.sum(), None


class _Layers(torch.nn.Module):
    """A chunk of layers, of which only the shapes of what comes in and goes out are there. order: noted by all."""

    #: What Megatron's schedules ask of a model.
    model_type, share_embeddings_and_output_weights = ModelType.encoder_or_decoder, False

    def __init__(self, config: Any, shape: tuple[int, ...], first: bool, last: bool, order: list[bool]) -> None:
        super().__init__()
        self.config, self._shape, self._order = config, shape, order
        self.pre_process, self.post_process = first, last
        self.weight = torch.nn.Parameter(torch.ones((), dtype=config.params_dtype))
        self._input: Tensor | None = None

    def set_input_tensor(self, tensors: Any) -> None:
        """As Megatron's schedules hand over what came from the previous stage."""
        self._input = tensors[0] if isinstance(tensors, list) else tensors

    def passed_on(self, _: Tensor) -> tuple[int, ...]:
        """Shape of what a chunk hands to the next one."""
        return self._shape

    def forward(self, _: Tensor) -> Tensor:
        states = self._input
        if self.pre_process or states is None:
            states = torch.zeros(self._shape, dtype=self.config.params_dtype, requires_grad=self.training)
        return _Noted.apply(states, self.weight, self._order)  # type: ignore[no-any-return]


class _Chunks(torch.nn.Module):
    """Those of a stage that has several."""

    def __init__(self, chunks: list[_Layers]) -> None:
        super().__init__()
        self.chunks, self.config = torch.nn.ModuleList(chunks), chunks[0].config


def steps_of(pretence: Pretence, one: Pass, dtype: torch.dtype, chunks: int) -> Steps:
    """What this stage does in a pass, with micro-batches that are all as large as the first: the engine and Megatron's
    schedule run, and no layer does. chunks: of layers on a rank; the order is that of the passes of all of them."""
    layout, model, order = pretence.layout, one.role.shape, list[bool]()
    rows, length, _ = one.parts[0]
    shape = (length // layout.length_multiple, rows, model.hidden_size)
    config = transformer_config(model, layout, dtype)
    layers = [
        _Layers(
            config, shape, layout.is_first_stage and not number, layout.is_last_stage and number == chunks - 1, order
        )
        for number in range(chunks)
    ]
    engine = Engine(layers[0] if chunks == 1 else _Chunks(layers), layout, OptimizerConfig() if one.backward else None)
    pretence.exchanges.clear()
    pretence.incoming, pretence.dtype = shape, dtype
    # An interleaved pipeline takes a multiple of its ranks.
    more = -len(one.parts) % layout.pipeline if chunks > 1 else 0
    batches = [Tokens.of(rows, length) for _ in range(len(one.parts) + more)]
    if one.backward:
        engine.forward_backward(batches, lambda model, hidden, _: {"loss": hidden.float().sum()})
    else:
        engine.forward(batches, lambda model, hidden, _: {"states": hidden})
    return Steps(tuple(order), tuple(pretence.exchanges))
