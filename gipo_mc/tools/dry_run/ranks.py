"""The models of one rank, built on tensors without storage and run once, and compared with what the plan says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from gipo_mc.config import Config, OptimizerConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.execution import Execution
from gipo_mc.models.stage import StageModel
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.megatron.overlap import sharing
from gipo_mc.parallel.megatron.pretend import Pretence
from gipo_mc.parallel.optimizer import parts_of
from gipo_mc.plan.parameters import Role, stage_parameters
from gipo_mc.plan.plan import Plan
from gipo_mc.plan.run import Pass
from gipo_mc.plan.state import model_state
from gipo_mc.tools.dry_run.schedule import Tokens

_REPORT = "Please report this with the configuration."


@dataclass(frozen=True)
class Built:
    """One model on one rank: bytes, and buckets of the buffer that its gradients are reduced in."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    buckets: int


@dataclass(frozen=True)
class Shards:
    """What the stages write of one tensor. expected: parts that make it whole. there: those that the ranks have."""

    numel: int
    expected: int
    there: int


def build(role: Role, config: Config, pretence: Pretence, plan: Plan) -> Engine:
    """The role's engine on this rank, as a start makes it."""
    # FP8 is refused where there is no GPU; it changes the arithmetic of linear layers, and nothing that is looked at.
    execution = replace(Execution.of(config), fp8=False)
    model = build_model(
        role.shape, pretence.layout, head=role.head, groups=role.groups, group_head=role.group_head,  # type: ignore[arg-type]
        dtype=dtype_of(plan), trainable=role.trained, initialize=False, execution=execution,
    )  # fmt: skip
    ways = sharing(config.parallel, torch.device("cuda" if plan.device.cuda else "cpu"))
    return Engine(model, pretence.layout, _optimizer(role, config), **ways)


def dtype_of(plan: Plan) -> torch.dtype:
    return torch.bfloat16 if plan.width == 2 else torch.float32


def _optimizer(role: Role, config: Config) -> OptimizerConfig | None:
    if not role.trained:
        return None
    return config.critic if role.name in ("critic", "classifier") else config.policy


def measured(engine: Engine) -> Built:
    """Sizes of what is there."""
    parameters: list[Any] = list(engine.model.parameters())
    numbers, weights = sum(p.numel() for p in parameters), _stored(parameters)
    if engine.optimizer is None:
        return Built(numbers, weights, 0, 0, 0)
    return Built(
        numbers, weights, _stored([p.main_grad for p in parameters]), _optimizer_bytes(engine), _buckets(engine)
    )


def _stored(tensors: list[Tensor]) -> int:
    """Bytes of the storages that these are parts of."""
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())


def _buckets(engine: Engine) -> int:
    wrapped: Any = engine._wrapped
    chunks = wrapped if isinstance(wrapped, list) else [wrapped]
    return sum(len(buffer.buckets) for chunk in chunks for buffer in chunk.buffers)


def _optimizer_bytes(engine: Engine) -> int:
    """Moments, step counts, and weights of the optimizer's own."""
    total, seen = 0, {id(parameter) for parameter in engine.model.parameters()}
    for inner in (part.optimizer for part in parts_of(engine.optimizer)):
        own_copies = engine.model.config.params_dtype != torch.float32  # type: ignore[union-attr]
        for group in inner.param_groups:
            total += sum(p.nbytes for p in group["params"] if own_copies and id(p) not in seen)
        for state in inner.state.values():
            total += sum(value.nbytes for value in state.values() if isinstance(value, Tensor))
    return total


def differences(role: Role, engine: Engine, built: Built, stage: int, plan: Plan) -> list[str]:
    """Where what is built is not what the plan counts."""
    where, state = f"{role.name} on stage {stage}", model_state(role, plan.grid, stage, 0, plan.width)
    planned = {one.name: one.numel for one in stage_parameters(role, plan.grid, stage)}
    own = {name: parameter.numel() for name, parameter in engine.model.named_parameters()}
    if own != planned:
        odd = sorted({*own.items()} ^ {*planned.items()})[0][0]
        return [
            f"{where} has {sum(own.values()):,} parameters and the plan counts {sum(planned.values()):,}: they differ "
            f"in {odd}. {_REPORT}"
        ]
    counted = {"weights": state.weights, "gradients": state.gradients, "optimizer": state.optimizer}
    return [
        f"{where} holds {getattr(built, name):,} bytes of {name} and the plan counts {value:,}. {_REPORT}"
        for name, value in counted.items()
        if getattr(built, name) != value
    ]


def run_once(engine: Engine, one: Pass, pretence: Pretence, logit_rows: int, chunks: int) -> None:
    """The largest micro-batch of a pass through the stage's own modules, and back where the pass goes back."""
    rows, length, response = max(one.parts, key=lambda part: part[0] * part[1])
    layout = pretence.layout
    pretence.incoming = (length // layout.length_multiple, rows, one.role.shape.hidden_size)
    pretence.dtype = engine.model.config.params_dtype  # type: ignore[assignment,union-attr]
    pretence.exchanges.clear()
    tokens = rows * response

    def last_stage(model: Any, hidden_LBH: Tensor, _: Any) -> dict[str, Tensor]:
        state_NH = hidden_LBH.flatten(0, 1)[:tokens]
        return {"loss": sum(part.float().sum() for part in _outputs(model, state_NH, logit_rows))}  # type: ignore[dict-item]

    # An interleaved pipeline takes as many micro-batches as it has ranks, or a multiple.
    batch = [Tokens.of(rows, length)] * (layout.pipeline if chunks > 1 else 1)
    if one.backward:
        engine.forward_backward(batch, last_stage)
    else:
        engine.forward(batch, last_stage)


def _outputs(model: StageModel, state_NH: Tensor, logit_rows: int) -> Iterator[Tensor]:
    if model.head == "lm":
        yield model.lm_logits(state_NH[: logit_rows or None])
    elif model.head == "reward":
        yield model.reward(state_NH)
    else:
        yield model.value(state_NH)
        if model.head == "critic":
            yield model.group_logits(state_NH)


def add_shards(found: dict[str, Shards], model: StageModel, role: str, tensor: int) -> None:
    """Count what this stage writes of each tensor of a checkpoint, on all ranks of its tensor group."""
    for part in _sharded(model.sharded_state_dict(prefix=f"{role}.model.")):
        expected = 1
        for number in part.axis_fragmentations or ():
            expected *= number
        prepended = part.prepend_axis_num
        shared = 1
        for number in (part.axis_fragmentations or ())[prepended:]:
            shared *= number
        numel = 1
        for size in part.global_shape:
            numel *= size
        before = found.get(part.key, Shards(numel, expected, 0))
        found[part.key] = Shards(numel, expected, before.there + (tensor if shared > 1 else 1))


def _sharded(state: dict[str, Any]) -> Iterator[ShardedTensor]:
    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):
            yield from (one for one in nested_values(value.build()) if isinstance(one, ShardedTensor))
        elif isinstance(value, ShardedTensor):
            yield value


def kv_cache_bytes(cache: Any) -> int:
    """Of the pools of a `KVCache`."""
    return sum(pool.nbytes for layer in cache.pools for pool in layer)
