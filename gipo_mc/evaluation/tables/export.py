"""A table for other programs and for papers: CSV and JSON with every figure, Markdown and LaTeX with those of a paper.

Labels come from data files and command lines: each format escapes what it would act on.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable

from gipo_mc.evaluation.statistics.bootstrap import Interval
from gipo_mc.evaluation.tables.model import Cell, Evaluator, Table
from gipo_mc.evaluation.tables.text import bracketed, p_value, part_name
from gipo_mc.run.jsonl import printable

Value = str | int | float | None
Row = dict[str, Value]

_TITLES = ("evaluator", "against", "part", "pairs", "win", "tie", "lose", "margin", "at equal length", "p")
#: Columns of a table without any cell.
_HEAD = ("evaluator", "design", "opponent", "scope", "label", "pairs")
_BOOKTABS = r"% needs \usepackage{booktabs}"
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip


def flat(table: Table) -> list[Row]:
    """A row for each cell, all with the same columns; fractions, not per cent; None where there is no figure."""
    rows = [_row(table, evaluator, cell) for evaluator in table.evaluators for cell in evaluator.cells]
    empty: Row = dict.fromkeys(rows[0] if rows else _HEAD)
    for evaluator in table.evaluators:
        for none in evaluator.unjudged:
            rows.append(
                empty
                | {"evaluator": evaluator.name, "design": evaluator.design, "opponent": none.opponent}
                | {"scope": none.scope, "label": none.label, "pairs": 0}
                | {f"left_out_{name}": value for name, value in vars(none.left_out).items()}
            )
    return rows


def _row(table: Table, evaluator: Evaluator, cell: Cell) -> Row:
    row: Row = {"evaluator": evaluator.name, "design": evaluator.design}
    row |= {"opponent": cell.opponent, "scope": cell.scope, "label": cell.label}
    row |= {"pairs": cell.pairs, "conversations": cell.conversations, "games": cell.games}
    row |= {"wins": cell.wins, "tied": cell.tied, "losses": cell.losses}
    for name in ("win", "tie", "lose", "margin", "simultaneous", "controlled", "first"):
        found: Interval | None = getattr(cell, name)
        row |= (
            {f"{name}": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            if found
            else {f"{name}{end}": None for end in ("", "_low", "_high")}
        )
    test = cell.sign_test
    row |= {"net_ours": test.ours, "net_theirs": test.theirs, "p": test.p, "p_holm": test.holm}
    row |= {f"ties_{name}": value for name, value in vars(cell.ties).items()}
    row |= {"flipped_to_first": cell.flipped_to_first}
    row |= {f"left_out_{name}": value for name, value in vars(cell.left_out).items()}
    row |= {"ours_length": cell.ours_length, "theirs_length": cell.theirs_length}
    return row | {"draws": table.draws, "seed": table.seed}


def to_csv(table: Table) -> str:
    """RFC 4180 with a header. A label that a spreadsheet would run as a formula gets an apostrophe before it."""
    rows, out = flat(table), io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(rows[0] if rows else _HEAD)
    writer.writerows([_cell_of_csv(value) for value in row.values()] for row in rows)
    return out.getvalue()


def _cell_of_csv(value: Value) -> Value:
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return value


def to_json(table: Table) -> str:
    """A list of the rows of `flat`, one a line."""
    return "[" + ",\n".join(json.dumps(row, allow_nan=False) for row in flat(table)) + "]\n"


def to_markdown(table: Table) -> str:
    """One table, per cent and points."""
    lines = [_line(_TITLES), "| --- | --- | --- " + "| ---: " * (len(_TITLES) - 3) + "|"]
    return "\n".join([*lines, *(_line([*map(_markdown, row[:3]), *row[3:]]) for row in _paper_rows(table))]) + "\n"


def to_latex(table: Table) -> str:
    """A tabular for the package booktabs, per cent and points; a rule between evaluators."""
    lines = [
        _BOOKTABS,
        rf"\begin{{tabular}}{{lll{'r' * (len(_TITLES) - 3)}}}",
        r"\toprule",
        " & ".join(_TITLES) + r" \\",
    ]
    last = None
    for row in _paper_rows(table):
        if row[0] != last:
            lines.append(r"\midrule")
        last = row[0]
        lines.append(" & ".join([*map(_latex, row[:3]), *(_latex_figure(cell) for cell in row[3:])]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def is_export(first_line: str) -> bool:
    """Was the file with this first line written by one of the formats?"""
    starts = (",".join(_HEAD[:2]), _line(_TITLES), _BOOKTABS, '[{"evaluator": ', "[]")
    return first_line.startswith(starts)


FORMATS: dict[str, Callable[[Table], str]] = {
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
    "json": to_json,
}


def _paper_rows(table: Table) -> Iterable[list[str]]:
    for evaluator in table.evaluators:
        for cell in evaluator.cells:
            shares = [f"{100 * share.value:.1f}" for share in (cell.win, cell.tie, cell.lose)]
            margins = [bracketed(cell.margin), bracketed(cell.controlled)]
            names = [printable(name) for name in (evaluator.name, cell.opponent, part_name(cell))]
            yield [*names, f"{cell.pairs:,}", *shares, *margins, p_value(cell.sign_test.holm)]
        for none in evaluator.unjudged:
            names = [printable(name) for name in (evaluator.name, none.opponent, part_name(none))]
            yield [*names, "0", *[""] * 6]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_figure(text: str) -> str:
    """Signs in mathematics; brackets in braces: one behind a line's end would be a distance."""
    return re.sub(r"([+<-])(?=\d)", r"$\1$", text).replace("[", "{[}").replace("]", "{]}")
