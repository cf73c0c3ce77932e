"""Op A over tensor-parallel ranks: the merged outputs and each rank's gradient are those of the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gipo_mc.ops import reference, token_statistics
from tests.ops.cases import close
from tests.ranks import run_ranks

ROWS, WIDTH = 9, 21  # neither width nor shard start is a multiple of a vector


def whole(ranks: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(ROWS, WIDTH * ranks, generator=generator) * 6
    logits[:, vocabulary:] = 100.0  # padding that must not count
    targets = torch.randint(0, vocabulary, (ROWS,), generator=generator)  # of every rank
    targets[2] = -100
    return logits, targets, torch.randn(2, ROWS, generator=generator)


def shard(rank: int, ranks: int, vocabulary: int, native: bool) -> tuple[Tensor, ...]:
    logits, targets, upstream = whole(ranks, vocabulary)
    start = rank * WIDTH
    local = logits[:, start : start + WIDTH].clone().requires_grad_()
    op = token_statistics if native else reference.token_statistics
    token = op(local, targets, vocab_start=start, vocab_size=vocabulary, temperature=0.8, group=dist.group.WORLD)
    torch.autograd.backward(list(token), list(upstream))
    return token.logp_N.detach(), token.entropy_N.detach(), local.grad


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
@pytest.mark.parametrize(("ranks", "vocabulary"), [(2, 42), (2, 37), (2, 20), (3, 50)])
def test_shards_agree_with_the_whole_vocabulary(ranks: int, vocabulary: int, native: bool) -> None:
    """(2, 20): the second shard is padding only."""
    results = run_ranks(shard, ranks, ranks, vocabulary, native)
    logits, targets, upstream = whole(ranks, vocabulary)
    exact = logits.double().requires_grad_()
    want = reference.token_statistics(exact, targets, vocab_size=vocabulary, temperature=0.8)
    torch.autograd.backward(list(want), list(upstream.double()))
    for logp, entropy, _ in results:
        close(logp, want.logp_N, "logp")
        close(entropy, want.entropy_N, "entropy")
        if native:  # merged in rank order on every rank
            assert torch.equal(logp, results[0][0]) and torch.equal(entropy, results[0][1])
    close(torch.cat([gradient for *_, gradient in results], 1), exact.grad, "gradient")


def wrong_start(rank: int) -> str:
    logits, targets, _ = whole(2, 42)
    with pytest.raises(ValueError, match="must start at") as error:
        token_statistics(logits, targets, vocab_start=rank * WIDTH + 1, group=dist.group.WORLD)
    dist.barrier()
    return str(error.value)


def test_a_shard_that_starts_elsewhere_is_refused() -> None:
    assert "rank 1 of 2" in run_ranks(wrong_start, 2)[1]
