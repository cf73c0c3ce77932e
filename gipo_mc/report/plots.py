"""Charts as inline SVG: lines with direct labels, histograms, stacked bars.

Colours are from palettes that colour-blind readers can tell apart (Okabe and Ito 2008 for runs, Tol's "muted" scheme
for domains and phases, "high contrast" for groups), and each thing keeps its colour through the whole report.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
DOMAIN_COLOURS = ("#117733", "#882255", "#44AA99", "#999933", "#332288", "#CC6677", "#88CCEE", "#AA4499")
GROUP_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#6699CC", "#997700", "#994455", "#EE99AA", "#555555")
PHASE_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499",
)  # fmt: skip
INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
BEFORE = "#9aa5b1"

#: Beyond this many points a curve is drawn from the means of equal bins: no screen shows more.
MAX_POINTS = 600
#: From this many points on, a smoothed curve is drawn over the faint raw one, where that is noisy.
SMOOTH_FROM = 30

_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, in the page's font
    "text.parse_math": False,  # a "$" in a label is a dollar
    "font.size": 9,
    "axes.edgecolor": "#c3cad1",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#c3cad1",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "xtick.major.size": 3,
    "path.simplify": True,
}
#: Control characters and bidirectional overrides, which a domain's name may hold.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Curve:
    """One line. x, y: float [n], NaN where nothing was logged. band: half-width around y, [n], or None."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    band: np.ndarray | None = None
    dash: int = 0


@dataclass(frozen=True)
class Sample:
    """Values of one histogram, and how it is drawn."""

    label: str
    values: np.ndarray
    colour: str


@dataclass(frozen=True)
class Bar:
    """One stacked bar: (name, amount, colour) of its parts, in order."""

    label: str
    parts: tuple[tuple[str, float, str], ...]


