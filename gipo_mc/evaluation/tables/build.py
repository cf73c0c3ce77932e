"""Games of all evaluators to one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from gipo_mc.errors import DataError
from gipo_mc.evaluation.games import Game
from gipo_mc.evaluation.statistics.bootstrap import LEVEL, Draws, Interval, interval
from gipo_mc.evaluation.statistics.bradley_terry import ELO, strengths
from gipo_mc.evaluation.statistics.outcomes import SELF, Design, Result, by_evaluator, design_of, results
from gipo_mc.evaluation.tables.cells import LEAST_PAIRS, MARGIN, Measured, Part, cells_of, left_out, measure
from gipo_mc.evaluation.tables.model import VERSION, Cell, End, Evaluator, Extreme, Scope, Strength, Table, Unjudged
from gipo_mc.evaluation.tables.notes import notes_of

IntArray = npt.NDArray[np.int64]

#: Our policy's name among the strengths; opponents cannot have it.
OURS = "ours"


def build_table(
    games: Sequence[Game],
    draws: int = 10_000,
    seed: int = 0,
    designs: Mapping[str, Design] = MappingProxyType({}),
    unasked: Mapping[str, int] = MappingProxyType({}),
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Table:
    """Everything that the games say, evaluators and opponents in the order in which they first come. No figure depends
    on the order of the games: the same games with the same seed give the same bits.

    designs: how an evaluator was asked, where that is known; else the games tell. unasked: comparisons of an evaluator
    that have no answer yet. tell: how many games are looked at, of how many. Raises DataError where there is no game.
    """
    if not games:
        raise DataError("There is no game to make a table of: run `gipo-mc evaluate judge`, or import votes, first.")
    places = {name: place for place, name in enumerate(sorted({game.conversation for game in games}))}
    drawn = Draws(len(places), draws, seed)
    found: list[Evaluator] = []
    done = 0
    for name, own in by_evaluator(games).items():
        design = designs.get(name) or design_of(name, own)
        found.append(_evaluator(name, design, own, places, drawn, unasked.get(name, 0)))
        done += len(own)
        tell(done, len(games))
    return Table(VERSION, seed, draws, 1 - LEVEL, LEAST_PAIRS, len(places), found)


def _evaluator(
    name: str, design: Design, games: Sequence[Game], places: Mapping[str, int], draws: Draws, unasked: int
) -> Evaluator:
    parts = _parts(results(games, design), games, places)
    halves = _halves(len(places), draws.seed)
    groups = [part for part in parts if part.scope == "group" and part.opponent != SELF]
    chosen, reported = ([_half(part, halves, half) for part in groups] for half in (0, 1))
    measured = measure([*parts, *reported], draws)
    whole = [found for found in measured if found.part in parts]
    cells = cells_of(whole)
    if design == "no order":
        cells = [replace(cell, first=None) for cell in cells]
    return Evaluator(
        name=name,
        design=design,
        voters=len({game.evaluator for game in games}),
        cells=cells,
        unjudged=[Unjudged(p.opponent, p.scope, p.label, left_out(p)) for p in parts if not p.used],
        extremes=[*_domains(cells), *_groups(chosen, [found for found in measured if found.part in reported])],
        strengths=_strengths(whole),
        notes=notes_of(design, cells, games, unasked),
    )


def _parts(found: Sequence[Result], games: Sequence[Game], places: Mapping[str, int]) -> list[Part]:
    """For each opponent, the policy's own second sample last: all pairs, those of each domain, those of each group."""
    invalid = Counter((game.opponent, game.pair) for game in games if game.outcome == "invalid")
    domains = sorted({result.domain for result in found})
    parts = []
    for opponent in sorted(dict.fromkeys(game.opponent for game in games), key=SELF.__eq__):
        own = [result for result in found if result.opponent == opponent]
        groups = sorted({result.group for result in own if result.group is not None})
        cells: list[tuple[Scope, str, list[Result]]] = [("all", domains[0] if len(domains) == 1 else "", own)]
        if len(domains) > 1:
            cells += [("domain", name, [r for r in own if r.domain == name]) for name in domains]
        cells += [("group", str(group), [r for r in own if r.group == group]) for group in groups]
        for scope, label, pairs in cells:
            if pairs:
                count = sum(invalid[result.opponent, result.pair] for result in pairs)
                parts.append(_part(opponent, scope, label, pairs, count, places))
    return parts


