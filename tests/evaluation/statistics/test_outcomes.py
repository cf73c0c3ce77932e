"""What the games of a pair come to."""

from __future__ import annotations

import pytest

from gipo_mc.evaluation.statistics.outcomes import GRID, Design, Result, design_of, evaluator_of, results
from tests.evaluation.made_games import game, mirrored, pair


def only(outcomes: str, design: Design = "both orders", **fields: object) -> Result:
    (found,) = results(pair(outcomes, **fields), design)
    return found


@pytest.mark.parametrize(
    ("outcomes", "outcome", "cause", "margin"),
    [
        ("ww", 1, "", 1.0),
        ("ll", -1, "", -1.0),
        ("tt", 0, "both", 0.0),
        ("wt", 0, "one", 0.5),
        ("tl", 0, "one", -0.5),
        ("wl", 0, "flipped", 0.0),
        ("lw", 0, "flipped", 0.0),
        ("==", 0, "identical", 0.0),
        ("=", 0, "identical", 0.0),
        # Repeats: an order is won by its mean. Ours first w, w, l; theirs first t, w, w.
        ("wtwwlw", 1, "", (1 / 3 + 2 / 3) / 2),
        ("wwlw", 0, "one", 0.5),
        # One invalid repeat of several: the order still has a verdict.
        ("wwxw", 1, "", 1.0),
    ],
)
def test_a_judge_of_both_orders_decides_where_both_agree(outcomes: str, outcome: int, cause: str, margin: float):
    found = only(outcomes)
    assert (found.outcome, found.cause) == (outcome, cause)
    assert found.margin == round(margin * GRID)


@pytest.mark.parametrize("outcomes", ["wx", "xl", "xx", "xt", "wxwx"])
def test_a_pair_of_which_an_order_is_invalid_is_left_out(outcomes: str):
    found = only(outcomes)
    assert (found.outcome, found.cause, found.games, found.decided) == (None, "invalid", 0, 0)
    # In people's page the order is no part of the question.
    if outcomes == "wx":
        assert only(outcomes, "people").outcome == 1


def test_one_order_of_a_judge_of_both_is_left_out_until_the_other_is_there():
    assert only("w ").cause == "other order" and only("w ").outcome is None
    assert only("w ", "one order").outcome == 1
    assert only(" l", "one order").outcome == -1
    assert only("t", "one order").cause == "both"
    assert only("x", "one order").cause == "invalid"


def test_the_design_is_read_from_the_games():
    assert design_of("judge", [*pair("w ", "a"), *pair("wl", "b")]) == "both orders"
    assert design_of("judge", [*pair("w", "a"), *pair("==", "b")]) == "one order"
    assert design_of("judge", pair("==")) == "both orders"
    # The same pair id against two opponents is two pairs.
    assert design_of("judge", [*pair("w", opponent="a"), *pair(" w", opponent="b")]) == "one order"
    assert design_of("people", pair("wl")) == "people"
    assert evaluator_of(game(evaluator="people:anna")) == "people"
    assert evaluator_of(game(evaluator="peoples")) == "peoples"


@pytest.mark.parametrize(
    ("votes", "outcome", "cause", "margin"),
    [
        ("w", 1, "", 1.0),
        ("wlw", 1, "", 1 / 3),
        ("wl", 0, "split", 0.0),
        ("tt", 0, "both", 0.0),
        ("wt", 1, "", 0.5),
        ("wlt", 0, "split", 0.0),
    ],
)
def test_the_votes_of_people_are_one_poll(votes: str, outcome: int, cause: str, margin: float):
    found = only(votes, "people")
    assert (found.outcome, found.cause, found.margin) == (outcome, cause, round(margin * GRID))


def test_position_counts_decided_games_whoever_is_ours():
    games = [*pair("wl", "a"), *pair("lw", "b"), *pair("ww", "c"), *pair("tt", "d"), *pair("wx", "e")]
    for side in (games, mirrored(games)):
        found = results(side, "both orders")
        assert [result.first_won for result in found] == [2, 0, 1, 0, 0]
        assert [result.decided for result in found] == [2, 2, 2, 0, 0]
        assert [result.to_first for result in found] == [True, False, False, False, False]
