"""The pieces of a chart as SVG: scales, ticks, axes, paths of few bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape

import numpy as np

_MUTED, _GRID, _AXIS = "#5b6672", "#e4e8ec", "#c3cad1"
_FONT, _LETTER = 11.0, 0.56
#: Control characters and bidirectional overrides, which a domain's name may hold, and of which XML holds none.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
#: A point nearer than this to the line between its neighbours is left out: a tenth of a pixel on most screens.
_UNSEEN_STEP = 0.12


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on a line of the picture from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, values: np.ndarray) -> np.ndarray:
        """Where these values are, [n]."""
        share = (values / 2 - self.low / 2) / (self.high / 2 - self.low / 2)  # halves: the range itself may overflow
        return np.asarray(self.begin + share * (self.end - self.begin))


class Plot:
    """The axes of one chart. x, y: (lowest, highest) value. right: room for names. floor: where y begins, if given."""

    def __init__(
        self,
        width: float,
        height: float,
        x: tuple[float, float],
        y: tuple[float, float],
        right: float = 12.0,
        floor: float | None = None,
    ) -> None:
        low, high = _wider(*y)
        self.ticks_y = ticks(low if floor is None else floor, high, 5)
        left = 12.0 + _FONT * _LETTER * max((len(self.tick(value)) for value in self.ticks_y), default=1)
        self.top, self.bottom, self.left, self.right = 26.0, height - 34.0, left, width - right
        edge = 0.0 if floor is not None else 0.02
        self.x = Scale(*_wider(*x, margin=edge), self.left, self.right)
        self.y = Scale(floor if floor is not None else low, high, self.bottom, self.top)

    def frame(self, x_label: str, y_label: str, whole: bool = False) -> str:
        """Grid, ticks and labels. whole: only whole numbers stand under the x axis."""
        at_y = self.y.at(np.array(self.ticks_y))
        grid = "".join(f"M{self.left:.1f} {y:.1f}H{self.right:.1f}" for y in at_y)
        out = [f'<path d="{grid}" stroke="{_GRID}" fill="none"/>']
        out.append(f'<path d="M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}" stroke="{_AXIS}"/>')
        out.append(f'<g fill="{_MUTED}"><g text-anchor="end">')
        for value, y in zip(self.ticks_y, at_y, strict=True):
            out.append(f'<text x="{self.left - 5:.1f}" y="{y + 3.8:.1f}">{self.tick(value)}</text>')
        out.append('</g><g text-anchor="middle">')
        values = ticks(self.x.low, self.x.high, 6, whole=whole)
        for value, x in zip(values, self.x.at(np.array(values)), strict=True):
            out.append(f'<text x="{x:.1f}" y="{self.bottom + 14:.1f}">{self.tick(value)}</text>')
        middle = (self.left + self.right) / 2
        out.append(f'<text x="{middle:.1f}" y="{self.bottom + 29:.1f}">{escaped(x_label)}</text></g>')
        out.append(f'<text x="4" y="12">{escaped(y_label)}</text></g>')
        return "".join(out)

    def baseline(self, value: float, label: str) -> str:
        """A dashed line at y = value with its name."""
        y = float(self.y.at(np.array([value]))[0])
        return (
            f'<path d="M{self.left:.1f} {y:.1f}H{self.right:.1f}" stroke="#8795a1" stroke-dasharray="5 4"/>'
            f'<text x="{self.right:.1f}" y="{y - 4:.1f}" fill="{_MUTED}" text-anchor="end">{escaped(label)}</text>'
        )

    @staticmethod
    def tick(value: float) -> str:
        """A number beside an axis: 0.25, -3, 12k, 2e+07."""
        size = abs(value)
        if size >= 1e9:
            text = f"{value:.2g}"
        elif size >= 1e6:
            text = f"{value / 1e6:g}M"
        elif size >= 1e4:
            text = f"{value / 1e3:g}k"
        else:
            text = f"{value:.4g}"
        return text.replace("-", "\N{MINUS SIGN}", 1) if text.startswith("-") else text


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers from `low` to `high`. whole: whole numbers only."""
    rough = (high / count - low / count) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    found = []
    for number in range(first, first + 3 * count):
        if number * step > high + 1e-9 * step:
            break
        found.append(float(f"{number * step:.12g}") + 0.0)
    return found


def path_of(x: np.ndarray, y: np.ndarray) -> str:
    """The points [n] as an SVG path of few bytes: relative steps, no point that makes no difference."""
    kept = _essential(x, y)
    tenths = np.stack([np.rint(10 * x[kept]), np.rint(10 * y[kept])], axis=1).astype(np.int64)
    first, steps = tenths[0], np.diff(tenths, axis=0)
    steps = steps[np.any(steps != 0, axis=1)]
    out = [f"M{_tenth(first[0])} {_tenth(first[1])}"]
    if len(steps):
        out.append("l")
        for number, (across, down) in enumerate(steps.tolist()):
            one, two = _tenth(across), _tenth(down)
            out.append((" " if number and one[0] != "-" else "") + one + ("" if two[0] == "-" else " ") + two)
    return "".join(out)


def _tenth(value: int) -> str:
    """A number of tenths as SVG reads it: 3, -.4, 12.5."""
    whole, rest = divmod(abs(int(value)), 10)
    text = (str(whole) if whole or not rest else "") + (f".{rest}" if rest else "")
    return "-" + text if value < 0 else text


def _essential(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the points that a line needs (Ramer 1972, Douglas and Peucker 1973)."""
    if len(x) < 3:
        return np.arange(len(x))
    keep = np.zeros(len(x), dtype=bool)
    keep[[0, -1]] = True
    spans = [(0, len(x) - 1)]
    while spans:
        begin, end = spans.pop()
        if end - begin < 2:
            continue
        across, down = x[end] - x[begin], y[end] - y[begin]
        length = math.hypot(across, down)
        from_x, from_y = x[begin + 1 : end] - x[begin], y[begin + 1 : end] - y[begin]
        away = np.abs(across * from_y - down * from_x) / length if length > 1e-9 else np.hypot(from_x, from_y)
        worst = int(away.argmax())
        if away[worst] > _UNSEEN_STEP:
            split = begin + 1 + worst
            keep[split] = True
            spans += [(begin, split), (split, end)]
    return np.flatnonzero(keep)


def svg(width: float, height: float, inside: str, said: str, kind: str = "") -> str:
    """A whole picture that fills the width of its place. said: what it shows, in words. kind: its CSS class."""
    of_kind = f' class="{kind}"' if kind else ""
    return (
        f'<svg{of_kind} xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="100%" '
        f'role="img" aria-label="{escaped(said)}" font-family="system-ui, sans-serif" font-size="{_FONT:.0f}">'
        f"{inside}</svg>"
    )


def escaped(text: str) -> str:
    """Text of others as XML holds it."""
    return escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text))


def _wider(low: float, high: float, margin: float = 0.05) -> tuple[float, float]:
    """A range with some margin, and with some width where the values are all the same."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        if not low:  # mostly a share or a count, which knows nothing below 0
            return -margin, 1.0
        room = 0.05 * max(abs(low), abs(high))
        return low - room, high + room
    return low - margin * (high - low), high + margin * (high - low)
