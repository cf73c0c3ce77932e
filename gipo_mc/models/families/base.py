"""What the supported families have in common, and what each of them may say for itself.

All are decoders of the Llama kind: RMSNorm before attention and feed-forward, rotary embeddings, grouped queries,
SwiGLU, no dropout. A family is a subclass of `Family` in a file of its own. Everything that decides numbers comes from
the checkpoint's config.json. A feature that this package does not have is refused with a sentence; nothing is silently
ignored.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gipo_mc.errors import ConfigError
from gipo_mc.models.shape import ModelShape, bullets
from gipo_mc.models.weights.mapping import Columns, GateUp, Mapping, QueryKeyValue, Whole
from gipo_mc.parallel.imports import compiler
from gipo_mc.parallel.imports.model_names import import_model

with compiler.left_out():  # what all configs of transformers need
    import_model("llama.configuration_llama")

#: Rotary embeddings whose frequencies are constants: what Llama 1 to 3.3 and their long-context variants use.
ROPE_TYPES = ("default", "linear", "llama3")


class Family:
    """One family of models. Subclasses set the first two attributes and override what is different.

    model_type: of config.json.
    hf_name: what transformers calls it: `<hf_name>Config`, `<hf_name>ForCausalLM` and so on.
    hf_fields: fields that config.json always has, whatever transformers takes for granted.
    megatron: fields of Megatron's TransformerConfig in which families differ; all others are the same for all of them
        (`gipo_mc.models.megatron_config`).
    """

    model_type: ClassVar[str]
    hf_name: ClassVar[str]
    hf_fields: ClassVar[dict[str, Any]] = {}
    megatron: ClassVar[dict[str, Any]] = {"add_qkv_bias": False, "qk_layernorm": False}

    @property
    def causal_lm(self) -> str:
        """Name of the class of language models, as in `architectures`."""
        return f"{self.hf_name}ForCausalLM"

    @property
    def sequence_classifier(self) -> str:
        """Name of the class of reward models, as in `architectures`."""
        return f"{self.hf_name}ForSequenceClassification"

    def hf_class(self, name: str) -> Any:
        """transformers' class of that name (which it imports on demand)."""
        return getattr(transformers, name)

    def new_config(self, **fields: Any) -> PreTrainedConfig:
        """A Hugging Face config of this family."""
        return self.hf_class(f"{self.hf_name}Config")(**{**self.hf_fields, **fields})

    def refused(self, config: Any) -> list[str]:
        """Features of a config that this package does not have, a sentence each. Subclasses add their own."""
        problems = []
        if config.hidden_act != "silu":
            problems.append(f"hidden_act={config.hidden_act!r}: only 'silu' is supported")
        rope_type, rope = _rope(config)
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

    def shape(self, config: Any, name: str) -> ModelShape:
        """The shape of a Hugging Face config; `name` is the model's in messages.

        Raises ConfigError listing every feature of the model that is not supported.
        """
        if problems := self.refused(config):
            raise ConfigError(f"{name} is not a {self.hf_name} that can be trained here:\n" + bullets(problems))
        rope_type, rope = _rope(config)
        eos = config.eos_token_id
        return ModelShape(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_positions=config.max_position_embeddings,
            norm_eps=config.rms_norm_eps,
            rope_theta=float(rope["rope_theta"]),
            rope_scaling=() if rope_type == "default" else _scaling(rope_type, rope),
            tied=bool(config.tie_word_embeddings),
            initializer_range=config.initializer_range,
            bos_token_id=config.bos_token_id,
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=config.pad_token_id,
            family=self.model_type,
        )

    def hf_config(self, shape: ModelShape, **overrides: Any) -> PreTrainedConfig:
        """The Hugging Face config of a shape, with fields of the caller's (architectures, dtype, num_labels)."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta, **dict(shape.rope_scaling)}
        eos = list(shape.eos_token_id) if isinstance(shape.eos_token_id, tuple) else shape.eos_token_id
        fields: dict[str, Any] = {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": shape.max_positions,
            "rms_norm_eps": shape.norm_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": shape.tied,
            "initializer_range": shape.initializer_range,
            "bos_token_id": shape.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": shape.pad_token_id,
        }
        return self.new_config(**(fields | overrides))

    def rotary_frequencies(self, shape: ModelShape) -> torch.Tensor:
        """float32 [head_dim / 2], the angle of one position. Scaled ones are transformers', so that they agree with it
        to the last bit (Megatron hard-codes three of llama3's four constants); without scaling the formula is here, as
        that of transformers lies beside its Llama, which takes as long to import as Megatron."""
        if shape.rope_scaling:
            found, _ = ROPE_INIT_FUNCTIONS[str(dict(shape.rope_scaling)["rope_type"])](self.hf_config(shape))
            return found.clone()
        return 1.0 / (shape.rope_theta ** (torch.arange(0, shape.head_dim, 2, dtype=torch.float) / shape.head_dim))

    def layer_tensors(self, shape: ModelShape, prefix: str) -> dict[str, Mapping]:
        """Parameter of a Megatron layer -> the Hugging Face tensors, named with `prefix`, that it is made of.

        In the order of the network. Subclasses add rows.
        """
        hidden, wide = shape.hidden_size, shape.intermediate_size
        attention, feed_forward = prefix + "self_attn.", prefix + "mlp."
        return {
            "input_layernorm.weight": Whole(prefix + "input_layernorm.weight", (hidden,)),
            "self_attention.linear_qkv.weight": QueryKeyValue.of(shape, attention, "weight"),
            "self_attention.linear_proj.weight": Columns(
                attention + "o_proj.weight", hidden, shape.heads * shape.head_dim
            ),
            "pre_mlp_layernorm.weight": Whole(prefix + "post_attention_layernorm.weight", (hidden,)),
            "mlp.linear_fc1.weight": GateUp(
                feed_forward + "gate_proj.weight", feed_forward + "up_proj.weight", wide, hidden
            ),
            "mlp.linear_fc2.weight": Columns(feed_forward + "down_proj.weight", hidden, wide),
        }


def sliding_layers(config: Any) -> list[str]:
    """For `Family.refused`: layers that attend over a window, in the words of the Qwen families' configs."""
    problems = []
    if config.use_sliding_window:
        problems.append(
            f"use_sliding_window=true: attention over a sliding window is not supported. Sequences of up to "
            f"{config.sliding_window} tokens do not need it: set use_sliding_window to false and "
            f"max_position_embeddings to {config.sliding_window} in config.json"
        )
    elif other := sorted(set(config.layer_types) - {"full_attention"}):
        problems.append(f"layer_types holds {', '.join(other)}: only full_attention is supported")
    return problems


def _rope(config: Any) -> tuple[str, dict[str, Any]]:
    """(type, the other parameters) of the rotary embedding."""
    rope = dict(config.rope_parameters or {})
    return str(rope.pop("rope_type", rope.pop("type", "default"))), rope


def _scaling(rope_type: str, rope: dict[str, Any]) -> tuple[tuple[str, float | str], ...]:
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return (("rope_type", rope_type), *((name, rope[name]) for name in names if name in rope))
