"""What a terminal shows of runs, as lines for a width and a height: the most telling first, what has no room is left
out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from gipo_mc.monitor.canvas import Line, bar, curves
from gipo_mc.monitor.follow import View, age
from gipo_mc.monitor.shown import charts
from gipo_mc.report.drawing.colours import phase_colour, run_colour
from gipo_mc.report.drawing.plots import Curve
from gipo_mc.report.groups import Part, asked, parts
from gipo_mc.report.panels import phase_seconds
from gipo_mc.run.console import duration, number
from gipo_mc.run.jsonl import one_line, printable

#: Columns that a chart needs, and rows that a plain snapshot gives it.
_CHART, _PLAIN_ROWS = 36, 5
_STATES = {
    "absent": ("not there", "yellow"), "waiting": ("waiting", "yellow"), "running": ("running", "green"),
    "silent": ("silent", "bold red"), "done": ("done", "bold green"), "failed": ("failed", "bold red"),
    "requeue": ("to be continued", "yellow"), "unknown": ("unknown", "yellow"),
}  # fmt: skip
_TONES = {"good": "green", "warn": "yellow", "bad": "bold red", "info": ""}


@dataclass(frozen=True)
class Look:
    """What the terminal can do. height: None for a snapshot of any length. clean: makes text of others printable in the
    terminal's letters. braille, colours: does it show them?"""

    width: int
    height: int | None
    clean: Callable[[str], str] = printable
    braille: bool = True
    colours: bool = True


def frame(views: Sequence[View], look: Look, footer: str = "") -> list[Text]:
    """The lines, none wider than the terminal and, with a height, no more than it has."""
    head = [line for at, view in enumerate(views) for line in _head(view, at, len(views), look)]
    begun = [(at, view) for at, view in enumerate(views) if view.data is not None]
    tail = [Text(footer, style="dim")] if footer else []
    blocks = [
        _phases(begun, look),
        _groups(begun, look),
        _alarms(views, look),
        _samples(begun, look),
    ]
    drawn = charts([view.data for _, view in begun if view.data is not None]) if begun else []
    if look.height is None:
        body = _charts(drawn, look, _PLAIN_ROWS, len(drawn))
        body += [line for block in blocks for line in block]
    else:
        body = _fitted(drawn, blocks, look, look.height - len(head) - len(tail))
        body = body[: max(0, look.height - len(head) - len(tail))]
        tail = [Text("")] * (look.height - len(head) - len(body) - len(tail)) + tail
    lines = [*head, *body, *tail]
    if look.height is not None:
        lines = lines[: look.height]
    for line in lines:
        line.truncate(look.width)
        line.no_wrap = True
    return lines


