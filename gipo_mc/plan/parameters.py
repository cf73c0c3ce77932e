"""The parameters of one stage of a model on one rank, in the order in which Megatron's modules hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from gipo_mc.models.shape import ModelShape
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.shapes import FAMILIES


@dataclass(frozen=True)
class Role:
    """One model of a run.

    name: "policy", "reference", "critic", "classifier", "reward" or "model". head: as in `gipo_mc.models.stage`.
    trained: has gradients and an optimizer.
    """

    name: str
    shape: ModelShape
    head: str
    trained: bool
    groups: int = 0
    group_head: str = "mlp"


@dataclass(frozen=True)
class Parameter:
    """shared: the embedding that two stages hold, where weights are tied and there is a pipeline."""

    name: str
    numel: int
    shared: bool = False


@lru_cache(maxsize=256)
def stage_parameters(role: Role, grid: Grid, stage: int) -> tuple[Parameter, ...]:
    """Those of pipeline stage `stage` on any rank of its tensor group (all hold as many)."""
    if grid.virtual == 1:
        return chunk_parameters(role, grid, stage, 0)
    return tuple(
        Parameter(f"chunks.{chunk}.{one.name}", one.numel, one.shared)
        for chunk in range(grid.virtual)
        for one in chunk_parameters(role, grid, stage, chunk)
    )


def chunk_parameters(role: Role, grid: Grid, stage: int, chunk: int) -> tuple[Parameter, ...]:
    """Those of one of the chunks of layers of a stage."""
    shape, tensor = role.shape, grid.tensor
    first, last = stage == chunk == 0, (stage, chunk) == (grid.pipeline - 1, grid.virtual - 1)
    vocabulary = embedding(shape, tensor)
    tied = shape.tied and role.head == "lm"
    found = []
    if first:
        found.append(Parameter("embedding.word_embeddings.weight", vocabulary, tied and grid.pipeline > 1))
    for layer in range(shape.layers // (grid.pipeline * grid.virtual)):
        found += [Parameter(f"decoder.layers.{layer}.{name}", size) for name, size in _layer(shape, tensor)]
    if last:
        found.append(Parameter("decoder.final_layernorm.weight", shape.hidden_size))
        if role.head == "lm" and not (tied and first):
            found.append(Parameter("output_layer.weight", vocabulary, tied))
        found += _head(role)
    return tuple(found)


def count(parameters: Sequence[Parameter]) -> int:
    """Numbers in all of them."""
    return sum(parameter.numel for parameter in parameters)


def embedding(shape: ModelShape, tensor: int) -> int:
    """Numbers of the embedding, or of the output layer, on one tensor rank."""
    return shape.padded_vocab(tensor) // tensor * shape.hidden_size


def whole_model(role: Role, tensor: int) -> int:
    """Numbers of the whole model, padded vocabulary included, shared embeddings once: what a checkpoint holds."""
    shape = role.shape
    alone = count(stage_parameters(role, Grid(1, 1, 1, False, False), 0))
    extra = shape.padded_vocab(tensor) - shape.padded_vocab(1)
    matrices = 2 if role.head == "lm" and not shape.tied else 1
    return alone + matrices * extra * shape.hidden_size


def _layer(shape: ModelShape, tensor: int) -> list[tuple[str, int]]:
    bias, head_norms = FAMILIES[shape.family]
    hidden, heads = shape.hidden_size, shape.heads * shape.head_dim
    projected = heads + 2 * shape.kv_heads * shape.head_dim
    return [
        ("input_layernorm.weight", hidden),
        ("self_attention.linear_proj.weight", hidden * heads // tensor),
        ("self_attention.linear_qkv.weight", projected * hidden // tensor),
        *([("self_attention.linear_qkv.bias", projected // tensor)] if bias else []),
        *([(f"self_attention.{which}_layernorm.weight", shape.head_dim) for which in "qk"] if head_norms else []),
        ("pre_mlp_layernorm.weight", hidden),
        ("mlp.linear_fc1.weight", 2 * shape.intermediate_size * hidden // tensor),
        ("mlp.linear_fc2.weight", shape.intermediate_size * hidden // tensor),
    ]


def _head(role: Role) -> list[Parameter]:
    """Heads but the vocabulary's are whole on every tensor rank."""
    hidden, found = role.shape.hidden_size, []
    if role.head == "reward":
        found.append(Parameter("reward_head.weight", hidden))
    if role.head in ("value", "critic"):
        found.append(Parameter("value_head.weight", hidden))
    if role.head == "critic":
        if role.group_head == "mlp":
            found += [
                Parameter("group_head.hidden.weight", hidden * hidden),
                Parameter("group_head.hidden.bias", hidden),
            ]
        found += [
            Parameter("group_head.output.weight", hidden * role.groups),
            Parameter("group_head.output.bias", role.groups),
        ]
    return found
