"""Random streams: pinned values, and a draw that depends on its four names alone."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_mc.parallel.streams import generator, permutation, uniforms


def test_values_are_pinned() -> None:
    """A change of these numbers changes every run: resumed runs would no longer equal uninterrupted ones."""
    assert uniforms(1, "rollout", 0, 0, 3).tolist() == [0.10951192372815544, 0.5596769481440321, 0.88968856733564]
    assert uniforms(1, "rollout", 2, 7, 2).tolist() == [0.6762874823302483, 0.527812152203074]
    assert permutation(1, "train", 0, 8).tolist() == [2, 3, 0, 1, 5, 4, 6, 7]


def test_the_order_of_draws_does_not_matter() -> None:
    keys = [
        (seed, purpose, step, item) for seed in (1, 2) for purpose in ("a", "b") for step in (0, 1) for item in (0, 1)
    ]
    forwards = {key: uniforms(*key, 4).tolist() for key in keys}
    backwards = {key: uniforms(*key, 4).tolist() for key in reversed(keys)}
    assert forwards == backwards
    assert len({tuple(values) for values in forwards.values()}) == len(keys), "two streams are the same"


def test_a_longer_draw_begins_with_the_shorter() -> None:
    assert uniforms(3, "rollout", 1, 5, 9)[:4].tolist() == uniforms(3, "rollout", 1, 5, 4).tolist()


@pytest.mark.parametrize(
    "other", [(11, "p", 1, 1), (1, "p1", 1, 1), (1, "p", 11, 1), (1, "p", 1, 11), (1, "p/1", 1, 1)]
)
def test_names_that_look_alike_are_other_streams(other: tuple[int, str, int, int]) -> None:
    assert uniforms(*other, 2).tolist() != uniforms(1, "p", 1, 1, 2).tolist()


def test_values_lie_in_the_unit_interval_and_are_spread() -> None:
    values = np.concatenate([uniforms(7, "rollout", step, item, 20) for step in range(10) for item in range(50)])
    assert values.dtype == np.float64 and values.min() >= 0.0 and values.max() < 1.0
    counts = np.histogram(values, bins=10, range=(0.0, 1.0))[0]
    assert abs(counts - 1000).max() < 150, counts


def test_a_permutation_holds_every_index_once() -> None:
    assert sorted(permutation(4, "epoch", 9, 101).tolist()) == list(range(101))
    assert permutation(4, "epoch", 9, 0).tolist() == []


def test_numpy_global_state_is_left_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    generator(1, "x").random(10)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
