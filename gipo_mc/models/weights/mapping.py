"""Which Hugging Face tensors make up each Megatron parameter of a stage, in both directions, for any layout.

Megatron fuses and reorders: linear_qkv holds, for each key-value head, its query heads, then the key, then the value;
linear_fc1 holds the gate, then the up projection, of the rank's columns. A tensor rank owns whole key-value heads and
contiguous slices of everything else, so it can read just its slices from a file. The same mapping serves three uses:
loading, exporting, and initialising (from random tensors under Hugging Face names, which makes the initial model the
same in every layout).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from gipo_mc.models.families.llama import ModelShape
from gipo_mc.parallel.streams import generator

if TYPE_CHECKING:
    from gipo_mc.models.stage import StageModel

EMBEDDING, OUTPUT, FINAL_NORM, SCORE = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "score.weight",
)


class WeightSource(Protocol):
    """Named tensors of which any slice can be read."""

    def read(self, name: str, rows: slice, columns: slice = slice(None)) -> Tensor:
        """The slice of the named tensor (vectors have rows only), on the CPU, in the source's dtype."""
        ...


@dataclass(frozen=True)
class Rank:
    """A place in the tensor-parallel group."""

    index: int
    size: int

    def share(self, length: int) -> slice:
        """This rank's contiguous part of `length` (a multiple of `size`)."""
        part = length // self.size
        return slice(self.index * part, (self.index + 1) * part)


class Mapping(ABC):
    """How one Megatron parameter is made of Hugging Face tensors."""

    @abstractmethod
    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        """The rank's shard."""

    @abstractmethod
    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        """The Hugging Face tensors, from the shards of all tensor ranks in order."""


@dataclass(frozen=True)
class Whole(Mapping):
    """The same on every tensor rank: norms and heads."""

    name: str

    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        return source.read(self.name, slice(None))

    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        return {self.name: shards[0]}


@dataclass(frozen=True)
class VocabRows(Mapping):
    """Embedding and output projection: rows shared out after padding the vocabulary with zero rows."""

    name: str
    vocab: int
    padded: int

    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        share = rank.share(self.padded)
        real = source.read(self.name, slice(min(share.start, self.vocab), min(share.stop, self.vocab)))
        padding = share.stop - share.start - real.shape[0]
        return torch.cat([real, real.new_zeros(padding, real.shape[1])]) if padding else real

    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        return {self.name: torch.cat(shards)[: self.vocab]}


@dataclass(frozen=True)
class Columns(Mapping):
    """Row-parallel projections (o_proj, down_proj): input columns shared out."""

    name: str
    width: int

    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        return source.read(self.name, slice(None), rank.share(self.width))

    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        return {self.name: torch.cat(shards, dim=1)}


@dataclass(frozen=True)
class GateUp(Mapping):
    """linear_fc1: the rank's rows of the gate, then its rows of the up projection."""

    gate: str
    up: str
    width: int

    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        share = rank.share(self.width)
        return torch.cat([source.read(self.gate, share), source.read(self.up, share)])

    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        halves = [shard.chunk(2) for shard in shards]
        return {self.gate: torch.cat([gate for gate, _ in halves]), self.up: torch.cat([up for _, up in halves])}


@dataclass(frozen=True)
class QueryKeyValue(Mapping):
    """linear_qkv: for each key-value head of the rank, its query heads, the key head, the value head."""

    query: str
    key: str
    value: str
    heads: int
    kv_heads: int
    head_dim: int

    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        own = self.kv_heads // rank.size
        parts = [
            source.read(name, rank.share(heads * self.head_dim))
            for name, heads in ((self.query, self.heads), (self.key, self.kv_heads), (self.value, self.kv_heads))
        ]
        return torch.cat([part.reshape(own, -1, part.shape[-1]) for part in parts], dim=1).flatten(0, 1)

    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        per_kv_head = torch.cat(shards).reshape(self.kv_heads, -1, shards[0].shape[-1])
        queries = self.heads // self.kv_heads * self.head_dim
        parts = per_kv_head.split([queries, self.head_dim, self.head_dim], dim=1)
        return {name: part.flatten(0, 1) for name, part in zip((self.query, self.key, self.value), parts, strict=True)}


