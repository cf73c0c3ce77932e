"""Who agrees with whom: games to couples of evaluators, by values that are counted by hand."""

from __future__ import annotations

import pytest

from gipo_mc.evaluation.games import Game
from gipo_mc.evaluation.people.agree import agreement_of, pair_verdicts


def _game(evaluator: str, number: int, outcome: str, ours_first: bool = True, repeat: int = 0) -> Game:
    return Game(str(number), f"c{number}", "sft", evaluator, "", None, ours_first, repeat, outcome, 1, 1)  # type: ignore[arg-type]


def _games(evaluator: str, outcomes: str, letters: str = "wtli-") -> list[Game]:
    names = dict(zip(letters, ("ours", "tie", "theirs", "identical", None), strict=True))
    return [_game(evaluator, i, names[each]) for i, each in enumerate(outcomes) if names[each]]


def test_a_judges_orders_are_one_verdict():
    games = [
        _game("j", 0, "ours"), _game("j", 0, "ours", False),
        _game("j", 1, "ours"), _game("j", 1, "theirs", False),
        _game("j", 2, "tie"), _game("j", 2, "theirs", False),
        _game("j", 3, "theirs"), _game("j", 3, "theirs", False),
        _game("j", 4, "ours"), _game("j", 4, "invalid", False),
        _game("j", 5, "identical"),
    ]  # fmt: skip
    assert pair_verdicts(games) == {"j": {"0": 2, "1": 1, "2": 1, "3": 0}}


def test_people_are_one_evaluator_too():
    # By pair: one vote; even; one to a tie; two to one; a tie against two; and three that are all different.
    games = _games("people:a", "wwwwtw") + _games("people:b", "-ltwlt") + _games("people:c", "---lll")
    assert pair_verdicts(games)["people"] == {"0": 2, "1": 1, "2": 2, "3": 2, "4": 0, "5": 1}
    assert len(pair_verdicts(games)) == 4


def test_two_people():
    # ten pairs, nine of both: alike in w w w t l (5 of 9); where neither ties: w-w 3, l-l 1, w-l 2: 4 of 6.
    found = agreement_of(_games("people:a", "wwwtlwwtt-") + _games("people:b", "wwwtlllww-"), draws=0)
    (couple,) = found.couples
    assert (couple.first, couple.second, couple.pairs, couple.decided_pairs) == ("people:a", "people:b", 9, 6)
    assert couple.percent.value == pytest.approx(5 / 9) and couple.decided.value == pytest.approx(4 / 6)
    # Margins of a: w 5, t 3, l 1; of b: w 5, t 1, l 3. Chance (25 + 3 + 3) / 81. kappa = (45 - 31) / (81 - 31).
    assert couple.kappa.value == pytest.approx(14 / 50)
    # Fleiss takes the margins together: w 10, t 4, l 4 of 18: chance (100 + 16 + 16) / 324.
    assert found.among is not None and found.among.pairs == 9 and found.among.people == ["people:a", "people:b"]
    assert found.among.kappa.value == pytest.approx((5 / 9 - 132 / 324) / (1 - 132 / 324))
    # alpha: n = 18, 8 ratings in disagreeing units; 1 - 17 * 8 / (324 - 132)
    assert couple.alpha.value == found.among.alpha.value == pytest.approx(1 - 17 * 8 / 192)
    assert couple.percent.low is None


def test_three_people_of_whom_some_left_pairs_out():
    games = _games("people:a", "wwl-") + _games("people:b", "wl-w") + _games("people:c", "w-lt")
    found = agreement_of(games, draws=0)
    assert found.among is not None and found.among.pairs == 4
    assert found.among.percent.value == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert [couple.pairs for couple in found.couples] == [2, 2, 2]


def test_people_and_judges():
    games = [
        *_games("people:a", "wwtl"), *_games("people:b", "wltl"), *_games("gpt", "wwwl"),
    ]  # fmt: skip
    found = agreement_of(games, draws=200)
    couples = {(c.first, c.second): c for c in found.couples}
    assert list(couples) == [("people:a", "people:b"), ("gpt", "people"), ("gpt", "people:a"), ("gpt", "people:b")]
    assert couples["gpt", "people"].percent.value == 0.5 and couples["gpt", "people:a"].percent.value == 0.75
    interval = couples["gpt", "people"].percent
    assert interval.low is not None and interval.high is not None and interval.low < 0.5 < interval.high
    assert found == agreement_of(games, draws=200), "the same seed, the same bits"
    assert agreement_of(_games("gpt", "wl"), draws=10).couples == [], "without people there is nothing to compare"


def test_agreement_mirrors():
    """Which policy is called ours changes nothing."""
    a, b = "wwtlwltwtlwwlltwwl", "wltlwwtwllwtlltwwt"
    swapped = str.maketrans("wl", "lw")
    one = agreement_of(_games("people:a", a) + _games("people:b", b), draws=300)
    two = agreement_of(_games("people:a", a.translate(swapped)) + _games("people:b", b.translate(swapped)), draws=300)
    for left, right in zip(one.couples, two.couples, strict=True):
        for name in ("percent", "decided", "kappa", "alpha", "ordinal_alpha"):
            x, y = getattr(left, name), getattr(right, name)
            assert (x.value, x.low, x.high) == pytest.approx((y.value, y.low, y.high), abs=1e-12)


def test_identical_pairs_count_for_nobody():
    found = agreement_of(_games("people:a", "wiil") + _games("people:b", "wiiw"), draws=0)
    assert found.couples[0].pairs == 2 and found.couples[0].percent.value == 0.5