def line_chart(
    curves: Sequence[Curve], *, x_label: str, y_label: str, baseline: tuple[float, str] | None = None
) -> str:
    """Curves over one x axis, each labelled at its end. baseline: (y, label) of a dashed reference line."""
    names = [curve.label for curve in curves] if len(curves) > 1 else []
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(4.2, 2.45, right=_label_room(names))
        for curve in curves:
            _draw(axes, curve)
        if baseline is not None:
            axes.axhline(baseline[0], color=BEFORE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.text(
                1.0, baseline[0], baseline[1], transform=axes.get_yaxis_transform(), ha="right", va="bottom",
                fontsize=8, color=MUTED,
            )  # fmt: skip
        _finish(axes, x_label, y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if names:
            _end_labels(axes, curves)
        return _svg(figure, y_label, *(c.label for c in curves))


def histogram(samples: Sequence[Sample], *, x_label: str) -> str:
    """Histograms over shared bins, as shares of each sample. Raises ValueError without any value."""
    pooled = np.concatenate([sample.values for sample in samples])
    if not len(pooled):
        raise ValueError("a histogram needs values")
    low, high = float(pooled.min()), float(pooled.max())
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    smallest = min(len(sample.values) for sample in samples)
    edges = np.linspace(low, high, int(np.clip(2.0 * smallest ** (1 / 3), 8, 32)) + 1)  # Rice's rule
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(4.2, 2.45, right=0.97)
        for sample in samples:
            share = np.histogram(sample.values, edges)[0] / max(1, len(sample.values)) * 100
            axes.stairs(share, edges, fill=True, color=sample.colour, alpha=0.28)
            axes.stairs(share, edges, color=sample.colour, linewidth=1.4, label=sample.label)
            axes.axvline(float(sample.values.mean()), color=sample.colour, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.set_ylim(bottom=0)
        _finish(axes, x_label, "% of responses")
        if len(samples) > 1:
            axes.legend(
                frameon=False, fontsize=8, labelcolor="linecolor", handlelength=0.8, ncols=len(samples),
                columnspacing=1.0, loc="lower right", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.1,
            )  # fmt: skip
        return _svg(figure, x_label, *(s.label for s in samples))


def stacked_bars(bars: Sequence[Bar], *, x_label: str) -> str:
    """Horizontal stacked bars; a part is named inside its bar where it has the room."""
    with matplotlib.rc_context(_STYLE):
        height = 0.75 + 0.42 * len(bars)
        figure, axes = _figure(12.4, height, left=_label_room([b.label for b in bars], 12.4, left=True), right=0.985)
        figure.subplots_adjust(bottom=0.45 / height, top=1 - 0.08 / height)
        longest = max(sum(part[1] for part in bar.parts) for bar in bars)
        for row, bar in enumerate(bars):
            start = 0.0
            for name, amount, colour in bar.parts:
                axes.barh(row, amount, left=start, height=0.66, color=colour, edgecolor="white", linewidth=1)
                if amount > longest * 0.0075 * (len(name) + 1):
                    axes.text(
                        start + amount / 2, row, name, ha="center", va="center", fontsize=8, color=_on(colour)
                    )  # fmt: skip
                start += amount
        axes.set_yticks(range(len(bars)), [_short(bar.label, 28) for bar in bars])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.invert_yaxis()
        axes.grid(axis="x", color=GRID)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label, fontsize=8.5)
        return _svg(figure, x_label, *(bar.label for bar in bars))


def _draw(axes: Axes, curve: Curve) -> None:
    x, y, band = _thin(curve)
    dash = _DASHES[curve.dash % len(_DASHES)]
    marker = "o" if len(x) <= 12 else None
    if band is not None:
        axes.fill_between(x, y - band, y + band, color=curve.colour, alpha=0.12, linewidth=0)
    if noisy(y):
        axes.plot(x, y, color=curve.colour, linewidth=0.8, alpha=0.3, linestyle=dash)
        axes.plot(x, smoothed(y), color=curve.colour, linewidth=1.8, linestyle=dash)
    else:
        axes.plot(x, y, color=curve.colour, linewidth=1.6, linestyle=dash, marker=marker, markersize=3.5)


def _thin(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The points that are there, as means of equal bins where there are more than MAX_POINTS."""
    there = np.isfinite(curve.y)
    x, y = curve.x[there].astype(float), curve.y[there]
    band = None if curve.band is None else np.nan_to_num(curve.band[there])
    if len(x) > MAX_POINTS:
        bins = np.array_split(np.arange(len(x)), MAX_POINTS)
        x, y = (np.array([array[b].mean() for b in bins]) for array in (x, y))
        band = None if band is None else np.array([band[b].mean() for b in bins])
    return x, y, band


def noisy(y: np.ndarray) -> bool:
    """Whether y [n] is long and rough enough to be read better smoothed; a schedule, with a kink or two, is not."""
    return len(y) >= SMOOTH_FROM and float(np.abs(np.diff(y, 2)).mean()) > 0.02 * float(np.ptp(y))


def smoothed(y: np.ndarray) -> np.ndarray:
    """y [n] under a Gaussian whose standard deviation is 2 % of the points: no lag, and true weights at both ends."""
    sigma = max(1.0, 0.02 * len(y))
    reach = min(len(y) - 1, int(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weight = np.convolve(np.ones(len(y)), kernel)[reach : reach + len(y)]
    return np.convolve(y, kernel)[reach : reach + len(y)] / weight


def _end_labels(axes: Axes, curves: Sequence[Curve]) -> None:
    """Name every curve at its right end, pushed apart where two would overlap."""
    low, high = axes.get_ylim()
    ends = []
    for curve in curves:
        _, y, _ = _thin(curve)
        if len(y):
            end = smoothed(y)[-1] if noisy(y) else y[-1]
            ends.append([(end - low) / (high - low), curve])
    ends.sort(key=lambda item: item[0])
    gap = min(0.085, 1.0 / max(1, len(ends)))
    places = [float(np.clip(end[0], 0.0, 1.0)) for end in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    overflow = max(0.0, (places[-1] if places else 0.0) - 1.0)
    for i in reversed(range(len(places))):
        ceiling = places[i + 1] - gap if i + 1 < len(places) else 1.0
        places[i] = min(places[i], ceiling) if overflow else places[i]
    for place, (_, curve) in zip(places, ends):
        axes.text(
            1.015, place, _short(curve.label), transform=axes.transAxes, va="center", fontsize=8.5, color=curve.colour,
        )  # fmt: skip


def _figure(width: float, height: float, *, left: float = 0.115, right: float = 0.97) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    figure.subplots_adjust(left=left, right=right, bottom=0.175, top=0.88)
    return figure, axes


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=8.5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.margins(x=0.02)
    low, high = sorted(axes.get_ylim())
    widest = max((len(_tick(tick)) for tick in axes.get_yticks() if low <= tick <= high), default=1)
    left = 0.035 + 0.0172 * widest  # room for the tick labels, in figure widths
    axes.figure.subplots_adjust(left=left)
    width = axes.get_position().width
    axes.text((0.012 - left) / width, 1.07, y_label, transform=axes.transAxes, fontsize=8.5, color=MUTED)


def _tick(value: float, _position: int = 0) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _short(label: str, length: int = 18) -> str:
    return label if len(label) <= length else f"{label[: length - 1]}…"


def _label_room(labels: Sequence[str], width: float = 4.2, left: bool = False) -> float:
    """Where the axes end (or, with `left`, begin) so that the longest label fits beside them: a figure fraction."""
    longest = max((len(_short(label, 28 if left else 18)) for label in labels), default=0)
    room = 0.03 + 0.079 * longest / width
    return room + 0.01 if left else 1.0 - room


def _on(colour: str) -> str:
    """Ink that can be read on `colour`: white on dark, dark on light (relative luminance of sRGB)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#ffffff" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.2 else INK


def _svg(figure: Figure, *identity: str) -> str:
    """The figure as an <svg> element: no header, no metadata, ids that are the same on every run."""
    with matplotlib.rc_context({"svg.hashsalt": hashlib.sha256("\0".join(identity).encode()).hexdigest()}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text[text.index("<svg") :])  # XML holds none of them
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', text, count=1)
