"""Sizes of a model, of whatever family, and whether they fit a layout, the data and the tokenizer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from gipo_mc.errors import ConfigError

#: The vocabulary is padded to a multiple of this, so that every tensor-parallel size up to 64 that is a power of two
#: sees the same padded size (a checkpoint's global shapes do not depend on the layout). Llama's own sizes (32000,
#: 128256) are multiples already.
VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class ModelShape:
    """Sizes and constants of one model.

    head_dim: width of one head; hidden_size / heads in many models, but free here.
    family: key of `gipo_mc.models.families.FAMILIES`, which knows everything that is no size.
    rope_scaling: () for plain rotary embeddings, else the sorted items of HF's rope parameters (rope_type, factor and
        for llama3 low_freq_factor, high_freq_factor, original_max_position_embeddings).
    eos_token_id, generation: of config.json, and generation_config.json as JSON text ("" where there is none): with
        the tokenizer's they say what ends a response (`end_ids`).
    pad_token_id: of config.json. A reward is read at the last token that is not this one, as transformers does; None:
        at the last token. The tokenizer decides what this package pads with.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, float | str], ...] = ()
    tied: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    family: str = "llama"
    generation: str = field(default="", repr=False)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a response, each once: those of config.json, then those of generation_config.json."""
        listed = [self.eos_token_id, json.loads(self.generation).get("eos_token_id") if self.generation else None]
        found = [one for ids in listed for one in (ids if isinstance(ids, list | tuple) else [ids])]
        return tuple(dict.fromkeys(one for one in found if isinstance(one, int) and 0 <= one < self.vocab_size))

    def padded_vocab(self, tensor: int) -> int:
        """Rows of the embedding in Megatron: `vocab_size` rounded up so that `tensor` ranks share them evenly."""
        multiple = math.lcm(VOCAB_MULTIPLE, tensor)
        return -(-self.vocab_size // multiple) * multiple

    def kv_heads_on(self, tensor: int) -> int:
        """Key-value heads that one of `tensor` ranks reads. Where there are fewer heads than ranks, those that share a
        head all read it; its weights are shared out between ranks as the others are (`gipo_mc.models.layers`)."""
        return max(1, self.kv_heads // tensor)

    def absurd(self) -> list[str]:
        """Sizes that no model has, a sentence each: below 1, or so large that memory would end before an error came."""
        most = {"vocab_size": 2**24, "hidden_size": 2**20, "intermediate_size": 2**22, "layers": 10_000}
        most |= {"heads": 2**16, "kv_heads": 2**16, "head_dim": 2**16, "max_positions": 2**40}
        found = [
            f"{name}={getattr(self, name)!r}: a whole number from 1 to {largest:,} is expected"
            for name, largest in most.items()
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) <= largest
        ]
        for name in ("norm_eps", "rope_theta", "initializer_range"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                found.append(f"{name}={value!r}: a finite number is expected")
        return found

    def check(
        self, tensor: int, pipeline: int, virtual: int = 1, *, sequence_length: int = 0, tokenizer_size: int = 0
    ) -> None:
        """Can this model run on `tensor` x `pipeline` ranks, with these tokens? Pure arithmetic, before any group.

        virtual: chunks of layers on each pipeline rank.
        sequence_length: longest prompt + response in tokens; 0: not asked.
        tokenizer_size: one more than the tokenizer's highest id; 0: not asked.
        Raises ConfigError with every problem, its numbers and the fix.
        """
        problems = [f"{misfit}: use {_tensor_sizes(self)}" for misfit in _tensor_misfits(self, tensor)]
        if self.layers % pipeline:
            problems.append(
                f"parallel.pipeline={pipeline} does not divide the model's {self.layers} layers: "
                f"use {_one_of(_divisors(self.layers))}"
            )
        elif self.layers // pipeline % virtual:
            problems.append(
                f"parallel.virtual_pipeline={virtual} does not divide the {self.layers // pipeline} layers that each "
                f"of parallel.pipeline={pipeline} ranks has: use {_one_of(_divisors(self.layers // pipeline))}"
            )
        if sequence_length > self.max_positions:
            problems.append(
                f"{sequence_length} tokens of prompt and response do not fit the model's {self.max_positions} "
                "positions: lower data.prompt_length, data.sequence_length or rollout.max_new_tokens"
            )
        if tokenizer_size > self.vocab_size:
            problems.append(
                f"the tokenizer has ids up to {tokenizer_size - 1}, but the model's vocabulary ends at "
                f"{self.vocab_size - 1}: give the tokenizer that belongs to the model (model.tokenizer)"
            )
        if problems:
            raise ConfigError("The model does not fit the layout or the data:\n" + bullets(problems))


def _tensor_misfits(shape: ModelShape, tensor: int) -> list[str]:
    """Why so many tensor-parallel ranks cannot share the model, if they cannot."""
    misfits = [
        f"parallel.tensor={tensor} does not divide the model's {size} {label}"
        for label, size in (("attention heads", shape.heads), ("feed-forward columns", shape.intermediate_size))
        if size % tensor
    ]
    if shape.kv_heads % tensor and tensor % shape.kv_heads:
        misfits.append(
            f"parallel.tensor={tensor} neither divides the model's {shape.kv_heads} key-value heads nor is a multiple "
            "of them"
        )
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    if rows % tensor and not misfits:
        misfits.append(
            f"parallel.tensor={tensor} does not divide the {rows} rows of the model's queries, keys and values"
        )
    return misfits


def _tensor_sizes(shape: ModelShape) -> str:
    return _one_of([n for n in _divisors(shape.heads) if not _tensor_misfits(shape, n)])


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _one_of(numbers: list[int]) -> str:
    return "1" if numbers == [1] else "one of " + ", ".join(map(str, numbers))


def bullets(lines: list[str]) -> str:
    """One line each, for the end of an error message."""
    return "\n".join(f"  - {line}" for line in lines)