def _fitted(drawn: list[tuple[str, str, list[Curve]]], blocks: list[list[Text]], look: Look, room: int) -> list[Text]:
    """Charts in two or more rows where there is room for them beside the rest, which is cut from its end."""
    columns = max(1, look.width // _CHART)
    rest = [line for block in blocks for line in block]
    least = 6 if room >= 14 else 4
    given = max(least, room - len(rest))
    rows = max(1, min(-(-len(drawn) // columns), given // 6))
    each = min(12, given // rows)
    top = _charts(drawn, look, each - 1, rows * columns) if drawn and room >= least else []
    left = room - len(top)
    while blocks and sum(map(len, blocks)) > left:
        longest = max(range(len(blocks)), key=lambda at: (len(blocks[at]) > 2, at, len(blocks[at])))
        blocks = [block[:-1] if at == longest else block for at, block in enumerate(blocks)]
        blocks = [block for block in blocks if len(block) > 1]
    return top + [line for block in blocks for line in block]


def _head(view: View, at: int, count: int, look: Look) -> list[Text]:
    word, style = _STATES[view.phase]
    line = Text(no_wrap=True)
    line.append("■ " if look.braille else "# ", style=run_colour(at) if count > 1 else style)
    line.append(look.clean(view.name), style="bold")
    pieces = [(word, style), (view.title, "")]
    total = f"/{view.total}" if view.total else ""
    if view.phase not in ("absent", "waiting"):
        pieces.append((f"step {view.step}{total}", "bold"))
    if view.pace is not None:
        pieces.append((f"{number(view.pace)} s each", ""))
    if view.left is not None:
        pieces.append((f"{duration(view.left)} left", ""))
    quiet = age(view.updated) if view.phase in ("running", "waiting") else None
    if quiet is not None:
        pieces.append((f"sign of life {duration(quiet)} ago", "dim"))
    for text, how in pieces:
        if text and cell_len(line.plain) + 2 + len(text) <= look.width:
            line.append("  ").append(look.clean(text), style=how)
    lines = [line]
    if view.total and view.phase in ("running", "requeue", "silent", "failed") and count == 1:
        lines.append(_progress(view, look))
    said = view.said if view.said and view.phase != "running" else ""
    for text, tone in ((said, _tone(view)), (view.headline if count == 1 else "", _TONES[view.tone])):
        lines += _wrapped(look.clean(one_line(text)), look.width, 3, tone)
    return lines


def _tone(view: View) -> str:
    return "red" if view.phase in ("failed", "silent") else "yellow"


def _progress(view: View, look: Look) -> Text:
    share = min(1.0, view.step / view.total)
    room = look.width - 6
    done = int(room * share)
    full, rest = ("━", "─") if look.braille else ("=", "-")
    return Text(no_wrap=True).append(full * done, style="green").append(rest * (room - done), style="dim").append(
        f" {share:>4.0%}"
    )  # fmt: skip


def _charts(drawn: list[tuple[str, str, list[Curve]]], look: Look, height: int, most: int) -> list[Text]:
    """Charts side by side, each of a title and `height` rows."""
    columns = max(1, min(look.width // _CHART, len(drawn)))
    width = look.width // columns
    lines: list[Text] = []
    shown = drawn[:most]
    for begin in range(0, len(shown), columns):
        row = [_chart(*chart, look, width - 2, height) for chart in shown[begin : begin + columns]]
        for at in range(height + 1):
            line = Text(no_wrap=True)
            for chart in row:
                piece = chart[at]
                piece.truncate(width - 2)
                line.append_text(piece).append(" " * (width - cell_len(piece.plain)))
            lines.append(line)
    return lines


def _chart(title: str, unit: str, drawn: Sequence[Curve], look: Look, width: int, height: int) -> list[Text]:
    head = Text(title, style="bold", no_wrap=True)
    several = len({curve.mark for curve in drawn}) > 1  # their colours stand before the names of the runs
    for curve in drawn:
        label = look.clean(curve.label) if len(drawn) > 1 and not several else ""
        text = f" {label} {number(float(curve.y[-1]))}".replace("  ", " ")
        if cell_len(head.plain) + 1 + cell_len(text) <= width:
            head.append(text, style=f"not bold {curve.colour}" if len(drawn) > 1 else "not bold")
    lines = [Line(c.label, np.asarray(c.x, dtype=float), c.y, c.colour) for c in drawn]
    return [head, *curves(lines, width, height, look.braille)]


def _phases(begun: Sequence[tuple[int, View]], look: Look) -> list[Text]:
    """Where the time goes, a bar for each run."""
    lines = []
    for at, view in begun:
        seconds = phase_seconds(view.data) if view.data is not None else {}
        total = sum(seconds.values())
        if total <= 0:
            continue
        shown = [(phase.replace("_", " "), amount, phase_colour(phase)) for phase, amount in seconds.items()]
        if len(begun) > 1:
            label = set_cell_size(look.clean(view.name), 14) + " "
            lines.append(Text(label, style=run_colour(at)).append_text(bar(shown, look.width - 15, look.colours)))
            continue
        lines.append(bar(shown, look.width, look.colours))
        legend = Text(no_wrap=True)
        for name, amount, colour in sorted(shown, key=lambda item: -item[1]):
            text = f"{name} {amount / total:.0%}"
            if cell_len(legend.plain) + len(text) + 3 <= look.width:
                legend.append("■ " if look.braille else "", style=colour).append(text + "  ")
        lines.append(legend)
    return (
        [_title(f"Time of an iteration (mean of {len(begun)} runs)" if len(begun) > 1 else "Time"), *lines]
        if lines
        else []
    )


def _groups(begun: Sequence[tuple[int, View]], look: Look) -> list[Text]:
    """Groups by reward, each with the prompts it is named by, and one of them."""
    lines = []
    for at, view in begun:
        found = parts(view.data) if view.data is not None else []
        for part in found if len(begun) == 1 else found[:1] + found[1:][-1:]:
            who = f"{look.clean(view.name)}: " if len(begun) > 1 else ""
            line = Text(who, style=run_colour(at) if who else "", no_wrap=True)
            line.append(f"{look.clean(part.label)}, ", style=f"bold {part.colour}")
            line.append(look.clean(_facts(part)), style="not bold")
            lines.append(line)
            if part.examples and len(begun) == 1:
                one = look.clean(" ".join(asked(part.examples[0].prompt).split()))
                lines.append(Text(f"        {one[-(look.width - 9) :]}", style="dim", no_wrap=True))
    return [_title("Groups"), *lines] if lines else []


def _facts(part: Part) -> str:
    figures = dict(part.figures)
    reward = figures.get("reward", "").replace("at the start", "was")
    share = f" {figures['share of the responses']}" if "share of the responses" in figures else ""
    named = f" · {part.called}" if part.called != part.label else ""
    return f"{part.rank} {reward}{share}{named}"


def _alarms(views: Sequence[View], look: Look) -> list[Text]:
    lines: list[Text] = []
    for view in views:
        who = f"{view.name}: " if len(views) > 1 else ""
        for tone, text in sorted(view.alarms, key=lambda item: item[0] != "bad"):
            lines += _wrapped(look.clean(f"{who}{one_line(text)}"), look.width, 2, _TONES[tone])
    return [_title("Alarms"), *lines] if lines else []


def _samples(begun: Sequence[tuple[int, View]], look: Look) -> list[Text]:
    """The newest responses, the best and the worst of the newest iteration."""
    lines = []
    for _, view in begun:
        rows = [row for row in view.data.samples if "hacking" not in row] if view.data is not None else []
        newest = [row for row in rows if row["step"] == rows[-1]["step"]] if rows else []
        rated = [row for row in newest if isinstance(row.get("reward"), (int, float))]
        rated.sort(key=lambda row: -row["reward"])
        for why, row in zip(("best", "worst"), (*rated[:1], *rated[1:][-1:]), strict=False):
            who = f"{view.name} " if len(begun) > 1 else ""
            line = Text(
                look.clean(f"{who}step {row['step']} {why} {number(row['reward'])}  "), style="bold", no_wrap=True
            )
            prompt = " ".join(asked(str(row.get("prompt", ""))).split())[-60:]
            response = " ".join(str(row.get("response", "")).split())
            line.append(look.clean(prompt), style="not bold dim")
            line.append(" → " if look.braille else " -> ", style="not bold dim")
            line.append(look.clean(response[:400]), style="not bold")
            lines.append(line)
    return [_title("Samples"), *lines] if lines else []


def _title(text: str) -> Text:
    return Text(text, style="bold", no_wrap=True)


def _wrapped(text: str, width: int, most: int, style: str) -> list[Text]:
    """At most `most` lines of a sentence."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [
            *lines[: most - 1],
            set_cell_size(lines[most - 1] + " " + lines[most], max(1, width - 1)).rstrip() + "…",
        ]
    return [Text(line, style=style, no_wrap=True) for line in lines]
