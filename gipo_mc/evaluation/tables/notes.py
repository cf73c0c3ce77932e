"""Sentences that a reader of an evaluator's figures must know."""

from __future__ import annotations

from collections.abc import Sequence

from gipo_mc.evaluation.games import Game
from gipo_mc.evaluation.statistics.outcomes import SELF, Design
from gipo_mc.evaluation.tables.model import Cell
from gipo_mc.run.jsonl import printable

#: From this share of flipped pairs on, order decides too much to leave it unsaid; published judges flip about 13 %.
_MANY_FLIPS = 0.25
#: Fewer conversations than this: the intervals rest on too little.
_FEW = 30
#: Fewer events than this: chance alone may show none (with 2.5 %, where 3.7 are expected), so that the upper end of the
#: share's interval cannot be too low, and the interval holds the truth more often than it says.
_RARE = 4


def notes_of(design: Design, cells: Sequence[Cell], games: Sequence[Game], unasked: int) -> list[str]:
    """Notes of one evaluator. unasked: comparisons without an answer yet."""
    whole = [cell for cell in cells if cell.scope == "all"]
    return [
        *_without_verdict(design, games),
        *_unasked(unasked),
        *_orders(design, whole),
        *_first(design, whole),
        *_itself(whole),
        *_small(whole),
        *_rare(whole),
    ]


def _without_verdict(design: Design, games: Sequence[Game]) -> list[str]:
    invalid = sum(game.outcome == "invalid" for game in games)
    if not invalid:
        return []
    whose = ", and the pairs of which they were an order," if design == "both orders" else ""
    return [f"{invalid:,} of {len(games):,} games have no valid verdict. They{whose} are in no other figure."]


def _unasked(unasked: int) -> list[str]:
    if not unasked:
        return []
    return [
        f"{unasked:,} comparison{'s' * (unasked != 1)} of this judge {'has' if unasked == 1 else 'have'} no answer: "
        "the same `gipo-mc evaluate judge` again goes on."
    ]


def _orders(design: Design, whole: Sequence[Cell]) -> list[str]:
    found = []
    if design == "one order":
        found.append(
            "Each pair was shown in one order only: a judge that favours a place counts for or against us, and the "
            "figures are not those of a judge of both orders."
        )
    missing = sum(cell.left_out.other_order for cell in whole)
    if missing:
        found.append(
            f"{missing:,} pair{'s' * (missing != 1)} with a verdict in one order and none in the other yet "
            f"{'are' if missing != 1 else 'is'} left out."
        )
    return found


def _first(design: Design, whole: Sequence[Cell]) -> list[str]:
    pairs = sum(cell.pairs - cell.ties.identical for cell in whole)
    flipped = sum(cell.ties.flipped for cell in whole)
    to_first = sum(cell.flipped_to_first for cell in whole)
    if design != "both orders" or not pairs:
        return []
    place = "first" if 2 * to_first >= flipped else "second"
    count = to_first if place == "first" else flipped - to_first
    if flipped == pairs:
        return [
            f"All {pairs:,} pairs tie because the verdict flips with the order ({count:,} for the response shown "
            f"{place}): this judge says nothing of the policies."
        ]
    if flipped >= _MANY_FLIPS * pairs:
        return [
            f"{100 * flipped / pairs:.0f} % of the pairs tie because the verdict flips with the order ({count:,} of "
            f"{flipped:,} for the response shown {place}): read the margin, which keeps what such ties hide."
        ]
    return []


def _itself(whole: Sequence[Cell]) -> list[str]:
    """The calibration row: two samples of one policy are as good as each other."""
    for cell in whole:
        if cell.opponent == SELF and not cell.margin.low <= 0 <= cell.margin.high:
            return [
                f"The policy differs from its own second sample by {100 * cell.margin.value:+.1f} points "
                f"({100 * cell.margin.low:+.1f} to {100 * cell.margin.high:+.1f}), which should be 0: look for another "
                "temperature, length limit or template in one of the two files before trusting the rest."
            ]
    return []


def _small(whole: Sequence[Cell]) -> list[str]:
    least = min((cell.conversations for cell in whole), default=_FEW)
    if least >= _FEW:
        return []
    return [f"An opponent was met in {least} conversation{'s' * (least != 1)} only: its intervals are rough."]


def _rare(whole: Sequence[Cell]) -> list[str]:
    rare = [
        f"{count} {verb} against {printable(cell.opponent)}"
        for cell in whole
        if cell.conversations >= _FEW and cell.wins + cell.losses
        for count, verb in ((cell.wins, "won"), (cell.losses, "lost"))
        if count < _RARE
    ]
    if not rare:
        return []
    return [
        f"Pairs {', '.join(rare)}: intervals of shares with so few pairs hold the truth more often than 95 %, and "
        "cannot be narrower and still hold it so often."
    ]
