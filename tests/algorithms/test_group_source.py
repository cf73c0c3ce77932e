"""Group probabilities that no classifier gives, and hard assignment."""

import pytest
import torch

from gipo_mc.algorithms.group_invariance import group_statistics, moments, relative_weight
from gipo_mc.algorithms.group_source import GroupSource, domain_probabilities, most_likely, threshold_probabilities

PHI = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.5, 0.5]])
REWARD = torch.tensor([1.0, -2.0, 3.0])
DOMAINS = ("easy", "hard", "easy")


def given(kind: str, groups: int = 2, **options):
    return GroupSource(kind, groups, **options)(PHI, REWARD, DOMAINS, 1.0)


def test_each_source_by_hand():
    assert torch.equal(given("classifier"), PHI)
    assert given("classifier", hard=True).tolist() == [[0, 1], [1, 0], [1, 0]]
    assert given("domain", domains=("easy", "hard")).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert given("domain", domains=("hard", "easy")).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert given("reward").tolist() == [[0, 1], [0, 1], [1, 0]], "equal to the mean is not above it"
    assert given("uniform", 4).tolist() == [[0.25] * 4] * 3
    assert given("none", 1).tolist() == [[1.0]] * 3


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kind", ["classifier", "domain", "reward", "uniform"])
def test_rows_sum_to_one_without_gradient(kind, hard):
    phi = PHI.clone().requires_grad_()
    probs = GroupSource(kind, 2, ("easy", "hard"), hard)(phi, REWARD, DOMAINS, 0.0)
    assert torch.equal(probs.sum(1), torch.ones(3)) and not probs.requires_grad and probs.dtype == torch.float32


def test_only_known_domains_are_an_oracle():
    assert [k for k in ("classifier", "none", "domain", "reward", "uniform") if GroupSource(k, 2).oracle] == ["domain"]


def test_a_domain_that_was_not_there_at_the_start():
    with pytest.raises(ValueError, match="ood are none of the 2"):
        domain_probabilities(["easy", "ood"], ("easy", "hard"))


def test_hard_assignment_is_a_group_statistic_of_counts():
    hard = most_likely(torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.1, 0.9]]))
    found = moments(*group_statistics(hard, torch.tensor([0.0, 3.0, 3.0, 6.0])), 4, "size")
    assert found.mass_M.tolist() == [3, 1] and found.objective_M.tolist() == [2, 6] and float(found.variance) == 3
    assert float(relative_weight(0.1, found, hard).mean()) == pytest.approx(1.0)


def test_threshold_compares_in_full_precision():
    reward = torch.tensor([0.1, 0.1])  # 0.1 in float32 is above 0.1
    assert threshold_probabilities(reward, 0.1)[:, 0].tolist() == [1, 1]
    assert threshold_probabilities(reward, float(reward.double().mean()))[:, 0].tolist() == [0, 0]