def stage_mappings(model: StageModel) -> dict[str, Mapping]:
    """Parameter name of this stage -> its mapping, in the order of the network. The group head, which Hugging Face's
    models do not have, is left out; the output projection of a tied model on a later stage reads the embedding."""
    shape = model.shape
    mappings: dict[str, Mapping] = {}
    for name, _ in model.named_parameters():
        if name.startswith("group_head."):
            continue
        if name == "embedding.word_embeddings.weight":
            mappings[name] = VocabRows(EMBEDDING, shape.vocab_size, model.padded_vocab)
        elif name == "output_layer.weight":
            tensor = EMBEDDING if model.share_embeddings_and_output_weights else OUTPUT
            mappings[name] = VocabRows(tensor, shape.vocab_size, model.padded_vocab)
        elif name == "decoder.final_layernorm.weight":
            mappings[name] = Whole(FINAL_NORM)
        elif name in ("value_head.weight", "reward_head.weight"):
            mappings[name] = Whole(SCORE)
        else:
            _, _, local, part = name.split(".", 3)
            layer = model.decoder.layers[int(local)].layer_number - 1
            mappings[name] = _layer_mapping(shape, part, f"model.layers.{layer}.")
    return mappings


def _layer_mapping(shape: ModelShape, part: str, prefix: str) -> Mapping:
    match part:
        # TransformerEngine keeps the norm's weight inside the linear layer behind it.
        case "input_layernorm.weight" | "self_attention.linear_qkv.layer_norm_weight":
            return Whole(prefix + "input_layernorm.weight")
        case "pre_mlp_layernorm.weight" | "mlp.linear_fc1.layer_norm_weight":
            return Whole(prefix + "post_attention_layernorm.weight")
        case "self_attention.linear_qkv.weight":
            query, key, value = (f"{prefix}self_attn.{which}_proj.weight" for which in "qkv")
            return QueryKeyValue(query, key, value, shape.heads, shape.kv_heads, shape.head_dim)
        case "self_attention.linear_proj.weight":
            return Columns(prefix + "self_attn.o_proj.weight", shape.heads * shape.head_dim)
        case "mlp.linear_fc1.weight":
            return GateUp(f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight", shape.intermediate_size)
        case "mlp.linear_fc2.weight":
            return Columns(prefix + "mlp.down_proj.weight", shape.intermediate_size)
    raise AssertionError(f"no Hugging Face tensor is known for the parameter {prefix}{part}")


def trunk_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape of every tensor of the trunk (no output projection, no head)."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab_size, hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (queries, hidden),
            prefix + "self_attn.k_proj.weight": (keys, hidden),
            prefix + "self_attn.v_proj.weight": (keys, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, queries),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (wide, hidden),
            prefix + "mlp.up_proj.weight": (wide, hidden),
            prefix + "mlp.down_proj.weight": (hidden, wide),
        }
    return tensors | {FINAL_NORM: (hidden,)}


@torch.no_grad()
def load_parameters(model: StageModel, source: WeightSource, *, skip: frozenset[str] = frozenset()) -> None:
    """Fill the parameters of this stage from a source, one at a time, except those named in `skip`."""
    rank = Rank(model.layout.tensor_rank, model.layout.tensor)
    parameters = dict(model.named_parameters())
    for name, mapping in stage_mappings(model).items():
        if name not in skip:
            parameters[name].copy_(mapping.load(source, rank))


class RandomWeights:
    """A fresh trunk under Hugging Face names: norms are 1, matrices N(0, initializer_range^2), each from the stream
    of its name."""

    def __init__(self, shape: ModelShape, seed: int) -> None:
        self.tensors = trunk_tensors(shape) | {OUTPUT: (shape.vocab_size, shape.hidden_size)}
        self.std, self.seed = shape.initializer_range, seed

    def read(self, name: str, rows: slice, columns: slice = slice(None)) -> Tensor:
        size = self.tensors[name]
        if len(size) == 1:
            return torch.ones(size)[rows]
        return normal(self.seed, name, size, self.std)[rows, columns]


def normal(seed: int, name: str, size: tuple[int, ...], std: float) -> Tensor:
    """float32 N(0, std^2) from the stream of (seed, name)."""
    draws = generator(seed, f"weights/{name}").standard_normal(size, dtype=np.float32)
    return torch.from_numpy(draws).mul_(std)


HEADS = frozenset({"value_head.weight", "reward_head.weight"})


def initialize_trunk(model: StageModel, seed: int) -> None:
    """Random weights for everything but the heads."""
    load_parameters(model, RandomWeights(model.shape, seed), skip=HEADS)


@torch.no_grad()
def initialize_heads(model: StageModel, seed: int) -> None:
    """Fresh heads: values and rewards start at 0, so that a reward model begins at a loss of ln 2 a pair and has no
    random preference to unlearn; the group head small, so that p_phi starts near uniform but not symmetric, which
    would give every group the same gradient for ever."""
    hidden = model.shape.hidden_size
    for name, parameter in model.named_parameters():
        if name in HEADS or (name.startswith("group_head.") and name.endswith(".bias")):
            parameter.zero_()
        elif name.startswith("group_head."):
            parameter.copy_(normal(seed, name, tuple(parameter.shape), hidden**-0.5))
