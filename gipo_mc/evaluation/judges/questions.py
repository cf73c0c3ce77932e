"""What a judge is asked: comparisons, each of them two responses in one order, and the requests that they become."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gipo_mc.evaluation.judge_config import Orders
from gipo_mc.evaluation.judges.journal import Setup
from gipo_mc.evaluation.judges.prompts import Position
from gipo_mc.evaluation.pairs import Pair
from gipo_mc.evaluation.responses import text_hash


@dataclass(frozen=True)
class Comparison:
    """One pair in one order, asked for the `repeat`-th time."""

    pair: Pair
    ours_first: bool
    repeat: int

    @property
    def first(self) -> str:
        return self.pair.ours if self.ours_first else self.pair.theirs

    @property
    def second(self) -> str:
        return self.pair.theirs if self.ours_first else self.pair.ours


@dataclass(frozen=True)
class Question:
    """One request, and the comparisons that it answers: several where opponents gave the same text."""

    key: str
    comparisons: tuple[Comparison, ...]

    @property
    def shown(self) -> Comparison:
        return self.comparisons[0]


@dataclass(frozen=True)
class Given:
    """What came back. position: None where there is no verdict; `problem` then says why."""

    position: Position | None
    reason: str = ""
    text: str = ""
    problem: str = ""
    finish_reason: str = ""
    model: str = ""
    usage: Mapping[str, int] | None = None
    adapted: tuple[str, ...] = ()
    asked: int = 1


#: Called with each answer as it comes, from any thread. What it raises ends the asking.
Record = Callable[[Question, Given], None]


class Judge(Protocol):
    """One way to compare. setup: what its verdicts depend on besides the responses. max_invalid: share of the
    comparisons that may stay without a verdict."""

    setup: Setup
    max_invalid: float

    def request(self, comparison: Comparison) -> Mapping[str, Any]:
        """The exact request, as JSON has it."""
        ...

    def ask(self, questions: Sequence[Question], record: Record) -> None:
        """Ask them all, in any order. Raises GipoError where asking on is useless; what was recorded stays."""
        ...


def make_setup(
    evaluator: str,
    kind: str,
    *,
    server: str,
    model: str,
    prompt: str = "",
    version: str = "",
    settings: Mapping[str, Any],
    orders: Orders,
    repeats: int,
    seed: int,
) -> Setup:
    """A `Setup` with its hash. Orders, repeats and seed choose questions and change none: they are no part of it."""
    mark = text_hash(server, model, version, json.dumps(settings, sort_keys=True))
    return Setup(evaluator, kind, server, model, prompt, version, settings, orders, repeats, seed, mark)


def comparisons(pairs: Sequence[Pair], setup: Setup) -> list[Comparison]:
    """All that a judge compares, by pair: identical texts too, about which nobody is asked."""
    return [
        Comparison(pair, ours_first, repeat)
        for pair in pairs
        for ours_first in _orders(pair, setup)
        for repeat in range(setup.repeats)
    ]


def _orders(pair: Pair, setup: Setup) -> tuple[bool, ...]:
    """In which orders a pair is shown. One that is drawn depends on the two texts and not on whose they are, so that
    swapping the sides asks the same question."""
    if setup.orders == "both":
        return (True, False)
    lesser, other = sorted((pair.ours, pair.theirs))
    lesser_first = int(text_hash("order", setup.seed, pair.prompt, lesser, other), 16) % 2 == 0
    return ((pair.ours == lesser) == lesser_first,)


def key_of(judge: Judge, comparison: Comparison) -> str:
    """32 digits: a hash of the exact request, the server, the prompt's version and the repeat."""
    setup = judge.setup
    parts = [judge.request(comparison), setup.server, setup.version, comparison.repeat]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def questions(judge: Judge, wanted: Sequence[Comparison]) -> list[Question]:
    """The requests for these comparisons, each once, in their order."""
    by_key: dict[str, list[Comparison]] = {}
    for comparison in wanted:
        by_key.setdefault(key_of(judge, comparison), []).append(comparison)
    return [Question(key, tuple(found)) for key, found in by_key.items()]
