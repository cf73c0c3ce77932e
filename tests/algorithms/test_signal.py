"""The signal S: its forms by hand, and what normalising it forgets."""

import pytest
import torch

from gipo_mc.algorithms.signal import normalised, running_std, sequence_signal, token_signal

NAN = float("nan")
REWARD = torch.tensor([2.0, -1.0, 5.0])
RETURN = torch.tensor([[3.0, 2.0], [4.0, NAN], [NAN, NAN]])
ADVANTAGE = torch.tensor([[1.0, -2.0], [0.5, NAN], [NAN, NAN]])
LOGP = torch.tensor([[-1.0, -3.0], [-2.0, NAN], [NAN, NAN]])
LENGTH = torch.tensor([2, 1, 0])


@pytest.mark.parametrize(
    ("signal", "tokens", "log_prob", "expected"),
    [
        ("reward", "mean", False, [2.0, -1.0, 0.0]),
        ("reward", "sum", False, [4.0, -1.0, 0.0]),
        ("return", "mean", False, [2.5, 4.0, 0.0]),
        ("return", "sum", False, [5.0, 4.0, 0.0]),
        ("advantage", "mean", False, [-0.5, 0.5, 0.0]),
        ("advantage", "sum", False, [-1.0, 0.5, 0.0]),
        # sum_t log pi A = -1 * 1 + -3 * -2: the paper
        ("advantage", "sum", True, [5.0, -1.0, 0.0]),
        ("advantage", "mean", True, [2.5, -1.0, 0.0]),
        ("reward", "sum", True, [-8.0, 2.0, 0.0]),
        ("return", "mean", True, [-4.5, -8.0, 0.0]),
    ],
)
def test_forms_by_hand_and_padding_that_never_matters(signal, tokens, log_prob, expected):
    token = token_signal(signal, REWARD, RETURN, ADVANTAGE)
    assert sequence_signal(token, LENGTH, tokens, LOGP if log_prob else None).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_by_hand(dtype):
    first = torch.tensor([1.0, 3.0], dtype=dtype)
    std = running_std(None, first, 0.95)
    assert std == 1.0 and normalised(first, std).tolist() == [-1.0, 1.0] and normalised(first, std).dtype == dtype
    second = torch.tensor([0.0, 8.0], dtype=dtype)
    std = running_std(std, second, 0.95)
    assert std == pytest.approx(0.95 + 0.05 * 4)
    assert normalised(second, std).tolist() == pytest.approx([-4 / 1.15, 4 / 1.15])


def test_equal_signals_one_and_none():
    for signal in (torch.full((5,), 0.1), torch.ones(1)):
        assert normalised(signal, running_std(None, signal, 0.9)).abs().max() < 1e-6
    nothing = torch.zeros(0)
    assert normalised(nothing, 1.0).shape == (0,) and running_std(2.0, nothing, 0.9) == 2.0
