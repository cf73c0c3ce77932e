"""Sampling in eager torch against transformers' logits warpers, exact frequencies, and itself in other batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from gipo_mc.ops.reference import draw, filter_logits, sample


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


def test_frequencies_are_the_probabilities() -> None:
    """Evenly spread uniforms visit each token in proportion to its probability, to within one visit."""
    count = 4096
    logits = random_logits(1, 50, scale=1.5)
    tokens, logp = sample(
        logits.expand(count, -1),
        (torch.arange(count, dtype=torch.float64) + 0.5) / count,
        vocab_size=50,
        temperature=0.7,
    )
    probs = (logits[0].double() / 0.7).softmax(-1)
    frequency = torch.bincount(tokens, minlength=50) / count
    assert (frequency - probs).abs().max() <= 1.0 / count
    torch.testing.assert_close(logp, probs[tokens].log(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_prob_is_before_filtering_and_at_temperature(dtype: torch.dtype) -> None:
    logits = random_logits(32, 60).to(dtype)
    uniforms = torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, logp = sample(logits, uniforms, vocab_size=60, temperature=1.3, top_k=4, top_p=0.8)
    expected = (logits.double() / 1.3).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    assert logp.dtype == torch.float64
    torch.testing.assert_close(logp, expected, rtol=1e-12, atol=1e-12)
    candidates = filter_logits(logits.double() / 1.3, top_k=4, top_p=0.8).isfinite()
    assert candidates.gather(1, tokens[:, None]).all()


def test_padded_vocabulary_is_never_drawn_and_never_counted() -> None:
    logits = random_logits(64, 40)
    padded = torch.cat([logits, torch.full((64, 8), 50.0)], dim=1)
    uniforms = torch.linspace(0, 1 - 1e-12, 64, dtype=torch.float64)
    for options in ({}, {"top_k": 5}, {"top_p": 0.7}, {"greedy": True}):
        token, logp = sample(padded, uniforms, vocab_size=40, **options)
        plain_token, plain_logp = sample(logits, uniforms, vocab_size=40, **options)
        assert torch.equal(token, plain_token) and torch.equal(logp, plain_logp)
        assert token.max() < 40


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"greedy": True}])
def test_ids_without_a_text_are_never_drawn_but_have_their_probability(options: dict[str, Any]) -> None:
    """A model of 6 rows whose tokenizer has 4 ids. The log-prob is the model's: training computes it over all six."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.5, 9.0, 8.0]]).repeat(200, 1)
    uniform = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1]
    token, logp = sample(logits, uniform, vocab_size=6, known_ids=4, **options)
    assert int(token.max()) < 4 and (token == 2).any()
    torch.testing.assert_close(logp, logits[0].double().log_softmax(0)[token])
    plain = sample(logits[:, :4], uniform, vocab_size=4, **options)[0]
    assert torch.equal(token, plain), "as if those ids were not there"


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 2.0, 2.0, 5.0]])
    token, logp = sample(logits, None, vocab_size=4, greedy=True)
    assert token.tolist() == [1, 0]
    torch.testing.assert_close(logp, logits.double().log_softmax(-1).amax(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.9}, {"greedy": True}])
def test_a_row_does_not_feel_its_neighbours(options: dict) -> None:
    """Bitwise: any subset, order and size of batch gives each row the same token and log-prob."""
    logits = random_logits(33, 257)
    uniforms = torch.rand(33, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    token, logp = sample(logits, uniforms, vocab_size=250, temperature=0.9, **options)
    for rows in ([5], [0, 32], list(range(32, -1, -1)), list(range(0, 33, 3)), [4] * 9):
        alone_token, alone_logp = sample(logits[rows], uniforms[rows], vocab_size=250, temperature=0.9, **options)
        assert torch.equal(alone_token, token[rows]) and torch.equal(alone_logp, logp[rows])


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_rows_are_marked_and_spare_the_others(bad: float, greedy: bool) -> None:
    logits = random_logits(3, 12)
    uniforms = torch.full((3,), 0.5, dtype=torch.float64)
    whole, whole_logp = sample(logits, uniforms, vocab_size=12, greedy=greedy)
    logits[1, 7] = bad
    token, logp = sample(logits, uniforms, vocab_size=12, top_p=1.0, greedy=greedy)
    assert token[1] == -1 and logp[1].isnan()
    assert torch.equal(token[[0, 2]], whole[[0, 2]]) and torch.equal(logp[[0, 2]], whole_logp[[0, 2]])


def test_minus_infinity_is_a_probability_of_zero() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    token, logp = sample(logits, torch.tensor([0.5], dtype=torch.float64), vocab_size=3)
    assert token.item() == 2 and logp.isfinite().all()
