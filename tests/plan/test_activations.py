"""What the layers of a model keep for their backward pass, to the byte, in float32 on the CPU: by the kernels."""

from __future__ import annotations

import pytest
import torch

from benchmarks.planning.peaks import Held
from gipo_mc.config import ParallelConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.execution import Execution
from gipo_mc.models.families import read_shape
from gipo_mc.ops.layers import causal_attention
from gipo_mc.parallel import runtime
from gipo_mc.plan.activations import LONGEST, Activations
from gipo_mc.plan.grid import Grid
from tests.models.tiny import config
from tests.ranks import run_ranks

BATCH = 2


def test_the_longest_sequence_of_the_kernel_is_the_kernels():
    assert causal_attention.LONGEST == LONGEST


def _kept(rank: int, family: str, kv_heads: int, length: int, parallel: ParallelConfig) -> dict[str, tuple[int, int]]:
    """Way of recomputation -> bytes that a layer keeps, and those of the plan."""
    place, found = runtime.initialize(parallel, "cpu"), {}
    for way in ("none", "selective", "full"):
        held_by: list[int] = []
        for layers in (1, 3):
            shape = read_shape(
                config(
                    family, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=kv_heads, head_dim=16,
                    hidden_size=64, intermediate_size=160, max_position_embeddings=2048,
                )
            )  # fmt: skip
            model = build_model(
                shape, place, head="value", dtype=torch.float32, trainable=True, execution=Execution(way)
            )
            held = Held()
            held.leave_out([*model.parameters(), *model.buffers()])
            with held:
                hidden_LBH = model(torch.ones(BATCH, length, dtype=torch.int64))
                held_by.append(held.bytes)
            del hidden_LBH
        grid = Grid(parallel.tensor, 1, 1, parallel.sequence, False, 8)
        planned = Activations(shape, grid, 4, False, length, way).kept_by_layer(BATCH * length)
        found[way] = (held_by[1] - held_by[0]) // 2, planned
    return found


@pytest.mark.parametrize(
    ("family", "kv_heads", "length", "ranks", "sequence"),
    [
        ("llama", 4, 32, 1, False),
        ("llama", 8, 32, 2, True),
        ("llama", 4, LONGEST + 8, 1, False),  # torch's attention
        ("qwen3", 4, 32, 1, False),  # norms of heads
        ("qwen3", 8, 32, 2, False),
        ("llama", 1, 32, 2, False),  # fewer key-value heads than ranks
        ("qwen3", 1, 32, 2, False),
    ],
)
def test_a_layer_keeps_what_the_plan_says(family: str, kv_heads: int, length: int, ranks: int, sequence: bool):
    parallel = ParallelConfig(tensor=ranks, sequence=sequence, timeout_minutes=1)
    found = run_ranks(_kept, ranks, family, kv_heads, length, parallel)[0]
    assert {way: real for way, (real, _) in found.items()} == {way: planned for way, (_, planned) in found.items()}
