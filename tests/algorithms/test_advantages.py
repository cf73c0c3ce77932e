"""Whitening, masks, reward normalisation, and advantages that need no critic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.algorithms.advantages import (
    leave_one_out,
    normalise_reward,
    per_token,
    prompt_normalised,
    response_mask,
    saturated,
    whiten,
)


def sums(advantage, length):
    tokens = advantage[response_mask(length, advantage.shape[1])].double()
    return tokens.numel(), tokens.sum(), tokens.square().sum()


def test_mask():
    mask = response_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_whiten_by_hand():
    advantage = torch.tensor([[1.0, 3.0, 99.0], [5.0, -7.0, 2.0]], dtype=torch.float64)
    length = torch.tensor([2, 1])  # tokens 1, 3, 5: mean 3, variance 8/3
    white = whiten(advantage, length, *sums(advantage, length))
    step = 2 / (8 / 3) ** 0.5
    torch.testing.assert_close(
        white, torch.tensor([[-step, 0.0, 0.0], [step, 0.0, 0.0]], dtype=torch.float64), rtol=1e-7, atol=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(2, 9),
    offset=st.floats(-100, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_whiten_to_mean_zero_std_one(seed, rows, offset, dtype):
    generator = torch.Generator().manual_seed(seed)
    advantage = torch.randn(rows, 6, generator=generator).to(dtype) + offset
    length = torch.randint(1, 7, (rows,), generator=generator)
    white = whiten(advantage, length, *sums(advantage, length))
    mask = response_mask(length, 6)
    assert white.dtype == dtype
    assert float(white[mask].double().mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(white[mask].double().std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(white[~mask], torch.zeros_like(white[~mask]))


def test_whiten_in_pieces_is_whiten_at_once():
    advantage = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([4, 1, 0, 3, 2, 4])
    total = sums(advantage, length)
    at_once = whiten(advantage, length, *total)
    pieces = [whiten(advantage[i : i + 2], length[i : i + 2], *total) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(pieces), at_once)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whiten_a_constant_is_zero(value, dtype):
    advantage = torch.full((3, 5), value, dtype=dtype)
    length = torch.tensor([5, 2, 0])
    white = whiten(advantage, length, *sums(advantage, length))
    assert white.abs().max() < 1e-4


def test_whiten_without_tokens_and_with_nan_padding():
    empty = whiten(torch.full((2, 3), torch.nan), torch.tensor([0, 0]), 0, 0.0, 0.0)
    assert torch.equal(empty, torch.zeros(2, 3))
    advantage = torch.tensor([[1.0, torch.nan], [3.0, torch.inf]])
    white = whiten(advantage, torch.tensor([1, 1]), 2, 4.0, 10.0)
    torch.testing.assert_close(white, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_normalise_reward():
    reward = torch.tensor([1.0, 3.0, 50.0])
    torch.testing.assert_close(normalise_reward(reward, 1.0, 2.0), torch.tensor([0.0, 1.0, 24.5]))
    torch.testing.assert_close(normalise_reward(reward, 1.0, 2.0, clip=5.0), torch.tensor([0.0, 1.0, 5.0]))
    assert normalise_reward(torch.full((3,), 0.3), float(torch.tensor(0.3)), 0.0).tolist() == [0.0] * 3


def test_a_saturating_reward_by_hand():
    gain = torch.tensor([-40.0, 0.0, 2.0, 40.0])
    found = saturated(gain, 2.0)
    torch.testing.assert_close(found, torch.tensor([-20.0, -0.6931472, -0.3132617, 0.0]))
    assert torch.equal(saturated(gain, 1.0), saturated(2 * gain, 2.0))


def test_leave_one_out_by_hand():
    reward = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])  # two prompts, three samples each
    assert leave_one_out(reward, 3).tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])
    assert leave_one_out(reward[:2], 2).tolist() == [-1.0, 1.0]


def test_prompt_normalised_by_hand():
    found = prompt_normalised(torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0]), 3)
    assert found.tolist() == pytest.approx([-1, 0, 1, 0, 0, 0], abs=1e-5)


def test_samples_that_earn_the_same_are_not_told_apart_by_a_tiny_penalty():
    """Divided by a standard deviation of 1e-5, differences of the KL alone would weigh as much as a reward."""
    reward = torch.tensor([0.3, 0.3, 0.3, 1.0, 2.0, 3.0])
    penalty = torch.tensor([1e-5, 0.0, -1e-5, 0.5, 0.0, -0.5])
    found = prompt_normalised(reward, 3, penalty).tolist()
    assert found[:3] == pytest.approx([-1e-5, 0.0, 1e-5], abs=1e-7)
    assert found[3:] == pytest.approx([-1, 0, 1], abs=1e-5), "where rewards differ, the penalty is part of them"
    assert prompt_normalised(reward * 0, 3, penalty).abs().max() < 1, "rewards of 0 are equal, too"
    rounded = torch.tensor([7.0, 7.0 * (1 + 2**-23), 7.0])  # one reward model, two micro-batches
    assert prompt_normalised(rounded, 3, penalty[:3]).abs().max() < 1e-4


@pytest.mark.parametrize("compare", [leave_one_out, prompt_normalised])
def test_comparing_samples_forgets_what_a_prompt_is_worth(compare):
    reward = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompt = torch.tensor([3.0, -7.0, 100.0], dtype=torch.float64).repeat_interleave(4)
    torch.testing.assert_close(compare(reward + prompt, 4), compare(reward, 4))
    torch.testing.assert_close(compare(reward, 4).reshape(3, 4).sum(1), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(("rows", "samples"), [(4, 1), (5, 2)])
def test_samples_that_cannot_be_compared(rows, samples):
    with pytest.raises(ValueError, match=f"{rows} rewards are not {samples}"):
        leave_one_out(torch.zeros(rows), samples)


def test_per_token_gives_what_whitening_takes():
    length = torch.tensor([2, 0, 1])
    advantage, found = per_token(torch.tensor([1.0, 5.0, -3.0]), length, 2)
    assert advantage.tolist() == [[1, 1], [0, 0], [-3, 0]]
    assert [float(x) for x in found] == [3, -1, 11]
    assert float(whiten(advantage, length, *found).sum()) == pytest.approx(0.0, abs=1e-6)
