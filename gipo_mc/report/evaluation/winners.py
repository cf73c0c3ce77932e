"""Who wins, in a report: the table of an evaluation's folder as bars with their intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gipo_mc.errors import DataError
from gipo_mc.evaluation.reading import Judged
from gipo_mc.evaluation.statistics.bootstrap import Interval
from gipo_mc.evaluation.statistics.outcomes import SELF, Design
from gipo_mc.evaluation.tables.model import Cell, Evaluator, Table, read_table
from gipo_mc.evaluation.tables.text import TIES, bracketed, p_value, part_name, points
from gipo_mc.report.drawing import plots
from gipo_mc.report.drawing.plots import Bar
from gipo_mc.report.evaluation.pairs_shown import ShownPair, chosen_pairs
from gipo_mc.report.evaluation.policies_shown import PolicyRow, policies
from gipo_mc.report.texts import readable
from gipo_mc.run.jsonl import read_file

#: Told apart without red and green; the template has them too.
WIN, TIE, LOSE = "#0072B2", "#b8c0c8", "#b84a00"
_DESIGN = {
    "both orders": "A judge that was shown every pair in both orders: a pair is won where both orders agree.",
    "one order": "A judge that was shown every pair in one order.",
    "no order": "A judge that scored every response alone: a pair is won by the higher score.",
    "people": "People, each pair in a random order; a pair is won by the side with more votes.",
}


@dataclass(frozen=True)
class ShownBar:
    """One bar: win, tie and lose in per cent of the pairs. numbers: (name, text with the interval)."""

    label: str
    whole: bool
    pairs: str
    win: float
    tie: float
    lose: float
    numbers: list[tuple[str, str]]


@dataclass(frozen=True)
class ShownOpponent:
    """The bars against one opponent: all pairs, then by domain, then by inferred group, which is folded. lines: what
    else there is to know, sentences."""

    label: str
    bars: list[ShownBar]
    groups: list[ShownBar]
    lines: list[str]


@dataclass(frozen=True)
class ShownEvaluator:
    """One judge, or people. strengths: (policy, Elo points). notes: what a reader of the figures must know."""

    name: str
    design: str
    opponents: list[ShownOpponent]
    strengths: list[tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class ShownAgreement:
    """Two evaluators, or all people: cells of a table, as text."""

    who: str
    cells: list[str]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as the page shows it. both_orders: was an evaluator shown pairs in both? policies: what their
    responses look like."""

    name: str
    path: str
    summary: str
    both_orders: bool
    evaluators: list[ShownEvaluator]
    agreement: list[ShownAgreement]
    pairs: list[ShownPair]
    policies: list[PolicyRow]


def load_evaluation(folder: Path) -> Evaluation:
    """What the report shows of the evaluation's folder. Raises DataError where it has no pairs or no table, or where a
    file is damaged."""
    table, judged = read_table(folder), Judged(folder)
    pairs = judged.pairs
    prompts = len({pair.prompt for pair in pairs})
    return Evaluation(
        name=readable(folder.resolve().name),
        path=readable(folder),
        summary=(
            f"{len(pairs):,} pairs on {prompts:,} prompts of {table.conversations:,} conversations. Intervals: "
            f"{table.confidence:.0%}, from {table.draws:,} draws of whole conversations (seed {table.seed})."
        ),
        both_orders=any(each.design == "both orders" for each in table.evaluators),
        evaluators=[_evaluator(each, table) for each in table.evaluators],
        agreement=_agreement(folder / "agreement.json"),
        pairs=chosen_pairs(judged),
        policies=policies(pairs),
    )


def charts(folder: Path) -> list[tuple[str, str]]:
    """(title, SVG) of each evaluator's bars by opponent and domain, for pictures outside the page. Raises DataError."""
    found = []
    for evaluator in read_table(folder).evaluators:
        cells = [cell for cell in _in_order(evaluator) if cell.scope != "group"]
        bars = [
            Bar(
                f"{cell.opponent}, {part_name(cell)}" if cell.scope == "domain" else cell.opponent,
                tuple(
                    (f"{name} {100 * share.value:.1f}", 100 * share.value, colour)
                    for name, share, colour in zip(
                        ("win", "tie", "lose"), (cell.win, cell.tie, cell.lose), (WIN, TIE, LOSE), strict=True
                    )
                ),
            )
            for cell in cells
        ]
        if bars:
            svg = plots.stacked_bars(bars, x_label="% of the pairs")
            found.append((f"Win tie lose by {readable(evaluator.name)}", svg))
    return found


def _in_order(evaluator: Evaluator) -> list[Cell]:
    """Cells by opponent, all pairs first."""
    opponents = list(dict.fromkeys(cell.opponent for cell in evaluator.cells))
    scopes = ("all", "domain", "group")
    return sorted(evaluator.cells, key=lambda cell: (opponents.index(cell.opponent), scopes.index(cell.scope)))


