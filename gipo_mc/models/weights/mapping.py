"""How a Megatron parameter is made of Hugging Face tensors, in both directions, for any layout.

Megatron fuses and reorders: linear_qkv holds, for each key-value head, its query heads, then the key, then the value;
linear_fc1 holds the gate, then the up projection, of the rank's columns. A tensor rank owns contiguous rows of
linear_qkv, which are whole key-value heads where there are as many as ranks, and contiguous slices of everything else,
so it can read just its slices from a file. The same mapping serves three uses:
loading, exporting, and initialising (from random tensors under Hugging Face names, which makes the initial model the
same in every layout). Which parameter has which mapping is said in `gipo_mc.models.weights.table`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gipo_mc.models.shape import ModelShape

#: Hugging Face name -> its shape.
TensorShapes = dict[str, tuple[int, ...]]


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
    def tensors(self) -> TensorShapes:
        """The whole Hugging Face tensors that the parameter is made of."""

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
    size: tuple[int, ...]

    def tensors(self) -> TensorShapes:
        return {self.name: self.size}

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
    hidden: int

    def tensors(self) -> TensorShapes:
        return {self.name: (self.vocab, self.hidden)}

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
    rows: int
    width: int

    def tensors(self) -> TensorShapes:
        return {self.name: (self.rows, self.width)}

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
    hidden: int

    def tensors(self) -> TensorShapes:
        return dict.fromkeys((self.gate, self.up), (self.width, self.hidden))

    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        share = rank.share(self.width)
        return torch.cat([source.read(self.gate, share), source.read(self.up, share)])

    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        halves = [shard.chunk(2) for shard in shards]
        return {self.gate: torch.cat([gate for gate, _ in halves]), self.up: torch.cat([up for _, up in halves])}


@dataclass(frozen=True)
class QueryKeyValue(Mapping):
    """linear_qkv: for each key-value head, its query heads, the key head, the value head; a rank has an equal part of
    all these rows, which may begin and end inside a head where there are more ranks than key-value heads.

    columns: (hidden size,) for the matrices, () for the biases.
    """

    query: str
    key: str
    value: str
    heads: int
    kv_heads: int
    head_dim: int
    columns: tuple[int, ...]

    @classmethod
    def of(cls, shape: ModelShape, prefix: str, part: str) -> QueryKeyValue:
        """`part` ("weight" or "bias") of the projections named `prefix` + q_proj, k_proj and v_proj."""
        query, key, value = (f"{prefix}{which}_proj.{part}" for which in "qkv")
        columns = (shape.hidden_size,) if part == "weight" else ()
        return cls(query, key, value, shape.heads, shape.kv_heads, shape.head_dim, columns)

    def tensors(self) -> TensorShapes:
        parts = ((self.query, self.heads), (self.key, self.kv_heads), (self.value, self.kv_heads))
        return {name: (heads * self.head_dim, *self.columns) for name, heads in parts}

    def load(self, source: WeightSource, rank: Rank) -> Tensor:
        if self.kv_heads % rank.size:
            return self._load_rows(source, rank.share((self.heads + 2 * self.kv_heads) * self.head_dim))
        own = self.kv_heads // rank.size
        parts = [source.read(name, rank.share(size[0])) for name, size in self.tensors().items()]
        return torch.cat([part.reshape(own, -1, *self.columns) for part in parts], dim=1).flatten(0, 1)

    def _load_rows(self, source: WeightSource, wanted: slice) -> Tensor:
        """Rows `wanted` of the whole linear_qkv, piece by piece."""
        queries = self.heads // self.kv_heads * self.head_dim
        blocks = [
            (name, head * rows, rows)
            for head in range(self.kv_heads)
            for name, rows in ((self.query, queries), (self.key, self.head_dim), (self.value, self.head_dim))
        ]
        pieces, place = [], 0
        for name, begin, rows in blocks:
            first, stop = max(wanted.start, place), min(wanted.stop, place + rows)
            if first < stop:
                pieces.append(source.read(name, slice(begin + first - place, begin + stop - place)))
            place += rows
        return torch.cat(pieces)

    def merge(self, shards: list[Tensor]) -> dict[str, Tensor]:
        per_kv_head = torch.cat(shards).reshape(self.kv_heads, -1, *self.columns)
        queries = self.heads // self.kv_heads * self.head_dim
        parts = per_kv_head.split([queries, self.head_dim, self.head_dim], dim=1)
        return {name: part.flatten(0, 1) for name, part in zip(self.tensors(), parts, strict=True)}
