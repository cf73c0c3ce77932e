"""The forward pass of generation against the training forward pass, family by family and layout by layout."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.config import ParallelConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.cached_forward import CachedForward, Tokens
from gipo_mc.models.families import read_shape
from gipo_mc.models.kv_cache import PAGE, KVCache, pages_for
from gipo_mc.models.stage import StageModel
from gipo_mc.parallel import runtime
from tests.models.tiny import FAMILIES, VARIANTS, config
from tests.ranks import LAYOUTS, parallel_config, run_ranks

LENGTHS = (3, 21, 16, 1)
NEW = 18  # across a page's end for every row
MODELS = {**{name: config(**fields) for name, fields in VARIANTS.items()},
          **{name: config(name, **fields) for name, fields in FAMILIES.items()}}  # fmt: skip


def through_the_stages(model: StageModel, run: CachedForward, tokens: Tokens, cache: KVCache) -> Tensor | None:
    """States of the last stage; None on the others."""
    layout, received = model.layout, None
    group = parallel_state.get_pipeline_model_parallel_group()
    if not layout.is_first_stage:
        received = torch.empty(len(tokens.token_N), model.config.hidden_size, dtype=model.config.params_dtype)
        dist.recv(received, src=parallel_state.get_pipeline_model_parallel_prev_rank(), group=group)
    states = run(tokens, received, cache)
    if layout.is_last_stage:
        return states
    dist.send(states, dst=parallel_state.get_pipeline_model_parallel_next_rank(), group=group)
    return None


def expected_states(model: StageModel, tokens_BL: Tensor) -> Tensor | None:
    """Of the training forward pass, [B, L, H] on the last stage."""
    layout, received = model.layout, None
    group = parallel_state.get_pipeline_model_parallel_group()
    if not layout.is_first_stage:
        size = (tokens_BL.shape[1], tokens_BL.shape[0], model.config.hidden_size)
        received = torch.empty(size, dtype=model.config.params_dtype)
        dist.recv(received, src=parallel_state.get_pipeline_model_parallel_prev_rank(), group=group)
    model.set_input_tensor(received)
    states = model(tokens_BL)
    if layout.is_last_stage:
        return states.transpose(0, 1)
    dist.send(states.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank(), group=group)
    return None


def compare(rank: int, parallel: ParallelConfig, name: str, ops: str) -> None:
    os.environ["GIPO_MC_OPS"] = ops  # this process is the test's own
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(MODELS[name])
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=False)
    for weight in model.parameters():  # biases and norms that are not 0 and 1
        weight.data += 0.1 * torch.sin(torch.arange(weight.numel(), dtype=torch.float32)).view_as(weight)
    longest = max(LENGTHS) + NEW
    tokens_BL = torch.randint(0, shape.vocab_size, (len(LENGTHS), longest), generator=torch.Generator().manual_seed(3))
    pages = pages_for(longest)
    cache = KVCache(shape, layout, pages=9 * len(LENGTHS), slots=6, longest=longest, dtype=torch.float32)
    for pool in (pool for both in cache.pools for pool in both):
        pool.fill_(torch.nan)  # what was never written is never read
    slots = [4, 0, 5, 2]
    scattered = torch.randperm(9 * len(LENGTHS), generator=torch.Generator().manual_seed(1)).tolist()
    cache.give(slots, [scattered[row * pages : (row + 1) * pages] for row in range(len(LENGTHS))])
    run = CachedForward(model, longest)

    with torch.no_grad():
        expected = expected_states(model, tokens_BL)
        lengths, slot = torch.tensor(LENGTHS), torch.tensor(slots)
        stops = lengths.cumsum(0)
        prompts = Tokens(
            token_N=torch.cat([row[:n] for row, n in zip(tokens_BL, LENGTHS)]),
            slot_N=slot.repeat_interleave(lengths),
            position_N=torch.cat([torch.arange(n) for n in LENGTHS]),
            prompts=[(int(stop) - n, int(stop), s) for stop, n, s in zip(stops, LENGTHS, slots)],
            last_n=stops - 1,
        )
        found = [through_the_stages(model, run, prompts, cache)]
        for step in range(NEW):
            position = lengths + step
            token = tokens_BL.gather(1, position[:, None]).squeeze(1)
            # A row that stands for nothing changes nothing.
            padded = Tokens(
                torch.cat([token, token.new_zeros(1)]),
                torch.cat([slot, slot.new_zeros(1)]),
                torch.cat([position, position.new_full((1,), -1)]),
            )
            found.append(through_the_stages(model, run, padded, cache))
    if expected is None:
        return
    for step, states in enumerate(found):
        assert states is not None and states.isfinite().all()
        wanted = expected[torch.arange(len(LENGTHS)), lengths - 1 + step]
        torch.testing.assert_close(states[: len(LENGTHS)], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ops", ["reference", "native"])
@pytest.mark.parametrize("name", MODELS)
def test_prompts_and_decoding_equal_the_training_forward_pass(name: str, ops: str) -> None:
    for layout in ({}, LAYOUTS["TP2+SP"]):
        parallel, ranks = parallel_config(**layout)
        run_ranks(compare, ranks, parallel, name, ops)


def test_on_a_pipeline() -> None:
    parallel, ranks = parallel_config(**LAYOUTS["TP2xPP2"])
    run_ranks(compare, ranks, parallel, "llama3", "native")


def copied_pages(rank: int) -> None:
    layout = runtime.initialize(ParallelConfig(), "cpu")
    shape = read_shape(config())
    cache = KVCache(shape, layout, pages=5, slots=2, longest=2 * PAGE, dtype=torch.float32)
    for number, pool in enumerate(pool for both in cache.pools for pool in both):
        pool[:] = number + torch.arange(5.0)[:, None, None, None] / 10
    cache.give([1], [[4, 2]])
    cache.copy([4], [0], range(1, shape.layers))
    assert cache.page_table_SP.tolist() == [[-1, -1], [4, 2]]
    [keys], [values] = cache.read(0, [1], PAGE + 1)
    assert keys.shape == values.shape == (shape.kv_heads, PAGE + 1, shape.head_dim)
    assert keys[:, :PAGE].eq(0.4).all() and keys[:, PAGE:].eq(0.2).all() and values[:, :PAGE].eq(1.4).all()
    assert cache.pools[0][0][0].eq(0).all(), "not one of the layers that were named"
    assert cache.pools[1][1][0].eq(3.4).all()


def test_pages_are_given_copied_and_read() -> None:
    run_ranks(copied_pages, 1)