def _evaluator(found: Evaluator, table: Table) -> ShownEvaluator:
    cells = _in_order(found)
    people = f" {found.voters} voter{'s' * (found.voters != 1)}." if found.design == "people" else ""
    none = dict.fromkeys(each.opponent for each in found.unjudged if each.scope == "all")
    return ShownEvaluator(
        name="People" if found.design == "people" else readable(found.name),
        design=_DESIGN[found.design] + people,
        opponents=[
            _opponent(name, [cell for cell in cells if cell.opponent == name], found, table)
            for name in dict.fromkeys(cell.opponent for cell in cells)
        ],
        strengths=[
            (readable(each.policy), _elo(each.elo))
            for each in sorted(found.strengths, key=lambda each: -each.elo.value)
        ],
        notes=[readable(note) for note in found.notes]
        + [f"No pair against {readable(name)} has a valid verdict." for name in none],
    )


def _elo(found: Interval) -> str:
    return f"{found.value:+.0f} [{found.low:+.0f}, {found.high:+.0f}]" if found.low < found.high else "0"


def _opponent(name: str, cells: Sequence[Cell], found: Evaluator, table: Table) -> ShownOpponent:
    domains = sum(cell.scope == "domain" for cell in cells)
    shown = [cell for cell in cells if cell.scope == "all" or (cell.scope == "domain" and domains > 1)]
    lines = [_ties(cells[0], found.design)] if cells[0].tied else []
    first = cells[0].first
    if first is not None:
        shares = f"{100 * first.value:.0f} % [{100 * first.low:.0f}, {100 * first.high:.0f}]"
        lines.append(f"The response shown first won {shares} of the games that have a winner.")
    lines += [
        f"{each.end.capitalize()} {each.scope}: {readable(part_name(each))}, margin {bracketed(each.margin)} on "
        f"{each.pairs:,} pairs."
        for each in found.extremes
        if each.opponent == name
    ]
    left = cells[0].left_out
    if left.invalid_pairs or left.other_order:
        what = "valid verdicts in each order" if found.design == "both orders" else "a valid verdict"
        lines.append(f"Left out: {left.invalid_pairs + left.other_order:,} pairs without {what}.")
    if cells[0].not_controlled:
        lines.append(f"No margin at equal length: {readable(cells[0].not_controlled)}.")
    return ShownOpponent(
        label="itself (calibration: a second sample)" if name == SELF else readable(name),
        bars=[_bar(cell) for cell in shown],
        groups=[_bar(cell) for cell in cells if cell.scope == "group"],
        lines=lines,
    )


def _ties(cell: Cell, design: Design) -> str:
    counts = {words: getattr(cell.ties, name) for name, (_, words) in TIES[design].items()}
    causes = [f"{count:,} {words}" for words, count in counts.items() if count]
    return f"Of the {cell.tied:,} ties: {', '.join(causes)}."


def _bar(cell: Cell) -> ShownBar:
    shares = {"win": cell.win, "tie": cell.tie, "lose": cell.lose}
    numbers = [
        (name, f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]")
        for name, share in shares.items()
    ]
    numbers.append(("margin", bracketed(cell.margin)))
    if cell.simultaneous:
        numbers.append(("simultaneous", f"[{points(cell.simultaneous.low)} {points(cell.simultaneous.high)}]"))
    if cell.controlled:
        numbers.append(("at equal length", bracketed(cell.controlled)))
    if cell.sign_test.holm is not None:
        numbers.append(("p (sign test, Holm)", p_value(cell.sign_test.holm)))
    numbers.append(("tokens", f"{cell.ours_length:.0f} : {cell.theirs_length:.0f}"))
    return ShownBar(
        label="all pairs" if cell.scope == "all" else readable(part_name(cell)),
        whole=cell.scope == "all",
        pairs=f"{cell.pairs:,}",
        win=100 * cell.win.value,
        tie=100 * cell.tie.value,
        lose=100 * cell.lose.value,
        numbers=numbers,
    )


def _agreement(path: Path) -> list[ShownAgreement]:
    """Raises DataError where the file is damaged."""
    if not path.exists():
        return []
    try:
        found = json.loads(read_file(path))
        among = found["among"]
        rows = [] if among is None else [("all people", among)]
        rows += [(f"{row['first']} and {row['second']}", row) for row in found["couples"]]
        return [_agreement_row(who, row) for who, row in rows]
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({error!r:.100}): import the votes again with gipo-mc evaluate votes."
        ) from error


def _agreement_row(who: str, row: Mapping[str, Any]) -> ShownAgreement:
    def estimate(name: str, per_cent: bool = False) -> str:
        found = row.get(name)
        if not found or found["value"] is None:
            return "–"
        form = (lambda x: f"{100 * x:.0f}") if per_cent else (lambda x: f"{x:.2f}")
        low, high = found["low"], found["high"]
        return form(found["value"]) + (f" [{form(low)}, {form(high)}]" if low is not None and high is not None else "")

    figures = [
        estimate("percent", True),
        estimate("decided", True),
        *map(estimate, ("kappa", "alpha", "ordinal_alpha")),
    ]
    return ShownAgreement(readable(who).replace("people:", ""), [f"{int(row['pairs']):,}", *figures])
