"""RMSNorm and attention against a plain computation, and layers by kernels against eager torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gipo_mc.config import ParallelConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.layers import CausalAttention, RMSNorm
from gipo_mc.models.megatron_config import transformer_config
from gipo_mc.parallel import runtime
from tests.models.tiny import config, layout
from tests.ranks import parallel_config, run_ranks


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Loops and a softmax."""
    length, batch, heads, width = query.shape
    groups = key.shape[2]
    out = torch.zeros(length, batch, heads, width, dtype=query.dtype)
    for t in range(length):
        visible = t + 1
        for b in range(batch):
            for head in range(heads):
                group = head // (heads // groups)
                scores = key[:visible, b, group] @ query[t, b, head] / width**0.5
                out[t, b, head] = torch.softmax(scores, 0) @ value[:visible, b, group]
    return out.flatten(2)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_against_loops(length: int, groups: int) -> None:
    told = transformer_config(read_shape(config()), layout(), torch.float64)
    attention = CausalAttention(told, layer_number=1)
    query = torch.randn(length, 2, 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, length, 2, groups, 8, dtype=torch.float64)
    torch.testing.assert_close(attention(query, key, value), plain_attention(query, key, value))


def test_norm_against_its_formula_and_its_sequence_parallel_mark() -> None:
    for sequence in (False, True):
        place = layout(tensor=2, sequence=sequence, world_size=2)
        norm = RMSNorm(transformer_config(read_shape(config()), place, torch.float64), 8, eps=1e-5)
        norm.weight.data.uniform_(0.5, 1.5)
        x = torch.randn(3, 2, 8, dtype=torch.float64)
        expected = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(norm(x), expected)
        assert norm.weight.sequence_parallel is sequence


def compare_with_eager(rank: int) -> None:
    """A model's states and gradients by the kernels of `gipo_mc.ops` and by torch's."""
    place = runtime.initialize(ParallelConfig(), "cpu")
    generator = torch.Generator().manual_seed(4)
    tokens_BL, upstream = (
        torch.randint(0, 96, (3, 11), generator=generator),
        torch.randn(11, 3, 32, generator=generator),
    )
    for shape in (read_shape(config()), read_shape(config(num_key_value_heads=4))):
        model = build_model(shape, place, head="lm", dtype=torch.float32, trainable=True)
        found = []
        for choice in ("native", "reference"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GIPO_MC_OPS", choice)
                hidden = model(tokens_BL)
                gradients = torch.autograd.grad(hidden, [*model.decoder.parameters()], upstream)
            found.append((hidden, *gradients))
        for kernels, eager in zip(*found, strict=True):
            torch.testing.assert_close(kernels, eager, rtol=1e-4, atol=1e-5 * eager.abs().max().item())


@pytest.mark.filterwarnings("ignore:GIPO_MC_OPS=reference")
def test_kernels_and_eager_torch_agree() -> None:
    run_ranks(compare_with_eager, 1)


def compare_padding(rank: int, parallel: ParallelConfig) -> None:
    """Right padding, and the padding to a multiple of the tensor ranks, never reach a real token."""
    place = runtime.initialize(parallel, "cpu")
    shape = read_shape(config())
    model = build_model(shape, place, head="lm", dtype=torch.float32, trainable=False)
    tokens_BL = torch.randint(0, shape.vocab_size, (2, 9), generator=torch.Generator().manual_seed(4))
    padded = torch.cat([tokens_BL, torch.full((2, 6), 7)], dim=1)
    with torch.no_grad():
        short, long = model(tokens_BL), model(padded)
    assert short.shape == (9, 2, shape.hidden_size) and long.shape == (15, 2, shape.hidden_size)
    torch.testing.assert_close(long[:9], short, rtol=1e-5, atol=1e-5)


def test_padding_does_not_matter_and_odd_lengths_are_allowed_with_sequence_parallelism() -> None:
    parallel, ranks = parallel_config(tensor=2, sequence=True)
    run_ranks(compare_padding, ranks, parallel)


def refuse_what_is_not_looked_at(rank: int) -> None:
    place = runtime.initialize(ParallelConfig(), "cpu")
    model = build_model(read_shape(config()), place, head="lm", dtype=torch.float32, trainable=False)
    attention = model.decoder.layers[0].self_attention
    for name in ("packed_seq_params", "inference_context"):
        with pytest.raises(ValueError, match=f"does not know {name}"):
            attention(torch.zeros(2, 1, 32), **{name: object()})


def test_packed_sequences_are_refused() -> None:
    run_ranks(refuse_what_is_not_looked_at, 1)
