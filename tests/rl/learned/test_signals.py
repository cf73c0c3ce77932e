"""How well a number tells the domains apart: all candidates at once give what one alone gives."""

from __future__ import annotations

import pytest
import torch

from gipo_mc.algorithms.association import domain_auc
from gipo_mc.rl.learned.signals import domain_aucs


@pytest.mark.parametrize("names", [("easy", "hard"), ("a", "b", "c")])
def test_the_same_as_one_by_one_ties_included(names: tuple[str, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    values_SB = torch.randint(0, 6, (5, 40), generator=generator).float()
    domains = [names[i] for i in torch.randint(0, len(names), (40,), generator=generator).tolist()]
    expected = [domain_auc(values_B[:, None], domains) for values_B in values_SB]
    assert domain_aucs(values_SB, domains).tolist() == pytest.approx(expected)
    assert len(set(expected)) == 5


def test_hand_computed() -> None:
    values_SB = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 2.0, 4.0]])
    assert domain_aucs(values_SB, ["a", "a", "b", "b"]).tolist() == [1.0, 1.0, 0.5, 0.75]
    assert domain_aucs(values_SB, ["a"] * 4).tolist() == [0.5] * 4
