"""Tests of vLLM as a rollout engine, and two tiny Llamas whose heads are as wide as its attention on the CPU asks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.generation.vllm.vllm_runs import LENGTHS, VOCAB


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("vllm") is None:
        skip = pytest.mark.skip(
            reason="vLLM is not installed here: make test-vllm runs these in an environment of its own"
        )
        for item in items:
            if "/tests/generation/vllm/" in item.path.as_posix():
                item.add_marker(skip)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ "untied" and "tied": output layers of their own and shared with the embedding."""
    found = {}
    for name in ("untied", "tied"):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.2,
            tie_word_embeddings=name == "tied",
        )
        found[name] = tmp_path_factory.mktemp(name)
        LlamaForCausalLM(config).save_pretrained(found[name])
    return found


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]
