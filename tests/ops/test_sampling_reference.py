"""Top-k, top-p and the inverse of the cumulative distribution in eager torch, against transformers' logits warpers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from gipo_mc.ops.reference import draw, filter_logits


def random_logits(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("top_k", [0, 1, 5, 40, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
def test_filter_agrees_with_transformers(top_k: int, top_p: float) -> None:
    logits = random_logits(64, 97)
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(filter_logits(logits, top_k=top_k, top_p=top_p), expected)


def test_top_p_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    kept = {p: filter_logits(logits, top_p=p).isfinite()[0].tolist() for p in (0.39, 0.41, 0.71, 0.91)}
    assert kept == {
        0.39: [False, True, False, False],
        0.41: [False, True, True, False],
        0.71: [False, True, True, True],
        0.91: [True, True, True, True],
    }


def test_equal_logits_are_kept_in_vocabulary_order() -> None:
    logits = torch.zeros(1, 10)
    assert filter_logits(logits, top_p=0.25).isfinite()[0].tolist() == [True] * 3 + [False] * 7
    assert filter_logits(logits, top_k=3).isfinite().all(), "ties with the k-th stay, as in transformers"


def test_filter_leaves_its_input_alone() -> None:
    logits = random_logits(4, 20)
    before = logits.clone()
    filter_logits(logits, top_k=3, top_p=0.5)
    assert torch.equal(logits, before)


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("first, last", [(0, 0), (3, 5), (9, 9)])
def test_extreme_uniforms_draw_candidates_only(first: int, last: int) -> None:
    logits = torch.full((2, 10), -torch.inf)
    logits[:, first] = 1.0
    logits[:, last] = 1.0
    uniforms = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [first, last]
