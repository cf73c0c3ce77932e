"""What a Llama is made of, read from its Hugging Face config.json, and as Megatron-core wants to hear it.

Everything that decides numbers comes from the checkpoint's own config: Megatron's defaults (dropout 0.1, epsilon 1e-5,
rotary base 10000, biases) differ from Llama's and are never relied on. A feature that this package does not have is
refused with a sentence; nothing is silently ignored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gipo_mc.errors import CheckpointError, ConfigError
from gipo_mc.parallel.layout import Layout

#: The vocabulary is padded to a multiple of this, so that every tensor-parallel size up to 64 that is a power of two
#: sees the same padded size (a checkpoint's global shapes do not depend on the layout). Llama's own sizes (32000,
#: 128256) are multiples already.
VOCAB_MULTIPLE = 64

#: Rotary embeddings whose frequencies are constants: what Llama 1 to 3.3 and their long-context variants use.
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class ModelShape:
    """Sizes and constants of one Llama (1, 2 or 3), in Hugging Face's words.

    head_dim: width of one head; hidden_size / heads in every published Llama, but free here.
    rope_scaling: () for plain rotary embeddings, else the sorted items of HF's rope parameters (rope_type, factor and
        for llama3 low_freq_factor, high_freq_factor, original_max_position_embeddings).
    *_token_id: kept for export only; the tokenizer decides what this package pads and ends with.
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

    @classmethod
    def from_hf(cls, source: str | Path | LlamaConfig) -> ModelShape:
        """The shape of a Hugging Face folder or config.

        Raises CheckpointError if there is no readable config.json, ConfigError listing every feature of the model
        that is not supported.
        """
        if isinstance(source, LlamaConfig):
            name, config = source.name_or_path or "the model", source
        else:
            name, config = str(source), _read_config(Path(source))
        rope = dict(config.rope_parameters or {})
        rope_type = str(rope.pop("rope_type", rope.pop("type", "default")))
        problems = _unsupported(config, rope_type, rope)
        if problems:
            raise ConfigError(f"{name} is not a Llama that can be trained here:\n" + _bullets(problems))
        eos = config.eos_token_id
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,  # type: ignore[arg-type]
            head_dim=config.head_dim,  # type: ignore[arg-type]
            max_positions=config.max_position_embeddings,
            norm_eps=config.rms_norm_eps,
            rope_theta=float(rope["rope_theta"]),
            rope_scaling=() if rope_type == "default" else _scaling(rope_type, rope),
            tied=bool(config.tie_word_embeddings),
            initializer_range=config.initializer_range,
            bos_token_id=config.bos_token_id,
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=config.pad_token_id,
        )

    def to_hf(self, **overrides: Any) -> LlamaConfig:
        """The Hugging Face config of this shape, with fields of the caller's (architectures, dtype, num_labels)."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta, **dict(self.rope_scaling)}
        eos = list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id
        fields: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tied,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
        }
        return LlamaConfig(**(fields | overrides))

    def padded_vocab(self, tensor: int) -> int:
        """Rows of the embedding in Megatron: `vocab_size` rounded up so that `tensor` ranks share them evenly."""
        multiple = math.lcm(VOCAB_MULTIPLE, tensor)
        return -(-self.vocab_size // multiple) * multiple

    def rotary_frequencies(self) -> torch.Tensor:
        """float32 [head_dim / 2], the angle of one position. Computed by transformers, so that every scaling agrees
        with it to the last bit (Megatron hard-codes three of llama3's four constants)."""
        return LlamaRotaryEmbedding(self.to_hf()).inv_freq.detach().clone()

    def check(self, tensor: int, pipeline: int, *, sequence_length: int = 0, tokenizer_size: int = 0) -> None:
        """Can this model run on `tensor` x `pipeline` ranks, with these tokens? Pure arithmetic, before any group.

        sequence_length: longest prompt + response in tokens; 0: not asked.
        tokenizer_size: one more than the tokenizer's highest id; 0: not asked.
        Raises ConfigError with every problem, its numbers and the fix.
        """
        problems = []
        for label, size in (
            ("attention heads", self.heads),
            ("key-value heads", self.kv_heads),
            ("feed-forward columns", self.intermediate_size),
        ):
            if size % tensor:
                problems.append(
                    f"parallel.tensor={tensor} does not divide the model's {size} {label}: use {_divisors(self)}"
                )
        if self.layers % pipeline:
            fits = [n for n in range(1, self.layers + 1) if self.layers % n == 0]
            problems.append(
                f"parallel.pipeline={pipeline} does not divide the model's {self.layers} layers: "
                f"use one of {', '.join(map(str, fits))}"
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
            raise ConfigError("The model does not fit the layout or the data:\n" + _bullets(problems))


def transformer_config(shape: ModelShape, layout: Layout, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's configuration of this shape on this layout.

    Losses arrive normalised over the whole mini-batch, so `calculate_per_token_loss` keeps the schedules from dividing
    by the number of micro-batches. Initialisation is a no-op: weights come from a file or from named streams.
    """
    on_cuda = layout.device.type == "cuda"
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.intermediate_size,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        add_bias_linear=False,
        add_qkv_bias=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        init_method=_leave_empty,
        output_layer_init_method=_leave_empty,
        embedding_init_method=_leave_empty,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence and layout.tensor > 1,
        calculate_per_token_loss=True,
        # Micro-batches of different lengths travel through the pipeline; Megatron refuses that for any dispatcher but
        # this one, although there is no mixture of experts here.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        use_cpu_initialization=not on_cuda,
        bias_activation_fusion=on_cuda,
        bias_dropout_fusion=on_cuda,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        deallocate_pipeline_outputs=layout.pipeline > 1,
    )


def _leave_empty(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _read_config(folder: Path) -> LlamaConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json: give a Hugging Face checkpoint, a folder with config.json and *.safetensors."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("model_type") != "llama":
        kind = raw.get("model_type") if isinstance(raw, dict) else None
        raise ConfigError(f'{path} describes model_type={kind!r}: only Llama models ("llama") can be trained here.')
    try:
        return LlamaConfig.from_dict(raw)
    except Exception as error:  # transformers validates with several exception types of its own
        raise CheckpointError(f"{path} is not a valid Llama config: {error}") from error


def _unsupported(config: LlamaConfig, rope_type: str, rope: dict[str, Any]) -> list[str]:
    problems = []
    if config.hidden_act != "silu":
        problems.append(f"hidden_act={config.hidden_act!r}: only 'silu' is supported")
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key):
            problems.append(f"{key}=true: only Llamas without biases are supported")
    if rope_type not in ROPE_TYPES:
        problems.append(f"rope_type={rope_type!r}: supported are {', '.join(ROPE_TYPES)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor={rope['partial_rotary_factor']}: only 1.0 is supported")
    if "rope_theta" not in rope:
        problems.append("there is no rope_theta")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    if heads % kv_heads:
        problems.append(f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}")
    return problems


def _scaling(rope_type: str, rope: dict[str, Any]) -> tuple[tuple[str, float | str], ...]:
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return (("rope_type", rope_type), *((name, rope[name]) for name in names if name in rope))


def _divisors(shape: ModelShape) -> str:
    common = math.gcd(shape.heads, shape.kv_heads, shape.intermediate_size)
    return "one of " + ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
