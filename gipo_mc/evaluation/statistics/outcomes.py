"""From games to one result for each pair and evaluator: win, tie or lose, its cause, and the margin of its games.

A judge that shows both orders decides a pair only where both orders agree; everything else is a tie with a cause. The
margin is the mean over both orders, so that it does not lose what such ties hide. People see a pair in a random order:
their votes on it count as one poll.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gipo_mc.evaluation.games import PEOPLE, Game

#: Margins and all that is summed over draws are integers in units of 1/GRID: their sums are exact in any order, so that
#: neither threads nor the instruction set change a bit. Divisible by 2 and by all of 1 to 16: the mean over two orders
#: of up to 16 repeats each is exact, that of more repeats right to 4e-7.
GRID = 1_441_440

#: The opponent label of the policy's own second sample.
SELF = "self"

#: "no order": each response was scored alone.
Design = Literal["both orders", "one order", "no order", "people"]
Cause = Literal["", "both", "one", "flipped", "identical", "split", "invalid", "other order"]
_SCORE = {"ours": 1, "tie": 0, "theirs": -1}


@dataclass(frozen=True)
class Result:
    """What the games of one pair come to.

    outcome: 1 win, 0 tie, -1 lose; None where the pair is left out. margin: mean score of the games in units of 1/GRID.
    cause: of a tie: "both" (no order, or no vote, has a winner), "one" (one order has), "flipped" (each order another),
    "identical" (the same text), "split" (the votes of people cancel out). Of a pair left out: "invalid" (an order has
    no valid game), "other order" (one order is there, and this judge is shown both). Else "".
    first_won, decided: games that the response shown first won; that have a winner. to_first: a flipped pair whose
    games both went to the response shown first. games: valid games used. lengths: tokens of both responses.
    """

    pair: str
    conversation: str
    opponent: str
    domain: str
    group: int | None
    outcome: int | None
    cause: Cause
    margin: int = 0
    games: int = 0
    first_won: int = 0
    decided: int = 0
    to_first: bool = False
    ours_length: int = 0
    theirs_length: int = 0


def is_person(evaluator: str) -> bool:
    """Is this the name of one of the people?"""
    return evaluator.startswith(f"{PEOPLE}:")


def evaluator_of(game: Game) -> str:
    """The evaluator that a game counts for: all people are one."""
    return PEOPLE if is_person(game.evaluator) else game.evaluator


def by_evaluator(games: Iterable[Game]) -> dict[str, list[Game]]:
    """The games that count for each evaluator, in their order; evaluators as they first come."""
    found: dict[str, list[Game]] = {}
    for game in games:
        found.setdefault(evaluator_of(game), []).append(game)
    return found


def design_of(evaluator: str, games: Iterable[Game]) -> Design:
    """How the evaluator was asked. One pair shown in both orders makes it a judge of both orders."""
    if evaluator == PEOPLE:
        return "people"
    orders: dict[tuple[str, str], set[bool]] = {}
    for game in games:
        if game.outcome != "identical":  # nobody was shown anything
            orders.setdefault((game.opponent, game.pair), set()).add(game.ours_first)
    return "both orders" if not orders or any(len(seen) == 2 for seen in orders.values()) else "one order"


def results(games: Sequence[Game], design: Design) -> list[Result]:
    """One result for each pair of one evaluator, by opponent and pair. games: all of that evaluator."""
    pairs: dict[tuple[str, str], list[Game]] = {}
    for game in games:
        pairs.setdefault((game.opponent, game.pair), []).append(game)
    return [_result(pairs[key], design) for key in sorted(pairs)]


def _result(games: Sequence[Game], design: Design) -> Result:
    valid = [game for game in games if game.outcome != "invalid"]
    if any(game.outcome == "identical" for game in valid):
        return _made(games[0], 0, "identical")
    asked = {game.ours_first for game in games}
    left = {game.ours_first for game in valid}
    if not left or (left != asked and design != "people"):
        return _made(games[0], None, "invalid")
    if design == "both orders" and len(asked) == 1:
        return _made(games[0], None, "other order")
    scores = {order: [_SCORE[game.outcome] for game in valid if game.ours_first is order] for order in left}
    means = [sum(found) / len(found) for found in scores.values()]
    if design == "people":
        means = [sum(map(sum, scores.values())) / len(valid)]
    outcome, cause = _decided([(mean > 0) - (mean < 0) for mean in means])
    if design == "people" and outcome == 0 and any(game.outcome != "tie" for game in valid):
        cause = "split"
    winners = [game for game in valid if game.outcome != "tie"]
    first_won = sum((game.outcome == "ours") == game.ours_first for game in winners)
    return _made(
        games[0],
        outcome,
        cause,
        margin=round(GRID * (sum(means) / len(means))),
        games=len(valid),
        first_won=first_won,
        decided=len(winners),
        to_first=cause == "flipped" and sum(scores[True]) > 0,
    )


def _decided(orders: Sequence[int]) -> tuple[int, Cause]:
    """(outcome, cause) of the orders' winners, 1, 0 or -1 each."""
    if len(set(orders)) == 1:
        return orders[0], "" if orders[0] else "both"
    return 0, "one" if 0 in orders else "flipped"


def _made(game: Game, outcome: int | None, cause: Cause, **found: int) -> Result:
    return Result(
        pair=game.pair,
        conversation=game.conversation,
        opponent=game.opponent,
        domain=game.domain,
        group=game.group,
        outcome=outcome,
        cause=cause,
        ours_length=game.ours_length,
        theirs_length=game.theirs_length,
        **found,  # type: ignore[arg-type]
    )
