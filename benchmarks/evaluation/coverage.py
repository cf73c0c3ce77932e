"""How often the table's 95 % intervals hold the truth, over simulated evaluations whose truth is known.

    python benchmarks/evaluation/coverage.py [--runs 2000] [--draws 1000] [--out FILE.json]
    python benchmarks/evaluation/coverage.py --table FILE.json [--into docs/evaluation.md]

Conversations are clusters: their pairs share a liking. A judge sees each pair in both orders, favours a place, may like
length, and ties what is close. Every simulated evaluation goes the whole way, from games to `build_table`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

import numpy as np

from benchmarks.common.documents import insert
from benchmarks.common.record import fingerprint, write
from gipo_mc.evaluation.games import Game, Outcome
from gipo_mc.evaluation.statistics.length_control import Fit, fit
from gipo_mc.evaluation.tables.build import build_table
from gipo_mc.evaluation.tables.model import Cell

#: Conversations that stand for all there are.
_ALL = 200_000
_OUTCOMES: dict[int, Outcome] = {1: "ours", 0: "tie", -1: "theirs"}
_FIGURES = ("margin", "win", "tie", "lose", "first", "controlled")
_TITLES = {
    **{name: name for name in ("margin", "win", "tie", "lose")},
    "first": "first shown",
    "controlled": "equal length",
    "domains": "three domains at once",
    "independent": "margin, games as independent",
}


@dataclass(frozen=True)
class Scenario:
    """conversations of 1 to `longest` pairs. liking: how much better ours is, where the judge's noise is 1.

    shared, own: deviations of liking between conversations and between pairs. place: what the first place is worth.
    length: what a length one deviation above theirs is worth; longer: ours is by so many deviations. close: impressions
    that tie.
    """

    conversations: int
    longest: int
    liking: float
    shared: float
    own: float
    place: float
    length: float
    longer: float
    close: float


SCENARIOS = {
    "one pair a conversation": Scenario(250, 1, 0.3, 1.0, 0.0, 0.0, 0.0, 0.0, 0.6),
    "dialogues, the first place favoured": Scenario(120, 4, 0.3, 1.0, 0.7, 0.8, 0.0, 0.0, 0.5),
    "dialogues, a judge who likes length": Scenario(120, 4, 0.2, 1.0, 0.7, 0.3, 0.8, 0.5, 0.5),
    "40 dialogues": Scenario(40, 4, 0.3, 1.0, 0.7, 0.4, 0.3, 0.3, 0.5),
    "two samples of one policy": Scenario(120, 4, 0.0, 1.0, 0.7, 0.4, 0.3, 0.0, 0.5),
    "ours hardly ever loses": Scenario(120, 4, 2.6, 0.8, 0.7, 0.2, 0.0, 0.0, 0.5),
}


@dataclass(frozen=True)
class Judged:
    """[N] each: conversation, domain 0 to 2, difference of lengths in tokens, and the winner with ours first and with
    theirs first: 1 ours, 0 tie, -1 theirs."""

    conversation: np.ndarray
    domain: np.ndarray
    longer: np.ndarray
    ours_first: np.ndarray
    theirs_first: np.ndarray


def judge(scenario: Scenario, conversations: int, generator: np.random.Generator) -> Judged:
    sizes = generator.integers(1, scenario.longest + 1, conversations)
    conversation = np.repeat(np.arange(conversations), sizes)
    count, domain = len(conversation), conversation % 3
    shared = generator.normal(0, scenario.shared, conversations)[conversation]
    length = generator.normal(scenario.longer, 1, count)
    liking = scenario.liking + 0.2 * (domain - 1) + shared + generator.normal(0, scenario.own, count)
    seen = liking + scenario.length * length
    winners = []
    for place in (scenario.place, -scenario.place):
        impression = seen + place + generator.normal(0, 1, count)
        winners.append(np.where(np.abs(impression) < scenario.close, 0, np.sign(impression)).astype(int))
    return Judged(conversation, domain, np.rint(60 * length), *winners)


def games(judged: Judged) -> list[Game]:
    rows = zip(*(getattr(judged, name).tolist() for name in vars(judged)), strict=True)
    found = []
    for pair, (conversation, domain, longer, *winners) in enumerate(rows):
        for order, winner in zip((True, False), winners, strict=True):
            names = (f"{pair}", f"{conversation:06}", "sft", "judge", f"{domain}", None)
            found.append(Game(*names, order, 0, _OUTCOMES[winner], 300 + longer, 300))
    return found


def truth(judged: Judged) -> dict[str, Any]:
    """The figures of all conversations there are, in a few lines of their own."""
    one, other = judged.ours_first, judged.theirs_first
    margin = (one + other) / 2
    decided = np.abs(one).sum() + np.abs(other).sum()
    fitted = fit(margin, judged.longer.astype(float))
    assert isinstance(fitted, Fit)
    win, lose = float(((one == 1) & (other == 1)).mean()), float(((one == -1) & (other == -1)).mean())
    return {
        "margin": float(margin.mean()),
        "win": win,
        "tie": 1 - win - lose,
        "lose": lose,
        "first": float(((one == 1).sum() + (other == -1).sum()) / decided),
        "controlled": fitted.margin,
        "domains": [float(margin[judged.domain == place].mean()) for place in range(3)],
    }


def held(cells: list[Cell], true: dict[str, Any], judged: Judged) -> Iterator[tuple[str, bool]]:
    """(figure, does its interval hold the truth) of one evaluation."""
    whole, *domains = cells
    for name in _FIGURES:
        found = getattr(whole, name)
        if found is not None:
            yield name, found.low <= true[name] <= found.high
    pairs = [(cell.simultaneous, value) for cell, value in zip(domains, true["domains"], strict=True)]
    if all(found for found, _ in pairs):
        yield "domains", all(found.low <= value <= found.high for found, value in pairs if found)
    scores = np.concatenate([judged.ours_first, judged.theirs_first])
    half = 1.96 * scores.std(ddof=1) / math.sqrt(len(scores))
    yield "independent", bool(abs(scores.mean() - true["margin"]) <= half)


def coverage(scenario: Scenario, runs: int, draws: int, seed: int) -> dict[str, Any]:
    """Shares of the simulated evaluations whose interval holds the truth, and that the sign test calls different."""
    true = truth(judge(scenario, _ALL, np.random.default_rng([seed, 1])))
    generator = np.random.default_rng([seed, 2])
    counts: dict[str, list[int]] = {}
    significant, width = 0, 0.0
    for run in range(runs):
        judged = judge(scenario, scenario.conversations, generator)
        cells = build_table(games(judged), draws, run).evaluators[0].cells
        for name, holds in held(cells, true, judged):
            counts.setdefault(name, []).append(holds)
        significant += cells[0].sign_test.p <= 0.05
        width += (cells[0].margin.high - cells[0].margin.low) / runs
    shares = {name: sum(found) / len(found) for name, found in counts.items()}
    return {
        "scenario": asdict(scenario),
        "truth": true,
        "coverage": shares,
        "evaluations": {name: len(found) for name, found in counts.items()},
        "significant": significant / runs,
        "width": width,
    }


def document_table(record: dict[str, Any]) -> str:
    """The record in Markdown, per cent."""
    titles = ["", *_TITLES.values(), "p at most 0.05"]
    lines = [f"| {' | '.join(titles)} |", "| --- " + "| ---: " * (len(titles) - 1) + "|"]
    for title, found in record["scenarios"].items():
        shares = [*(found["coverage"][name] for name in _TITLES), found["significant"]]
        lines.append(f"| {title} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated evaluations of each kind")
    parser.add_argument("--draws", type=int, default=1000, help="of each bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the record there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a record as Markdown, run nothing")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="put it between the markers of that page")
    options = parser.parse_args(words)
    if options.table:
        table = document_table(json.loads(options.table.read_text()))
        if options.into:
            insert(options.into, options.table.name, table)
        else:
            print(table)
        return 0
    from benchmarks.common.machine import describe_machine

    record: dict[str, Any] = {"benchmark": "evaluation_coverage", "machine": describe_machine(), "code": fingerprint()}
    record |= {"runs": options.runs, "draws": options.draws, "seed": options.seed, "scenarios": {}}
    for title, scenario in SCENARIOS.items():
        found = record["scenarios"][title] = coverage(scenario, options.runs, options.draws, options.seed)
        print(title, {name: round(100 * share, 1) for name, share in found["coverage"].items()}, flush=True)
    print(document_table(record))
    if options.out:
        write(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
