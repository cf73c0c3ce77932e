"""An evaluation's folder as games: what judges and people said of each pair, in the order of the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gipo_mc.evaluation.games import Game, Outcome
from gipo_mc.evaluation.judges.journal import INVALID, read_entries, read_setups
from gipo_mc.evaluation.judges.questions import comparisons
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.evaluation.people.votes import people_games, read_votes


def games_of(folder: Path) -> list[Game]:
    """All games of the pairs that pairs.jsonl holds now: judges in the order in which they first came, then people by
    name; for each the pairs in their order, so that the order in which answers came changes nothing.

    Of a judge only verdicts count that were given to what it was asked last (model, prompt, server, settings). A
    comparison that nobody has answered yet is no game. Raises DataError.
    """
    pairs = read_pairs(folder)
    given = {entry.place: entry.verdict for entry in read_entries(folder)}
    invalid = {entry.place for entry in read_entries(folder, INVALID)}
    games = []
    for setup in read_setups(folder):
        for comparison in comparisons(pairs, setup):
            pair = comparison.pair
            place = (setup.setup, pair.pair, comparison.ours_first, comparison.repeat)
            outcome: Outcome | None = "identical" if pair.identical else given.get(place)
            if outcome is None and place in invalid:
                outcome = "invalid"
            if outcome is not None:
                games.append(pair.game(setup.evaluator, comparison.ours_first, comparison.repeat, outcome))
    return games + people_games(read_votes(folder), pairs)


def unasked(folder: Path, games: Sequence[Game] | None = None) -> dict[str, int]:
    """Comparisons by judge that have no answer yet: a run that ended early left them. games: those of `games_of`, where
    they are read already. Raises DataError."""
    pairs = read_pairs(folder)
    total = {setup.evaluator: len(comparisons(pairs, setup)) for setup in read_setups(folder)}
    for game in games_of(folder) if games is None else games:
        if game.evaluator in total:
            total[game.evaluator] -= 1
    return total
