"""What generation refuses before it computes, and failures that every rank reports alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gipo_mc.errors import ConfigError, DataError, NumericsError
from gipo_mc.generation.assemble import assemble_rollout
from gipo_mc.generation.engine import Generated
from gipo_mc.generation.memory import Limits
from gipo_mc.parallel.layout import Layout
from gipo_mc.types import Prompt
from tests.generation.megatron_runs import NEW, VOCAB, generate, on_ranks, rollout
from tests.ranks import LAYOUTS


def test_refusals_come_before_anything_is_computed(folder: Path) -> None:
    def job(model: Any, layout: Layout) -> list[tuple[str, str]]:
        model.decoder.layers[0].mlp.linear_fc1.weight = None  # a forward pass would fail
        attempts: list[tuple[list[list[int]], dict[str, Any]]] = [
            ([[1], []], {}),
            ([[1] * 21], {}),
            ([[1, VOCAB]], {}),
            ([[-1, 1]], {}),
            ([[1]], {"max_new_tokens": 0}),
            ([[1]], {"eos_id": VOCAB}),
            ([[1]], {"greedy": False}),
            ([[1]], {"greedy": False, "uniforms_BT": np.zeros((2, NEW))}),
            ([[1]], {"temperature": -1.0, "top_p": 0.0, "top_k": -1}),
            ([[1]], {"limits": Limits(kv_cache_gib=1e-6)}),
        ]
        errors = []
        for tokens, options in attempts:
            merged = {"max_new_tokens": NEW, "eos_id": 0, "greedy": True} | options
            try:
                generate(model, tokens, **merged)
            except (ConfigError, DataError) as error:
                errors.append((type(error).__name__, str(error)))
        return errors

    errors = on_ranks(folder, {}, job)[0]
    assert [name for name, _ in errors] == ["DataError"] * 4 + ["ConfigError"] * 6
    texts = [text for _, text in errors]
    assert "Prompt 1 of the batch has no tokens" in texts[0]
    assert "21 tokens" in texts[1] and "context of 32" in texts[1] and "rollout.max_new_tokens" in texts[1]
    assert f"token id {VOCAB}," in texts[2] and "token id -1," in texts[3]
    assert all(key in texts[8] for key in ("temperature", "top_p", "top_k"))
    assert "cannot hold one sequence of 13 tokens" in texts[9] and "rollout.kv_cache_gib=1e-06" in texts[9]


def test_broken_weights_are_one_error_on_every_rank(folder: Path, prompts: list[Prompt], eos_id: int) -> None:
    """NaN in one rank's shard of the last stage stops all ranks with the same sentence, and modes are restored."""

    def job(model: Any, layout: Layout) -> str:
        model.train()
        if layout.is_last_stage and layout.tensor_rank == 1:
            with torch.no_grad():
                next(p for name, p in model.named_parameters() if "output_layer" in name)[0, 0] = torch.nan
        with pytest.raises(NumericsError) as caught:
            rollout(model, layout, prompts, eos_id)
        assert model.training
        return str(caught.value)

    messages = on_ranks(folder, LAYOUTS["TP2xPP2"], job)
    assert len(set(messages)) == 1 and "not finite" in messages[0]


def test_assemble_refuses_a_foreign_block(prompts: list[Prompt]) -> None:
    layout = Layout(2, 0, 1, 1, 2, 0, 0, 0, False, torch.device("cpu"))
    count = len(prompts)
    own = Generated(
        torch.zeros(count, 3, dtype=torch.int64),
        torch.ones(count, dtype=torch.int64),
        torch.zeros(count, 3),
        torch.zeros(count, dtype=torch.bool),
    )
    with pytest.raises(ConfigError, match=r"owns 4 of 7 prompts, but 7 responses"):
        assemble_rollout(prompts, own, layout, pad_id=0)