def _part(
    opponent: str, scope: Scope, label: str, pairs: Sequence[Result], invalid: int, places: Mapping[str, int]
) -> Part:
    used = [result for result in pairs if result.outcome is not None]
    left = [result for result in pairs if result.outcome is None]
    conversation_N = np.array([places[result.conversation] for result in used], dtype=np.int64)
    return Part(opponent, scope, label, used, left, conversation_N, invalid)


# ------------------------------------------------------------------------------------------------- the worst of several
def _domains(cells: Sequence[Cell]) -> list[Extreme]:
    """Chosen and reported on all pairs, with the interval that holds for all domains at once."""
    families: dict[str, dict[str, tuple[int, Interval]]] = {}
    for cell in cells:
        if cell.scope == "domain" and cell.opponent != SELF and cell.simultaneous is not None:
            families.setdefault(cell.opponent, {})[cell.label] = cell.pairs, cell.simultaneous
    return [
        Extreme(opponent, "domain", end, label, *family[label])
        for opponent, family in families.items()
        for end, label in _ends({label: margin.value for label, (_, margin) in family.items()})
    ]


def _groups(chosen: Sequence[Part], reported: Sequence[Measured]) -> list[Extreme]:
    """Chosen on one half of the conversations, reported on the other: groups with enough pairs in both."""
    by_key = {(found.part.opponent, found.part.label): found for found in reported}
    families: dict[str, dict[str, float]] = {}
    for part in chosen:
        other = by_key.get((part.opponent, part.label))
        if other is not None and min(len(part.used), len(other.part.used)) >= LEAST_PAIRS:
            mean = sum(result.margin for result in part.used) / len(part.used)
            families.setdefault(part.opponent, {})[part.label] = mean
    found = []
    for opponent, family in families.items():
        for end, label in _ends(family) if len(family) > 1 else []:
            own = by_key[opponent, label]
            margin = interval(*own.margin(), MARGIN, own.conversations)
            found.append(Extreme(opponent, "group", end, label, len(own.part.used), margin))
    return found


def _ends(values: Mapping[str, float]) -> list[tuple[End, str]]:
    """The worst and the best label; of equal ones the first in the table."""
    return [("worst", min(values, key=values.__getitem__)), ("best", max(values, key=values.__getitem__))]


def _halves(conversations: int, seed: int) -> IntArray:
    """[C] the half, 0 or 1, of each conversation."""
    generator = np.random.Generator(np.random.PCG64([seed, conversations, 1]))
    return (generator.permutation(conversations) % 2).astype(np.int64)


def _half(part: Part, halves: IntArray, half: int) -> Part:
    keep = halves[part.conversation_N] == half
    used = [result for result, kept in zip(part.used, keep, strict=True) if kept]
    return replace(part, used=used, left=[], conversation_N=part.conversation_N[keep], invalid_games=0)


# ---------------------------------------------------------------------------------------------------- several policies
def _strengths(measured: Sequence[Measured]) -> list[Strength]:
    """Of ours and all opponents but its own second sample; none with fewer than two."""
    against = [found for found in measured if found.part.scope == "all" and found.part.opponent != SELF]
    if len(against) < 2:
        return []
    draws, count = against[0].drawn_DK.shape[0], len(against) + 1
    net, games = np.zeros((draws + 1, count, count)), np.zeros((draws + 1, count, count))
    for place, opponent in enumerate(against, 1):
        own = opponent.net()
        net[:, 0, place], net[:, place, 0] = own[:, 0], -own[:, 0]
        games[:, 0, place] = games[:, place, 0] = own[:, 1]
    elo = ELO * strengths(net, games) + 0.0
    found = [Strength(OURS, Interval(0.0, 0.0, 0.0))]
    for place, opponent in enumerate(against, 1):
        value = float(elo[0, place])
        margin = interval(value, elo[1:, place], (value, value), opponent.conversations)
        found.append(Strength(opponent.part.opponent, margin))
    return sorted(found, key=lambda strength: -strength.elo.value)
