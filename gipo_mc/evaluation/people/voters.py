"""How each person voted: what was judged, skipped and missed, attention, and agreement with oneself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gipo_mc.evaluation.people.key import Key
from gipo_mc.evaluation.people.votes import Vote


@dataclass(frozen=True)
class VoterReport:
    """One person on one page or several.

    judged, skipped, missing: pairs with a verdict, skipped, and without an answer, hidden ones included. attention,
    failed: attention pairs answered, and those where the side was not chosen that they ask for. repeats: pairs judged
    twice; same: with one verdict both times; same_side: with one side both times, though the sides were swapped.
    first_side: share of left among the decided votes of ordinary pairs, None without any. seconds: median of a pair.
    """

    voter: str
    pages: list[str]
    judged: int
    skipped: int
    missing: int
    attention: int
    failed: int
    repeats: int
    same: int
    same_side: int
    first_side: float | None
    seconds: float


def voter_reports(votes: Sequence[Vote], keys: Mapping[str, Key]) -> list[VoterReport]:
    """By name. keys: of every page in `votes`."""
    return [_report(name, [v for v in votes if v.voter == name], keys) for name in sorted({v.voter for v in votes})]


def _report(name: str, votes: Sequence[Vote], keys: Mapping[str, Key]) -> VoterReport:
    pages = sorted({vote.page for vote in votes})
    asked = [vote for vote in votes if vote.kind != "identical"]
    skipped = sum(vote.verdict == "skip" for vote in asked)
    answered = [vote for vote in asked if vote.kind == "attention" and vote.passed is not None]
    twice = _twice(asked)
    sides = [_side(vote) for vote in asked if vote.kind == "pair" and vote.verdict in ("ours", "theirs")]
    return VoterReport(
        voter=name,
        pages=pages,
        judged=len(asked) - skipped,
        skipped=skipped,
        missing=sum(len(keys[page].items) for page in pages) - len(asked),
        attention=len(answered),
        failed=sum(not vote.passed for vote in answered),
        repeats=len(twice),
        same=sum(first.verdict == second.verdict for first, second in twice),
        same_side=sum(_side(first) == _side(second) != "tie" for first, second in twice),
        first_side=sides.count("left") / len(sides) if sides else None,
        seconds=statistics.median(vote.seconds for vote in asked) if asked else 0.0,
    )


def _twice(votes: Sequence[Vote]) -> list[tuple[Vote, Vote]]:
    """Pairs and their hidden repeats, both judged."""
    first = {(vote.page, vote.pair): vote for vote in votes if vote.kind == "pair"}
    found = [(first.get((vote.page, vote.pair)), vote) for vote in votes if vote.kind == "repeat"]
    return [(one, two) for one, two in found if one and "skip" not in (one.verdict, two.verdict)]


def _side(vote: Vote) -> str:
    """Where the chosen response stood: left, right, or tie."""
    if vote.verdict == "tie":
        return "tie"
    return "left" if (vote.verdict == "ours") == vote.ours_first else "right"
