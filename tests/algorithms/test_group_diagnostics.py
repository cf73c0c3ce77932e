"""What is logged of the groups, and what is said when they are not well."""

import math

import pytest
import torch

from gipo_mc.algorithms.group_diagnostics import ALARMS, count_alarms, diagnostics, follow, off_warnings, warnings
from gipo_mc.algorithms.state import Health

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
PROBS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def example(**options):
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    reward = torch.tensor([0.0, 3.0, 3.0, 6.0])
    kl, length = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5, 5, 5, 9])
    domains = ["easy", "easy", "hard", "hard"]
    return diagnostics(probs, reward, kl, length, domains, **options)


def test_diagnostics_by_hand():
    metrics = example(best_group=1, beta=0.1)
    expected = {
        "group/0/mass": 0.75, "group/1/mass": 0.25,
        "group/0/reward": 2.0, "group/1/reward": 6.0,
        "group/0/objective": 2.0, "group/1/objective": 6.0,
        "group/0/kl": 2.0, "group/1/kl": 4.0,
        "group/variance": 3.0, "group/entropy": 0.0, "group/explained_share": 3 / 4.5,
        "group/weight_min": 0.4, "group/weight_negative": 0.0,
        "group/p_high": 0.25, "group/reward_correlation": 4 * 0.1875 / math.sqrt(0.1875 * 4.5),
        "group/length_correlation": 1.0, "group/reward_beyond_length": 0.0,
        "worst/group_reward": 2.0,
        "group/domain_auc": 0.75,
        # joint (1/2, 0; 1/4, 1/4)
        "group/domain_information": 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2),
        "group/reward_correlation/easy": 0.0, "group/length_correlation/easy": 0.0,
        "group/reward_correlation/hard": 1.0, "group/length_correlation/hard": 1.0,
    }  # fmt: skip
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    assert all(type(value) is float for value in metrics.values())


def test_diagnostics_use_the_signal_and_the_bounds():
    metrics = example(signal_B=torch.tensor([1.0, 1.0, 1.0, 2.0]), weights="population")
    assert metrics["group/1/objective"] == 2.0 and metrics["group/1/reward"] == 6.0
    assert metrics["group/variance"] == pytest.approx(0.25)
    unbounded, bounded = example(beta=1.0), example(beta=1.0, cap=0.8)
    assert unbounded["group/weight_negative"] == 0.25 and unbounded["group/weight_min"] == pytest.approx(-5.0)
    assert bounded["group/weight_negative"] == 0.0 and bounded["group/weight_min"] == pytest.approx(0.2)
    assert example(beta=1.0, mass_floor=0.3)["group/weight_min"] == 1.0


@pytest.mark.parametrize("groups", [1, 2, 6])
@dtypes
def test_diagnostics_of_degenerate_batches_are_finite(groups, dtype):
    one_sided = torch.zeros(4, groups, dtype=dtype)
    one_sided[:, 0] = 1
    same = torch.full((4,), 0.1, dtype=dtype)
    for probs, weights in ((one_sided, "size"), (one_sided, "population"), (one_sided[:1], "size")):
        rows = len(probs)
        metrics = diagnostics(
            probs, same[:rows], same[:rows], torch.full((rows,), 3), ["a", "a", "b", "b"][:rows],
            best_group=groups - 1, weights=weights, beta=0.3, mass_floor=0.05, cap=0.8,
        )  # fmt: skip
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["group/0/mass"] == 1.0 and metrics["group/variance"] == pytest.approx(0.0, abs=1e-14)
        assert metrics["group/weight_min"] == pytest.approx(1.0)
    assert diagnostics(one_sided[:0], same[:0], same[:0], same[:0], []) == {}


def test_diagnostics_check_the_labels():
    with pytest.raises(ValueError, match="1 domain labels for 3 sequences"):
        diagnostics(PROBS, torch.ones(3), torch.ones(3), torch.ones(3), ["a"])


HEALTHY = {
    "group/0/mass": 0.4, "group/1/mass": 0.6, "group/reward_correlation": 0.4, "group/weight_negative": 0.0,
    "group/weight_min": 0.5, "group/length_correlation": 0.3, "group/reward_beyond_length": 0.3,
}  # fmt: skip
ILL = {
    "collapsed": ({"group/0/mass": 0.04, "group/1/mass": 0.96}, 20, ["collapsed", "20 iterations", "95%"]),
    "empty": ({"group/0/mass": 0.4, "group/1/mass": 0.595, "group/2/mass": 0.005}, 20, ["Group 2 is empty"]),
    "length_only": (
        {"group/length_correlation": -0.9, "group/reward_beyond_length": 0.1}, 10, ["length", "-0.90", "0.10"]
    ),
    "wrong_best": ({"group/reward_correlation": -0.25}, 5, ["Group 1", "-0.25"]),
    "unlearns": ({"group/weight_negative": 0.02, "group/weight_min": -0.3}, 1, ["2.0%", "-0.30"]),
}  # fmt: skip


