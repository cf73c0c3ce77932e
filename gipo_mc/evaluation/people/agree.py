"""Agreement in one evaluation: among people, and of people with judges. Written to DIR/agreement.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from gipo_mc.evaluation.games import PEOPLE, Game
from gipo_mc.evaluation.people import agreement
from gipo_mc.evaluation.people.agreement import Estimate
from gipo_mc.evaluation.statistics.outcomes import design_of, evaluator_of, is_person, results

#: Ranked, for the ordinal alpha, as `Result.outcome` is: -1, 0, 1.
CATEGORIES = ("theirs", "tie", "ours")
_TIE = CATEGORIES.index("tie")
_RANKED = partial(agreement.krippendorff_alpha, ordinal=True)


@dataclass(frozen=True)
class Couple:
    """Two evaluators on the pairs that both judged.

    decided: share of agreement where neither called a tie, and on how many pairs (decided_pairs).
    """

    first: str
    second: str
    pairs: int
    percent: Estimate
    decided: Estimate
    decided_pairs: int
    kappa: Estimate
    alpha: Estimate
    ordinal_alpha: Estimate


@dataclass(frozen=True)
class Among:
    """All people, on the pairs that two of them or more judged."""

    people: list[str]
    pairs: int
    percent: Estimate
    kappa: Estimate
    alpha: Estimate
    ordinal_alpha: Estimate


@dataclass(frozen=True)
class Agreement:
    """among: None with fewer than two people. couples: people two by two, then each judge with people jointly and with
    each of them. draws, seed: of the bootstrap."""

    among: Among | None
    couples: list[Couple]
    draws: int
    seed: int


def agreement_of(games: Iterable[Game], *, draws: int = 2000, seed: int = 1) -> Agreement:
    """The agreement of evaluators over their games. Evaluators "people:NAME" are persons, any other is a judge."""
    games = list(games)
    ratings = pair_verdicts(games)
    clusters = {game.pair: game.conversation for game in games}
    people = sorted(filter(is_person, ratings))
    judges = sorted(ratings.keys() - {PEOPLE, *people})
    against = [PEOPLE, *people] if len(people) > 1 else people
    couples = [*combinations(people, 2), *((judge, one) for judge in judges for one in against)]
    return Agreement(
        _among({name: ratings[name] for name in people}, clusters, draws, seed) if len(people) > 1 else None,
        [_couple(one, two, ratings, clusters, draws, seed) for one, two in couples],
        draws,
        seed,
    )


def pair_verdicts(games: Iterable[Game]) -> dict[str, dict[str, int]]:
    """Each evaluator's verdict on each pair, an index of CATEGORIES; of persons each by name, and all as "people".

    It is the one that the table counts (`gipo_mc.evaluation.statistics.outcomes`): of a judge that is shown both orders
    what both say, else a tie; of people jointly the side with more votes, a tie where they are even. A pair with an
    invalid game, or of two identical texts, has none.
    """
    by_evaluator: dict[str, list[Game]] = {}
    for game in games:
        for name in {game.evaluator, evaluator_of(game)}:
            by_evaluator.setdefault(name, []).append(game)
    return {
        name: {
            result.pair: result.outcome + 1
            for result in results(found, design_of(evaluator_of(found[0]), found))
            if result.outcome is not None and result.cause != "identical"
        }
        for name, found in by_evaluator.items()
    }


def _couple(
    first: str,
    second: str,
    ratings: Mapping[str, Mapping[str, int]],
    clusters: Mapping[str, str],
    draws: int,
    seed: int,
) -> Couple:
    both = [pair for pair in ratings[first] if pair in ratings[second]]
    one, two = (np.array([ratings[name][pair] for pair in both], dtype=np.int64) for name in (first, second))
    counts = agreement.counts_of(list(zip(one, two, strict=True)), len(CATEGORIES))
    shares, added = agreement.agreements(counts), agreement.coincidences(counts)
    clear = (one != _TIE) & (two != _TIE)
    found = agreement.estimates(
        [
            (shares, agreement.percent),
            (shares * clear[:, None], agreement.percent),
            (agreement.crossings(one, two, len(CATEGORIES)), agreement.cohen_kappa),
            (added, agreement.krippendorff_alpha),
            (added, _RANKED),
        ],
        [clusters[pair] for pair in both],
        draws=draws,
        seed=seed,
    )
    return Couple(first, second, len(both), found[0], found[1], int(clear.sum()), *found[2:])


def _among(ratings: Mapping[str, Mapping[str, int]], clusters: Mapping[str, str], draws: int, seed: int) -> Among:
    pairs = list(dict.fromkeys(pair for found in ratings.values() for pair in found))
    counts = agreement.counts_of([[found.get(pair) for found in ratings.values()] for pair in pairs], len(CATEGORIES))
    rated = counts.sum(1) > 1
    shares, added = agreement.agreements(counts[rated]), agreement.coincidences(counts[rated])
    where = [clusters[pair] for pair, enough in zip(pairs, rated, strict=True) if enough]
    found = agreement.estimates(
        [
            (shares, agreement.percent),
            (shares, agreement.fleiss_kappa),
            (added, agreement.krippendorff_alpha),
            (added, _RANKED),
        ],
        where,
        draws=draws,
        seed=seed,
    )
    return Among(list(ratings), len(where), *found)
