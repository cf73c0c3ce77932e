"""Games for tests: written out by hand, or of two made-up policies under a made-up judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gipo_mc.evaluation.games import Game, Outcome

_LETTERS: dict[str, Outcome] = {
    "w": "ours",
    "l": "theirs",
    "t": "tie",
    "=": "identical",
    "x": "invalid",
}
_MIRRORED: dict[Outcome, Outcome] = {"ours": "theirs", "theirs": "ours"}


def game(outcome: Outcome = "tie", **fields: object) -> Game:
    """A game with what matters; `pair` makes its own conversation unless told."""
    known = {
        "pair": "p0",
        "opponent": "sft",
        "evaluator": "judge",
        "domain": "",
        "group": None,
        "ours_first": True,
        "repeat": 0,
        "ours_length": 10,
        "theirs_length": 10,
        **fields,
    }
    return Game(**{"conversation": f"c-{known['pair']}", **known, "outcome": outcome})  # type: ignore[arg-type]


def pair(outcomes: str, name: str = "p0", **fields: object) -> list[Game]:
    """The games of a pair, a letter each: the first with ours first, the second with theirs first, and so on. w: ours,
    l: theirs, t: tie, =: identical, x: invalid, a space: not asked."""
    return [
        game(_LETTERS[letter], pair=name, ours_first=place % 2 == 0, repeat=place // 2, **fields)
        for place, letter in enumerate(outcomes)
        if letter != " "
    ]


def mirrored(games: Sequence[Game]) -> list[Game]:
    """The same games as the other side's."""
    return [
        replace(
            own,
            outcome=_MIRRORED.get(own.outcome, own.outcome),
            ours_first=not own.ours_first,
            ours_length=own.theirs_length,
            theirs_length=own.ours_length,
        )
        for own in games
    ]


def tournament(
    pairs: int, opponents: Sequence[str] = ("dpo", "ppo", "sft"), seed: int = 0, repeats: int = 1
) -> list[Game]:
    """Conversations of 1 to 4 pairs that share a liking, three domains, two groups, a judge who favours the first place
    and length, and some invalid and identical games."""
    generator = np.random.default_rng(seed)
    games = []
    for opponent in opponents:
        place = conversation = 0
        while place < pairs:
            liking = generator.normal(0.2 if opponent != "self" else 0.0, 0.6)
            for _ in range(min(int(generator.integers(1, 5)), pairs - place)):
                games += _shown_twice(generator, f"{opponent}{place}", conversation, liking, opponent, repeats)
                place += 1
            conversation += 1
    return games


def _shown_twice(
    generator: np.random.Generator, name: str, conversation: int, liking: float, opponent: str, repeats: int
) -> list[Game]:
    ours, theirs = (int(length) for length in generator.integers(20, 200, size=2))
    better = liking + generator.normal(0, 0.5) + (ours - theirs) / 300
    fields = {"pair": name, "conversation": f"c{conversation}", "opponent": opponent}
    fields |= {"domain": ("harmless", "helpful", "tldr")[conversation % 3], "group": int(generator.integers(0, 2))}
    fields |= {"ours_length": ours, "theirs_length": theirs}
    if generator.random() < 0.02:
        return [game("identical", ours_first=first, **fields) for first in (True, False)]
    found = []
    for repeat in range(repeats):
        for first in (True, False):
            seen = better + (0.3 if first else -0.3) + generator.normal(0, 0.4)
            outcome: Outcome = "ours" if seen > 0.3 else "theirs" if seen < -0.3 else "tie"
            outcome = "invalid" if generator.random() < 0.01 else outcome
            found.append(game(outcome, ours_first=first, repeat=repeat, **fields))
    return found
