"""Captured decoding steps: their sizes, and on a GPU the same responses as without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gipo_mc.config import ParallelConfig
from gipo_mc.generation.assemble import sampling_uniforms
from gipo_mc.generation.engine import Sampling
from gipo_mc.generation.graphs import rounded_up
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.weights.hf_load import load_hf_weights
from gipo_mc.parallel import runtime
from gipo_mc.types import Prompt


def test_few_sizes_cover_all_numbers_of_rows() -> None:
    """At most a few graphs are captured, none of them larger than the slots, none too small for its rows."""
    for slots in (1, 5, 64, 100):
        sizes = [rounded_up(count, slots) for count in range(1, slots + 1)]
        assert sizes[-1] == slots and all(size >= count for count, size in enumerate(sizes, 1))
        assert len(set(sizes)) <= 4 + -(-slots // 8)
    assert [rounded_up(count, 64) for count in (1, 2, 3, 5, 8, 9, 17, 63)] == [1, 2, 4, 8, 8, 16, 24, 64]


@pytest.mark.gpu
def test_captured_steps_give_the_responses_of_one_step_after_the_other(folder: Path, prompts: list[Prompt]) -> None:
    layout = runtime.initialize(ParallelConfig(), "cuda")
    model = build_model(read_shape(folder), layout, head="lm", dtype=torch.float32, trainable=True)
    load_hf_weights(model, folder)
    tokens = [prompt.token_ids for prompt in prompts]
    engine = MegatronEngine(model, longest=26)
    noise = sampling_uniforms(1, "graphs", 0, range(len(tokens)), 12)
    captured = engine.generate(tokens, Sampling(12, eos_id=5), noise)
    again = engine.generate(tokens, Sampling(12, eos_id=5), noise)
    assert captured.responses() == again.responses()
    # The weights are the policy's own: a captured step reads what the optimizer wrote.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    after = engine.generate(tokens, Sampling(12, eos_id=5), noise)
    assert after.responses() != captured.responses()
    # The weights are the policy's own: a captured step reads what the optimizer wrote.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    after = engine.generate(tokens, Sampling(12, eos_id=5), noise)
    assert after.responses() != captured.responses()
    for work in engine._kept.values():
        work._captured = None
    eager = engine.generate(tokens, Sampling(12, eos_id=5), noise)
    assert eager.responses() == after.responses()
    torch.testing.assert_close(eager.sampler_logp_BT, after.sampler_logp_BT, rtol=1e-4, atol=1e-4)
