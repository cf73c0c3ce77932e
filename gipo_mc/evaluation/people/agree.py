"""Agreement in one evaluation: among people, and of people with judges. Written to DIR/agreement.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from gipo_mc.evaluation.games import Game
from gipo_mc.evaluation.people import agreement
from gipo_mc.evaluation.people.agreement import Estimate, estimate
from gipo_mc.evaluation.statistics.outcomes import PEOPLE, design_of, evaluator_of, results

#: Ranked, for the ordinal alpha, as `Result.outcome` is: -1, 0, 1.
CATEGORIES = ("theirs", "tie", "ours")
_TIE = CATEGORIES.index("tie")


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
    people = sorted(name for name in ratings if name.startswith(f"{PEOPLE}:"))
    judges = sorted(ratings.keys() - {PEOPLE, *people})
    couples = [*combinations(people, 2), *((judge, one) for judge in judges for one in [PEOPLE, *people] if people)]
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
    one, two = ([ratings[name][pair] for pair in both] for name in (first, second))
    counts = agreement.counts_of(list(zip(one, two, strict=True)), len(CATEGORIES))
    where = [clusters[pair] for pair in both]
    clear = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if _TIE not in (a, b)]
    shared = {"draws": draws, "seed": seed}
    shares = agreement.agreements(counts)
    return Couple(
        first,
        second,
        len(both),
        estimate(shares, where, agreement.percent, **shared),
        estimate(shares[clear], [where[i] for i in clear], agreement.percent, **shared),
        len(clear),
        estimate(agreement.crossings(one, two, len(CATEGORIES)), where, agreement.cohen_kappa, **shared),
        *_alphas(counts, where, draws, seed),
    )


def _among(ratings: Mapping[str, Mapping[str, int]], clusters: Mapping[str, str], draws: int, seed: int) -> Among:
    pairs = list(dict.fromkeys(pair for found in ratings.values() for pair in found))
    counts = agreement.counts_of([[found.get(pair) for found in ratings.values()] for pair in pairs], len(CATEGORIES))
    rated = counts.sum(1) > 1
    where = [clusters[pair] for pair, enough in zip(pairs, rated, strict=True) if enough]
    shares = agreement.agreements(counts[rated])
    return Among(
        list(ratings),
        len(where),
        estimate(shares, where, agreement.percent, draws=draws, seed=seed),
        estimate(shares, where, agreement.fleiss_kappa, draws=draws, seed=seed),
        *_alphas(counts[rated], where, draws, seed),
    )


def _alphas(counts: np.ndarray, where: Sequence[str], draws: int, seed: int) -> tuple[Estimate, Estimate]:
    added = agreement.coincidences(counts)
    nominal = estimate(added, where, agreement.krippendorff_alpha, draws=draws, seed=seed)
    ranked = partial(agreement.krippendorff_alpha, ordinal=True)
    return nominal, estimate(added, where, ranked, draws=draws, seed=seed)
