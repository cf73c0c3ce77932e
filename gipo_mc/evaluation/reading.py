"""An evaluation's folder as games: what judges and people said of each pair, in the order of the pairs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from gipo_mc.evaluation.games import Game, Outcome
from gipo_mc.evaluation.judges.journal import INVALID, Entry, Setup, read_entries, read_setups
from gipo_mc.evaluation.judges.questions import comparisons
from gipo_mc.evaluation.pairs import Pair, read_pairs
from gipo_mc.evaluation.people.votes import people_games, read_votes


class Judged:
    """What the folder of an evaluation holds. Each file is read once, when it is first asked for; that raises DataError
    where the folder is none of an evaluation, or the file is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def pairs(self) -> list[Pair]:
        return read_pairs(self.folder)

    @cached_property
    def setups(self) -> list[Setup]:
        """What each judge was asked last (model, prompt, server, settings)."""
        return read_setups(self.folder)

    @cached_property
    def entries(self) -> list[Entry]:
        """Every verdict of the journal, also those that were given to what a judge was asked before."""
        return read_entries(self.folder)

    @cached_property
    def games(self) -> list[Game]:
        """All games of the pairs that pairs.jsonl holds now: judges in the order in which they first came, then people
        by name; for each the pairs in their order, so that the order in which answers came changes nothing.

        Of a judge only verdicts count that were given to what it was asked last. A comparison that nobody has answered
        yet is no game.
        """
        pairs = self.pairs
        given = {entry.place: entry.verdict for entry in self.entries}
        invalid = {entry.place for entry in read_entries(self.folder, INVALID)}
        games = []
        for setup in self.setups:
            for comparison in comparisons(pairs, setup):
                pair = comparison.pair
                place = (setup.setup, pair.pair, comparison.ours_first, comparison.repeat)
                outcome: Outcome | None = "identical" if pair.identical else given.get(place)
                if outcome is None and place in invalid:
                    outcome = "invalid"
                if outcome is not None:
                    games.append(pair.game(setup.evaluator, comparison.ours_first, comparison.repeat, outcome))
        return games + people_games(read_votes(self.folder), pairs)

    @cached_property
    def unasked(self) -> dict[str, int]:
        """Comparisons by judge that have no answer yet: a run that ended early left them."""
        total = {setup.evaluator: len(comparisons(self.pairs, setup)) for setup in self.setups}
        for game in self.games:
            if game.evaluator in total:
                total[game.evaluator] -= 1
        return total


def games_of(folder: Path) -> list[Game]:
    """The games of an evaluation's folder. Raises DataError."""
    return Judged(folder).games
