"""Curves in letters: eight dots a character (braille), or stars where the terminal has no such letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from gipo_mc.run.console import number

#: Bit of each dot of a braille letter, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
#: Room for the numbers beside a curve.
LABEL = 8


@dataclass(frozen=True)
class Line:
    """A curve: x, y float [n], finite. style: colour of rich."""

    label: str
    x: np.ndarray
    y: np.ndarray
    style: str


def curves(lines: Sequence[Line], width: int, height: int, braille: bool = True) -> list[Text]:
    """`height` rows of `width` letters with the curves in one range, the highest and lowest value at the left."""
    there = [line for line in lines if len(line.x)]
    columns = max(1, width - LABEL)
    if not there:
        return [Text(" " * width) for _ in range(height)]
    x_low, x_high = min(float(line.x[0]) for line in there), max(float(line.x[-1]) for line in there)
    y_low, y_high = min(float(line.y.min()) for line in there), max(float(line.y.max()) for line in there)
    across, down = (2, 4) if braille else (1, 1)
    bits = np.zeros((height, columns), dtype=np.int64)
    styles = np.full((height, columns), -1)
    for at, line in enumerate(there):
        for row, column in _dots(line, (x_low, x_high), (y_low, y_high), columns * across, height * down):
            cell = row // down, column // across
            bits[cell] |= _DOTS[row % 4][column % 2] if braille else 1
            styles[cell] = at
    labels = {0: number(y_high), height - 1: number(y_low)} if height > 1 else {0: number(float(there[0].y[-1]))}
    out = []
    for row in range(height):
        text = Text(f"{labels.get(row, ''):>{LABEL - 1}} ", style="dim", no_wrap=True)
        for column in range(columns):
            letter = (chr(0x2800 + int(bits[row, column])) if braille else "*") if bits[row, column] else " "
            style = there[styles[row, column]].style if styles[row, column] >= 0 else ""
            text.append(letter, style=f"not dim {style}".strip())
        out.append(text)
    return out


def _dots(line: Line, x: tuple[float, float], y: tuple[float, float], width: int, height: int) -> list[tuple[int, int]]:
    """(row, column) of every dot of a curve, its columns' means joined by strokes."""
    spread = (x[1] - x[0]) or 1.0
    column = np.clip(((line.x - x[0]) / spread * (width - 1)).round().astype(int), 0, width - 1)
    sums, counts = np.zeros(width), np.zeros(width)
    np.add.at(sums, column, line.y)
    np.add.at(counts, column, 1.0)
    there = np.flatnonzero(counts)
    means = sums[there] / counts[there]
    rows = np.interp(means, y, (height - 1.0, 0.0)) if y[1] > y[0] else np.full(len(means), (height - 1) / 2)
    filled = np.arange(there[0], there[-1] + 1)
    path = np.interp(filled, there, rows).round().astype(int)
    found = []
    before = int(path[0])
    for place, row in zip(filled.tolist(), path.tolist(), strict=True):
        step = 1 if row >= before else -1
        for between in range(before + (step if row != before else 0), row + step, step) if row != before else (row,):
            found.append((between, place))
        before = row
    return found


def bar(parts: Sequence[tuple[str, float, str]], width: int, filled: bool = True) -> Text:
    """(name, amount, style) as one stacked bar; a name stands inside where it has the room. filled: colours are shown;
    without them edges are drawn."""
    total = sum(amount for _, amount, _ in parts) or 1.0
    text, done = Text(no_wrap=True), 0.0
    for name, amount, style in parts:
        begin = round(width * done / total)
        done += amount
        room = round(width * done / total) - begin
        if room <= 0:
            continue
        inside = name if len(name) <= room - 2 else ""
        if filled:
            text.append(f"{inside:^{room}}", style=f"{ink(style)} on {style}")
        else:
            text.append(f"{inside:{'-'}^{room - 1}}|")
    return text


def ink(colour: str) -> str:
    """White or black, whichever can be read on a colour of the form #rrggbb."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return "#ffffff" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.2 else "#000000"