def live(metrics, steps, alarms=None, inferred=True):
    """What is said in each of `steps` iterations with the same metrics, and the counts after them."""
    said, alarms = [], alarms or {}
    for _ in range(steps):
        alarms = count_alarms(alarms, metrics, inferred)
        said.append(warnings(alarms, metrics, 1))
    return said, alarms


def test_nothing_is_said_of_healthy_groups():
    said, alarms = live(HEALTHY, 60)
    assert not any(said) and set(alarms) == set(ILL) == set(ALARMS) and not any(alarms.values())


@pytest.mark.parametrize("name", list(ILL))
def test_an_alarm_waits_is_said_and_is_not_repeated_at_once(name):
    change, patience, words = ILL[name]
    said, alarms = live(HEALTHY | change, patience + 45)
    spoken = [step + 1 for step, texts in enumerate(said) if texts]
    assert spoken == [patience, patience + 20, patience + 40]
    (text,) = said[patience - 1]
    assert all(word in text for word in words), text
    assert text.endswith(".") and "algorithm." in text, "it says what to do"
    assert live(HEALTHY, 1, alarms)[1][name] == 0, "counts are of iterations in a row"


def test_alarms_about_a_classifier_are_about_a_classifier():
    for name in ("collapsed", "empty", "length_only"):
        assert not any(live(HEALTHY | ILL[name][0], 30, inferred=False)[0])
    assert any(live(HEALTHY | ILL["unlearns"][0], 1, inferred=False)[0])


def test_length_that_pays_is_no_alarm():
    paid = HEALTHY | {"group/length_correlation": 0.9, "group/reward_beyond_length": 0.6}
    assert not any(live(paid, 30)[0])


def test_one_group_has_no_alarms():
    assert count_alarms({}, {"group/reward_correlation": -1.0}, True) == {}
    assert count_alarms({}, {"group/0/mass": 1.0}, True) == {}


def test_collapse_is_noticed_by_running_into_it():
    probs, reward = torch.tensor([[0.99, 0.01]] * 32), torch.arange(32.0)
    metrics = diagnostics(probs, reward, reward, reward, ["a"] * 32, best_group=0)
    said, _ = live(metrics, 20)
    assert not any(said[:19]) and "collapsed" in said[19][0]


def test_groups_by_length_alone_are_noticed():
    g = torch.Generator().manual_seed(0)
    length, reward = torch.randint(5, 50, (64,), generator=g), torch.randn(64, generator=g)
    high = (length > length.float().median()).float() * 0.9 + 0.05
    metrics = diagnostics(
        torch.stack([high, 1 - high], 1), reward, reward, length, ["a"] * 64, best_group=0
    )  # fmt: skip
    assert metrics["group/length_correlation"] > 0.8
    assert any("length" in text for texts in live(metrics, 10)[0] for text in texts)


def test_a_method_that_is_in_effect_off_is_said_in_words():
    health, said = Health(), []
    for value in [0.5, 0.4, 0.6] + [1e-5] * 30:
        health = follow(health, {"group_variance": value, "kl_weights": 0.1})
        said.append(off_warnings(health, {"group_variance": value, "kl_weights": 0.1}))
    spoken = [step for step, texts in enumerate(said) if texts]
    assert spoken == [3 + 4, 3 + 24], "after 5 iterations, and again after 20"
    (text,) = said[7]
    assert "R_var, the variance between the groups, has been under a thousandth of its usual size for 5" in text
    assert " (now 1e-05" in text


def test_what_grows_varies_or_never_was_is_not_off():
    health = Health()
    for step in range(60):
        spreads = {"grows": 1e-9 * 2.0**step, "varies": 10.0 ** (step % 3 - 2), "never": 0.0}
        health = follow(health, spreads)
        assert off_warnings(health, spreads) == []
    # One huge number counts ten times the usual, so what is usual again is not taken for off.
    health = follow(Health(usual={"group_variance": 0.5}), {"group_variance": 1e30})
    assert follow(health, {"R_var": 0.5}).counts == {}
