"""The plan's counts are those of the models that are built: parameters, buffers, optimizer state, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gipo_mc.config import OptimizerConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.shape import ModelShape
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.saving.plan import plan
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.parameters import Role, stage_parameters
from gipo_mc.plan.state import checkpoint_bytes, model_state
from tests.ranks import parallel_config, run_ranks

#: A vocabulary that needs padding (to 128), sizes that are no multiples of 64 beside each other, grouped queries.
SIZES: dict[str, Any] = {
    "vocab_size": 77, "hidden_size": 24, "intermediate_size": 20, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 6,
}  # fmt: skip
ROLES = [
    Role("policy", ModelShape(**SIZES), "lm", True),
    Role("policy", ModelShape(**SIZES, tied=True), "lm", True),
    Role("policy", ModelShape(**SIZES, family="qwen2"), "lm", True),
    Role("critic", ModelShape(**SIZES, family="qwen3"), "critic", True, groups=3),
    Role("critic", ModelShape(**SIZES, tied=True), "critic", True, groups=2, group_head="linear"),
    Role("critic", ModelShape(**SIZES), "value", True),
    Role("reward", ModelShape(**SIZES), "reward", False),
]
Found = tuple[list[tuple[str, int]], dict[str, int], int]


def _built(rank: int, layout: dict[str, Any], sharded: bool, dtype: torch.dtype) -> list[Found]:
    """Of each role: this rank's parameters, bytes of its state, and of its checkpoint over all ranks."""
    own = runtime.initialize(parallel_config(**layout)[0], "cpu")
    found: list[Found] = []
    for role in ROLES:
        model = build_model(
            role.shape, own, head=role.head, groups=role.groups, group_head=role.group_head,  # type: ignore[arg-type]
            dtype=dtype, trainable=role.trained,
        )  # fmt: skip
        names = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
        engine = Engine(model, own, OptimizerConfig() if role.trained else None, distributed_optimizer=sharded)
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
        bytes_of = {"weights": sum(storages.values()), "gradients": 0, "optimizer": 0}
        saved = 0
        if role.trained:
            wrapped: list[Any] = list(engine._wrapped)
            buffers = [buffer for chunk in wrapped for buffer in chunk.buffers]
            bytes_of["gradients"] = sum(b.grad_data.nbytes for b in buffers)  # type: ignore[union-attr]
            bytes_of["optimizer"] = _optimizer_bytes(engine)
            saved = plan(engine.sharded_state("x")).needed
        found.append((names, bytes_of, saved))
    return found


def _optimizer_bytes(engine: Engine) -> int:
    """Moments, step counts, and weights of the optimizer's own."""
    total, seen = 0, {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer]):
        for group in part.optimizer.param_groups:
            total += sum(p.nbytes for p in group["params"] if p.untyped_storage().data_ptr() not in seen)
        for state in part.optimizer.state.values():
            total += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    return total


@pytest.mark.parametrize(
    ("layout", "sharded", "dtype"),
    [
        ({}, False, torch.float32),
        ({"tensor": 2}, False, torch.bfloat16),
        ({"tensor": 2, "pipeline": 2}, False, torch.float32),
        ({"pipeline": 2}, True, torch.bfloat16),
        ({"pipeline": 2, "virtual_pipeline": 2}, True, torch.bfloat16),
        ({"data": 2}, True, torch.float32),
        ({"data": 3, "tensor": 2, "sequence": True}, True, torch.bfloat16),
    ],
    ids=str,
)
def test_built_models_hold_what_is_planned(layout: dict[str, Any], sharded: bool, dtype: torch.dtype):
    config, ranks = parallel_config(**dict(layout))
    data = ranks // (config.tensor * config.pipeline)
    grid = Grid(config.tensor, config.pipeline, data, config.sequence, sharded, virtual=config.virtual_pipeline)
    built = run_ranks(_built, ranks, layout, sharded, dtype)
    for rank, of_rank in enumerate(built):
        stage, data_rank = rank // (config.tensor * data), rank // config.tensor % data
        for role, (names, bytes_of, saved) in zip(ROLES, of_rank, strict=True):
            planned = stage_parameters(role, grid, stage)
            assert [(one.name, one.numel) for one in planned] == names
            state = model_state(role, grid, stage, data_rank, dtype.itemsize)
            assert {name: getattr(state, name) for name in bytes_of} == bytes_of, (role, rank)
            if role.trained:
                assert checkpoint_bytes(role, grid, dtype.itemsize) == saved, role
