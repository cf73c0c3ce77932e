"""A table as plain text of at most 100 columns."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gipo_mc.evaluation.statistics.bootstrap import Interval
from gipo_mc.evaluation.statistics.outcomes import SELF, Design
from gipo_mc.evaluation.tables.model import Cell, Evaluator, Extreme, Table, Unjudged
from gipo_mc.run.jsonl import printable

WIDTH = 100
_DESIGN = {
    "both orders": "every pair in both orders",
    "one order": "every pair in one order",
    "no order": "every response scored alone",
    "people": "pairs in a random order",
}
#: The causes of ties that there are for each design, as fields of `Ties`: (title of a column, words of a sentence).
TIES: Mapping[Design, Mapping[str, tuple[str, str]]] = {
    "both orders": {
        "both": ("both tie", "both orders tie"),
        "one": ("one ties", "one order ties"),
        "flipped": ("flipped", "flipped with the order"),
        "identical": ("identical", "identical texts"),
    },
    "one order": {"both": ("tied", "called a tie"), "identical": ("identical", "identical texts")},
    "no order": {"both": ("equal scores", "equal scores"), "identical": ("identical", "identical texts")},
    "people": {
        "both": ("all tie", "every vote a tie"),
        "split": ("split", "split votes"),
        "identical": ("identical", "identical texts"),
    },
}


def show(table: Table) -> str:
    """The whole table, an evaluator after the other, and how to read it."""
    blocks = ["\n\n".join(_evaluator(evaluator)) for evaluator in table.evaluators]
    return "\n\n".join([*blocks, _legend(table)]) + "\n"


def part_name(cell: Cell | Extreme | Unjudged) -> str:
    """What the pairs of a cell are: a domain, a group, or all."""
    if cell.scope == "group":
        return f"group {cell.label}"
    return cell.label or ("all" if cell.scope == "all" else "(no domain)")


def points(value: float) -> str:
    """A margin in points, with its sign; 0 has none."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def bracketed(found: Interval | None) -> str:
    """+14.5 [+8.1 +20.9], empty for None."""
    return f"{points(found.value)} [{points(found.low)} {points(found.high)}]" if found else ""


def aligned(found: Interval | None) -> str:
    """The same in columns that stand below each other."""
    return f"{points(found.value):>5} [{points(found.low):>5} {points(found.high):>5}]" if found else ""


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _evaluator(found: Evaluator) -> Iterator[str]:
    name = "People" if found.design == "people" else printable(found.name)
    people = f", {found.voters} voter{'s' * (found.voters != 1)}" if found.design == "people" else ""
    whole = [cell for cell in found.cells if cell.scope == "all"]
    yield f"{name}: {_DESIGN[found.design]}{people}; {sum(cell.pairs for cell in whole):,} pairs"
    yield _grid(
        ["against", "part", "pairs", "win", "tie", "lose", "margin [95 %]", "at equal length", "p"],
        [*map(_row, found.cells), *_unjudged(found)],
    )
    yield _grid(
        ["in per cent", "win [95 %]", "tie [95 %]", "lose [95 %]", *_first_title(found.design)],
        (_shares(cell, found.design) for cell in whole),
    )
    causes = [title for title, _ in TIES[found.design].values()]
    yield _grid(["ties", *causes, "tokens ours", "theirs"], (_ties(cell, found.design) for cell in whole))
    if found.extremes:
        rows = [[_label(e.opponent), e.end, part_name(e), f"{e.pairs:,}", aligned(e.margin)] for e in found.extremes]
        yield _grid(["against", "end", "part", "pairs", "margin [95 %]"], rows)
    if found.strengths:
        yield _grid(["strength", "Elo points [95 %]"], [[_label(s.policy), _elo(s.elo)] for s in found.strengths])
    reasons = [(cell.not_controlled, _label(cell.opponent)) for cell in whole if cell.not_controlled]
    notes = [*found.notes, *(f"No margin at equal length against {label}: {reason}." for reason, label in reasons)]
    if notes:
        yield "\n".join(textwrap.fill(f"! {note}", WIDTH, subsequent_indent="  ") for note in notes)


def _row(cell: Cell) -> list[str]:
    shares = [f"{100 * share.value:.1f}" for share in (cell.win, cell.tie, cell.lose)]
    names = [_label(cell.opponent), part_name(cell), f"{cell.pairs:,}"]
    return [*names, *shares, aligned(cell.margin), aligned(cell.controlled), p_value(cell.sign_test.holm)]


def _unjudged(found: Evaluator) -> list[list[str]]:
    whole = {none.opponent for none in found.unjudged if none.scope == "all"}
    return [
        [_label(none.opponent), part_name(none), "0", *[""] * 3, "no valid pair", "", ""]
        for none in found.unjudged
        if none.scope == "all" or none.opponent not in whole  # its parts have none either
    ]


def _first_title(design: Design) -> list[str]:
    """Nothing is shown first to a judge that scores each response alone."""
    return [] if design == "no order" else ["first shown wins"]


def _shares(cell: Cell, design: Design) -> list[str]:
    first = [cell.first for _ in _first_title(design)]
    found = (cell.win, cell.tie, cell.lose, *first)
    return [_label(cell.opponent), *(_per_cent(share) if share else "" for share in found)]


def _ties(cell: Cell, design: Design) -> list[str]:
    counts = [getattr(cell.ties, cause) for cause in TIES[design]]
    lengths = (cell.ours_length, cell.theirs_length)
    return [_label(cell.opponent), *(f"{count:,}" for count in counts), *(f"{length:.0f}" for length in lengths)]


def _per_cent(found: Interval) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:4.1f} {100 * found.high:5.1f}]"


def _elo(found: Interval) -> str:
    return f"{found.value:+.0f} [{found.low:+.0f} {found.high:+.0f}]" if found.value else "0"


def _label(opponent: str) -> str:
    return "itself" if opponent == SELF else opponent


def _grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns that fit the width: text to the left, figures to the right; long names end in an ellipsis."""
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="", show_edge=False)
    for place, title in enumerate(titles):
        text = place == 0 or title in ("part", "end")
        grid.add_column(title, justify="left" if text else "right", no_wrap=True, max_width=14 if text else None)
    last = ""
    for row in rows:
        name = "" if row[0] == last else row[0]  # once for all of its rows
        last = row[0]
        grid.add_row(*(Text(printable(cell)) for cell in (name, *row[1:])))
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, force_terminal=False).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def _legend(table: Table) -> str:
    both = any(evaluator.design == "both orders" for evaluator in table.evaluators)
    orders = "; a pair seen in both orders is won where both agree" if both else ""
    text = (
        f"Intervals: 95 %, {table.draws:,} draws of the {table.conversations:,} conversations, seed {table.seed}. win, "
        f"tie, lose: per cent of the pairs{orders}. margin: points by which "
        "the mean of all games is ours, 0 at parity; unlike the ties it compares across judges. at equal length: the "
        "same, by logistic regression. p: exact sign test over conversations, Holm over this evaluator's rows of a "
        f"kind. worst and best: of at least {table.least_pairs} pairs; domains with intervals that hold for all at "
        "once, groups chosen on one half of the conversations and reported on the other."
    )
    return textwrap.fill(text, WIDTH)
