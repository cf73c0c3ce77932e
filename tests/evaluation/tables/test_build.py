"""From games to a table: mirrored, repeatable, and sensible where there is little or nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gipo_mc.errors import DataError
from gipo_mc.evaluation.games import Game
from gipo_mc.evaluation.statistics.bootstrap import Interval
from gipo_mc.evaluation.tables.build import build_table
from gipo_mc.evaluation.tables.model import Cell, Evaluator, Table
from tests.evaluation.made_games import game, mirrored, pair, tournament


def evaluator(games: list[Game], draws: int = 300, seed: int = 0) -> Evaluator:
    (found,) = build_table(games, draws, seed).evaluators
    return found


def whole(games: list[Game]) -> Cell:
    (found,) = (cell for cell in evaluator(games).cells if cell.scope == "all")
    return found


def negated(found: Interval | None) -> Interval | None:
    return found and Interval(-found.value + 0.0, -found.high + 0.0, -found.low + 0.0)


def mirror_of(cell: Cell) -> Cell:
    test = replace(cell.sign_test, ours=cell.sign_test.theirs, theirs=cell.sign_test.ours)
    return replace(
        cell,
        wins=cell.losses,
        losses=cell.wins,
        win=cell.lose,
        lose=cell.win,
        margin=negated(cell.margin),
        simultaneous=negated(cell.simultaneous),
        controlled=negated(cell.controlled),
        sign_test=test,
        ours_length=cell.theirs_length,
        theirs_length=cell.ours_length,
    )


@pytest.mark.parametrize("repeats", [1, 3])
def test_exchanging_the_sides_mirrors_every_figure_exactly(repeats: int):
    games = tournament(240, ("ppo", "sft", "self"), seed=repeats, repeats=repeats)
    ours, theirs = evaluator(games), evaluator(mirrored(games))
    assert [cell.controlled for cell in ours.cells if cell.scope == "domain"]
    assert any(cell.simultaneous for cell in ours.cells)
    assert [mirror_of(cell) for cell in ours.cells] == theirs.cells
    other = {"worst": "best", "best": "worst"}
    key = ("opponent", "scope", "end", "label")
    expected = [replace(e, end=other[e.end], margin=negated(e.margin)) for e in ours.extremes]
    assert {e.scope for e in expected} == {"domain", "group"}
    assert sorted(expected, key=lambda e: [getattr(e, k) for k in key]) == sorted(
        theirs.extremes, key=lambda e: [getattr(e, k) for k in key]
    )
    assert {s.policy: negated(s.elo) for s in ours.strengths} == {s.policy: s.elo for s in theirs.strengths}


def test_the_same_seed_gives_the_same_bits_in_any_order_of_the_games():
    games = tournament(100, ("ppo", "sft"))
    shuffled = list(games)
    random.Random(0).shuffle(shuffled)
    shuffled.sort(key=lambda own: own.opponent)  # opponents stand in the order in which they come
    table = build_table(games, 200, 3)
    assert build_table(shuffled, 200, 3) == table
    assert build_table(games, 200, 4).evaluators[0].cells[0].margin != table.evaluators[0].cells[0].margin


def test_all_opponents_and_evaluators_share_the_draws():
    """Two opponents, or judges, with the same games on the same conversations have the same figures, intervals too."""
    games = [own for own in tournament(90, ("ppo",)) if own.outcome != "identical"]
    doubled = [*games, *(replace(own, opponent="sft", pair=own.pair.replace("ppo", "sft")) for own in games)]
    doubled += [replace(own, evaluator="second") for own in doubled]
    first, second = build_table(doubled, 200).evaluators
    assert [replace(cell, opponent="") for cell in first.cells[: len(first.cells) // 2]] == [
        replace(cell, opponent="") for cell in first.cells[len(first.cells) // 2 :]
    ]
    assert first.cells == second.cells and first.strengths == second.strengths


def test_counts_of_a_small_table_by_hand():
    names = {"a": "ww", "b": "wt", "c": "wl", "d": "ll", "e": "tt", "f": "==", "g": "wx", "h": "w ", "i": "ww"}
    games = [own for name, outcomes in names.items() for own in pair(outcomes, name)]
    cell = whole(games)
    assert (cell.pairs, cell.conversations, cell.games) == (7, 7, 12)
    assert (cell.wins, cell.tied, cell.losses) == (2, 4, 1)
    assert (cell.win.value, cell.tie.value, cell.lose.value) == (2 / 7, 4 / 7, 1 / 7)
    assert cell.margin.value == pytest.approx((1 + 0.5 + 0 - 1 + 0 + 0 + 1) / 7)
    ties = cell.ties
    assert (ties.both, ties.one, ties.flipped, ties.identical, ties.split) == (1, 1, 1, 1, 0)
    left = cell.left_out
    assert (left.invalid_games, left.invalid_pairs, left.other_order) == (1, 1, 1)
    assert (cell.sign_test.ours, cell.sign_test.theirs, cell.sign_test.p) == (3, 1, 10 / 16)
    assert cell.first is not None and cell.first.value == 6 / 9
    assert "fewer than 30 pairs" in cell.not_controlled


def test_the_sign_test_counts_conversations():
    games = [own for place in range(4) for own in pair("ww", f"a{place}", conversation="one")]
    games += [*pair("ll", "b", conversation="two"), *pair("ww", "c", conversation="two"), *pair("tl", "d")]
    cell = whole(games)
    assert (cell.sign_test.ours, cell.sign_test.theirs) == (1, 1)
    assert cell.conversations == 3 and cell.pairs == 7


def test_an_always_a_judge_ties_everything_and_is_called_out():
    games = [own for place in range(40) for own in pair("wl", f"p{place}")]
    found = evaluator(games)
    cell = found.cells[0]
    assert (cell.tie.value, cell.ties.flipped, cell.flipped_to_first) == (1.0, 40, 40)
    assert cell.margin.value == 0.0 and cell.first == Interval(1.0, cell.first.low, 1.0)  # type: ignore[union-attr]
    assert cell.sign_test.p == 1.0
    (note,) = found.notes
    assert "All 40 pairs tie because the verdict flips with the order" in note and "shown first" in note
    assert "shown second" in evaluator([own for place in range(40) for own in pair("lw", f"p{place}")]).notes[0]


def test_invalid_games_change_no_figure():
    games = [own for place in range(40) for own in pair("ww" if place % 3 else "ll", f"p{place}")]
    broken = [*games, *pair("xx", "q0"), *pair("xw", "q1"), *pair("lx", "q2")]
    # Their conversations are drawn too, which changes the intervals and nothing else.
    one, other = whole(games), whole(broken)
    assert other.left_out.invalid_games == 4 and other.left_out.invalid_pairs == 3
    for name in ("wins", "tied", "losses", "games", "sign_test", "ties"):
        assert getattr(one, name) == getattr(other, name)
    assert one.margin.value == other.margin.value
    assert "4 of 86 games have no valid verdict" in evaluator(broken).notes[0]


@pytest.mark.parametrize(
    ("outcomes", "win", "tie", "lose"),
    [("ll", 0.0, 0.0, 1.0), ("tt", 0.0, 1.0, 0.0), ("ww", 1.0, 0.0, 0.0)],
)
def test_zero_wins_and_all_ties_have_honest_intervals(outcomes: str, win: float, tie: float, lose: float):
    cell = whole([own for place in range(50) for own in pair(outcomes, f"p{place}")])
    assert (cell.win.value, cell.tie.value, cell.lose.value) == (win, tie, lose)
    room = 1 - 0.025 ** (1 / 50)
    for found in (cell.win, cell.tie, cell.lose):
        assert (found.low, found.high) == ((1 - room, 1.0) if found.value else (0.0, room))
    assert cell.margin.low < cell.margin.high
    assert cell.controlled is None and "same length" in cell.not_controlled


@pytest.mark.parametrize("count", [1, 5])
def test_one_conversation_says_next_to_nothing(count: int):
    found = evaluator([own for place in range(count) for own in pair("ww", f"p{place}", conversation="c")])
    cell = found.cells[0]
    assert (cell.pairs, cell.conversations, cell.win) == (count, 1, Interval(1.0, 1 - 0.975, 1.0))
    assert cell.sign_test.p == 1.0
    assert "met in 1 conversation only" in found.notes[-1]


def test_an_opponent_without_a_valid_game_is_shown_as_such():
    games = [*pair("xx", "a", opponent="ppo"), *pair("ww", "b", opponent="sft")]
    found = evaluator(games)
    assert [cell.opponent for cell in found.cells] == ["sft"]
    (none,) = found.unjudged
    assert (none.opponent, none.left_out.invalid_games, none.left_out.invalid_pairs) == ("ppo", 2, 1)
    nothing = evaluator(pair("xx"))
    assert nothing.cells == [] and len(nothing.unjudged) == 1
    with pytest.raises(DataError, match="no game"):
        build_table([])


def test_one_order_only_is_used_and_said():
    found = evaluator([own for place in range(30) for own in pair("w", f"p{place}")])
    assert found.design == "one order" and found.cells[0].wins == 30
    assert "shown in one order only" in found.notes[0]


def test_a_judge_that_scores_each_response_alone_has_no_order():
    games = [own for place in range(30) for own in pair("w", f"p{place}")]
    (found,) = build_table(games, 100, designs={"judge": "no order"}).evaluators
    assert found.design == "no order" and found.cells[0].wins == 30 and found.cells[0].first is None
    assert not any("order" in note for note in found.notes)


def test_what_is_not_asked_yet_is_said():
    games = [*pair("ww", "a"), *pair("w ", "b")]
    (found,) = build_table(games, 100, unasked={"judge": 1}).evaluators
    assert "1 comparison of this judge has no answer" in found.notes[0]
    assert "1 pair with a verdict in one order and none in the other yet is left out" in found.notes[1]
    # A judge of both orders that was stopped before any other order came.
    (found,) = build_table(pair("w "), 100, designs={"judge": "both orders"}).evaluators
    assert found.cells == [] and found.unjudged[0].left_out.other_order == 1
    (found,) = build_table(pair("w "), 100).evaluators
    assert found.cells[0].wins == 1


def test_people_are_one_evaluator():
    games = [
        game(outcome, evaluator=f"people:{name}", pair=f"p{place}", ours_first=place % 2 == 0)
        for place in range(30)
        for name, outcome in (("anna", "ours"), ("ben", "theirs" if place < 10 else "ours"))
    ]
    found = evaluator(games)
    assert (found.name, found.design, found.voters) == ("people", "people", 2)
    cell = found.cells[0]
    assert (cell.wins, cell.ties.split, cell.games) == (20, 10, 60)
    assert cell.margin.value == pytest.approx(2 / 3)


def test_holm_takes_the_cells_of_a_kind_and_not_the_policy_itself():
    cells = evaluator(tournament(150, ("ppo", "sft", "self"))).cells
    families = {scope: [c for c in cells if c.scope == scope and c.opponent != "self"] for scope in ("all", "domain")}
    assert [len(family) for family in families.values()] == [2, 6]
    for family in families.values():
        least = min(family, key=lambda cell: cell.sign_test.p)
        assert least.sign_test.holm == min(1.0, len(family) * least.sign_test.p)
    assert all(c.sign_test.holm is None for c in cells if c.opponent == "self" or c.scope == "group")
    assert [c.opponent for c in cells if c.scope == "all"] == ["ppo", "sft", "self"]


def test_a_policy_that_differs_from_itself_is_noticed():
    fair = [own for place in range(60) for own in pair(("ww", "ll")[place % 2], f"p{place}", opponent="self")]
    assert evaluator(fair).notes == []
    unfair = [own for place in range(60) for own in pair("ww", f"p{place}", opponent="self")]
    note, rare = evaluator(unfair).notes
    assert "0 lost against self" in rare
    assert "differs from its own second sample by +100.0 points" in note
    assert evaluator(unfair).strengths == [] and evaluator(unfair).extremes == []


def test_groups_are_chosen_on_one_half_and_reported_on_the_other():
    """Groups that are all alike: the worst of them, chosen and reported on the same pairs, would look bad."""
    worst = chosen_too = 0.0
    for seed in range(12):
        generator = random.Random(seed)
        games = []
        for place in range(400):
            outcomes = generator.choice(["ww", "ll", "tt"])
            games += pair(outcomes, f"p{place}", group=generator.randrange(5))
        found = evaluator(games, draws=100, seed=seed)
        (extreme,) = (e for e in found.extremes if e.end == "worst")
        assert 30 <= extreme.pairs <= 60
        worst += extreme.margin.value / 12
        chosen_too += min(c.margin.value for c in found.cells if c.scope == "group") / 12
    assert chosen_too < -0.08
    assert abs(worst) < 0.08


def test_few_pairs_have_no_worst_domain():
    def with_domains(count: int) -> Table:
        games = [own for p in range(count) for own in pair("wt", f"p{p}", domain="ab"[p % 2], group=p % 2)]
        return build_table(games, 100)

    assert [len(with_domains(count).evaluators[0].extremes) for count in (58, 60, 200)] == [0, 2, 4]
