"""Samples of an evaluation, side by side: both responses, every verdict on them in each order, and its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gipo_mc.evaluation.games import Game
from gipo_mc.evaluation.judges.journal import Entry, Setup
from gipo_mc.evaluation.pairs import Pair
from gipo_mc.evaluation.reading import Judged
from gipo_mc.evaluation.statistics.outcomes import by_evaluator, design_of, is_person, results
from gipo_mc.report.texts import prompt_shown, readable

#: Characters of a response and of a judge's reason; a box on the page scrolls.
RESPONSE_SHOWN, REASON_SHOWN = 4000, 1500
#: Pairs of each kind against each opponent.
_SHOWN = {"Ours wins": 2, "Theirs wins": 2, "The verdict flips with the order": 1, "Tie": 1}


@dataclass(frozen=True)
class ShownVerdict:
    """One verdict of a judge. order: which response was shown first, "" to a judge that sees none. verdict: "ours",
    "theirs" or "tie"."""

    evaluator: str
    order: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class ShownPair:
    """A pair as the page shows it. why: what it is an example of. people: their votes in words, "" without any."""

    why: str
    opponent: str
    domain: str
    prompt: str
    ours: str
    theirs: str
    ours_tokens: int
    theirs_tokens: int
    verdicts: list[ShownVerdict]
    people: str


def chosen_pairs(judged: Judged) -> list[ShownPair]:
    """Some pairs of each kind against each opponent, in turn from each domain, by the verdicts of the evaluator that
    says most. Raises DataError where the journal is damaged."""
    pairs, games = judged.pairs, judged.games
    kinds = _kinds(games)
    setups = {setup.setup: setup for setup in judged.setups}
    verdicts: dict[str, list[Entry]] = {}
    for entry in judged.entries:
        if entry.setup in setups:
            verdicts.setdefault(entry.pair, []).append(entry)
    for found in verdicts.values():
        found.sort(key=lambda entry: (entry.evaluator, entry.repeat, not entry.ours_first))
    votes: dict[str, list[str]] = {}
    for game in games:
        if is_person(game.evaluator):
            votes.setdefault(game.pair, []).append(game.outcome)
    shown = []
    for opponent in dict.fromkeys(pair.opponent for pair in pairs):
        own = [pair for pair in pairs if pair.opponent == opponent]
        for why, count in _SHOWN.items():
            for pair in _in_turn([pair for pair in own if kinds.get(pair.pair) == why])[:count]:
                said = [_verdict(entry, setups[entry.setup]) for entry in verdicts.get(pair.pair, [])]
                shown.append(_shown(why, pair, said, votes.get(pair.pair, [])))
    return shown


def _kinds(games: Sequence[Game]) -> dict[str, str]:
    """Pair -> what it is an example of, one of `_SHOWN`."""
    if not games:
        return {}
    name, own = max(by_evaluator(games).items(), key=lambda item: len(item[1]))
    won = {1: "Ours wins", -1: "Theirs wins"}
    return {
        found.pair: won.get(found.outcome)
        or ("The verdict flips with the order" if found.cause == "flipped" else "Tie")
        for found in results(own, design_of(name, own))
        if found.outcome is not None and found.cause != "identical"
    }


def _in_turn(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, one of each domain after the other."""
    rank: dict[str, int] = {}
    keys = []
    for pair in pairs:
        rank[pair.domain] = rank.get(pair.domain, 0) + 1
        keys.append(rank[pair.domain])
    return [pair for _, pair in sorted(zip(keys, pairs), key=lambda item: item[0])]


def _verdict(entry: Entry, setup: Setup) -> ShownVerdict:
    order = "ours first" if entry.ours_first else "theirs first"
    return ShownVerdict(
        readable(entry.evaluator),
        order if setup.sees_order else "",
        entry.verdict or "",
        _cut(entry.reason.strip(), REASON_SHOWN),
    )


def _shown(why: str, pair: Pair, verdicts: Sequence[ShownVerdict], votes: Sequence[str]) -> ShownPair:
    counts = [(votes.count(side), side) for side in ("ours", "tie", "theirs") if side in votes]
    return ShownPair(
        why=why,
        opponent=readable(pair.opponent),
        domain=readable(pair.domain),
        prompt=prompt_shown(pair.prompt.strip()),
        ours=_cut(pair.ours.strip(), RESPONSE_SHOWN),
        theirs=_cut(pair.theirs.strip(), RESPONSE_SHOWN),
        ours_tokens=pair.ours_tokens,
        theirs_tokens=pair.theirs_tokens,
        verdicts=list(verdicts),
        people=", ".join(f"{count} for {side}" if side != "tie" else f"{count} tie" for count, side in counts),
    )


def _cut(text: str, length: int) -> str:
    text = readable(text)
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more characters)"
