"""Tiny Hugging Face models made with transformers, the oracle of the model tests."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

#: What the tests call them -> what differs from `config`.
VARIANTS: dict[str, dict[str, Any]] = {
    # One key-value head a head, plain rotary embedding, a vocabulary that needs no padding.
    "llama2": {"num_key_value_heads": 4, "vocab_size": 128},
    # Grouped queries, scaled rotary embedding, a vocabulary that no tensor-parallel size divides.
    "llama3": {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
    # Embedding and output projection are one tensor; heads wider than hidden / heads.
    "tied": {"tie_word_embeddings": True, "head_dim": 16},
}


#: Families beside Llama -> what a tiny one has that `config` does not give it.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
}


def config(model_type: str = "llama", **changes: Any) -> PreTrainedConfig:
    """4 layers, 4 heads, 2 key-value heads, vocabulary 131; weights large enough for logits of several units."""
    fields: dict[str, Any] = {
        "vocab_size": 131,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.25,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
    }
    # A copy: transformers writes into the rope parameters it is given.
    return CONFIG_MAPPING[model_type](**copy.deepcopy(fields | FAMILIES.get(model_type, {}) | changes))


def save_lm(
    folder: Path, model_type: str = "llama", *, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any
) -> Path:
    """A random language model saved by transformers."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config(model_type, **changes))
    _draw_vectors(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_reward(
    folder: Path, model_type: str = "llama", *, dtype: torch.dtype = torch.float32, labels: int = 1, **changes: Any
) -> Path:
    """A random sequence classifier saved by transformers."""
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_config(config(model_type, num_labels=labels, **changes))
    _draw_vectors(model)
    model.to(dtype).save_pretrained(folder)
    return folder


def _draw_vectors(model: torch.nn.Module) -> None:
    """Norms of 1 and biases of 0 would hide one in the wrong place."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)


def let_this_rank_write() -> None:
    """Megatron's writer starts a process, which a daemon (a rank of `run_ranks`) may not."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
