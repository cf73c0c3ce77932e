"""The tiny Llama, its prompts and what transformers makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gipo_mc.types import Prompt
from tests.generation.megatron_runs import PROMPT_LENGTHS, VOCAB, hf_greedy


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with grouped queries whose logits are spread enough to have clear favourites."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.25,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(5)
    return [
        Prompt(index=100 + 3 * row, token_ids=tuple(rng.integers(0, VOCAB, n).tolist()), domain=f"d{row % 2}", text="")
        for row, n in enumerate(PROMPT_LENGTHS)
    ]


@pytest.fixture(scope="session")
def reference(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def greedy_ids(reference: LlamaForCausalLM, prompts: list[Prompt]) -> list[list[int]]:
    """transformers' own greedy continuation, one prompt at a time and without an end."""
    return [hf_greedy(reference, prompt.token_ids, eos_id=None) for prompt in prompts]


@pytest.fixture(scope="session")
def eos_id(greedy_ids: list[list[int]]) -> int:
    """A token that some greedy responses reach early and others never."""
    early = [token for ids in greedy_ids for token in ids[:6]]
    return max((t for t in set(early) if not all(t in ids for ids in greedy_ids)), key=early.count)
