"""Charts as inline SVG: lines with their names at the end, histograms, stacked bars.

Drawn by hand rather than by a plotting library: a page of two hundred charts is then a few hundred kB instead of
megabytes, a chart takes well under a millisecond, so that a page can follow a run, and each curve can carry the class
of its run. Colours are from palettes that colour-blind readers can tell apart (Okabe and Ito 2008 for runs, Tol's
"muted" scheme for domains and phases, "high contrast" for groups), and each thing keeps its colour everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gipo_mc.report.drawing.svg import Plot, Scale, escaped, path_of, svg, ticks
from gipo_mc.run.console import number

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
DOMAIN_COLOURS = ("#117733", "#882255", "#44AA99", "#999933", "#332288", "#CC6677", "#88CCEE", "#AA4499")
GROUP_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#6699CC", "#997700", "#994455", "#EE99AA", "#555555")
PHASE_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499",
)  # fmt: skip
INK, MUTED, GRID = "#1f2933", "#5b6672", "#e4e8ec"
BEFORE = "#8795a1"

#: Beyond this many points a curve is drawn from the means of equal bins: no screen shows more.
MAX_POINTS = 400
#: From this many points on, a smoothed curve is drawn over the faint raw one, where that is noisy.
SMOOTH_FROM = 30

#: Width and height of a chart, and of a bar's row; a letter's width as a share of the font's size.
WIDTH, HEIGHT, ROW = 380.0, 220.0, 30.0
_FONT, _LETTER = 11.0, 0.56
#: Distance of two names at the ends of curves.
_GAP = 14.0
_DASHES = ("", "7 3", "2 2.5", "8 3 2 3")


@dataclass(frozen=True)
class Curve:
    """One line. x, y: float [n], NaN where nothing was logged. band: half-width around y, [n], or None. mark: CSS class
    of the curve and its name, of whose run it is."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    band: np.ndarray | None = None
    dash: int = 0
    mark: str = ""


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
    mark: str = ""


def line_chart(
    curves: Sequence[Curve], *, x_label: str, y_label: str, baseline: tuple[float, str] | None = None
) -> str:
    """Curves over one x axis, each named at its end. baseline: (y, label) of a dashed reference line."""
    drawn = [(curve, *thinned(curve)) for curve in curves]
    names = [curve.label for curve in curves] if len(curves) > 1 else []
    xs = [x for _, x, _, _ in drawn if len(x)]
    ys = [part for _, _, y, band in drawn for part in ((y,) if band is None else (y - band, y + band)) if len(part)]
    if baseline is not None:
        ys.append(np.array([baseline[0]]))
    plot = Plot(WIDTH, HEIGHT, _span(xs), _span(ys), right=_room(names))
    out = [plot.frame(x_label, y_label, whole=True)]
    if baseline is not None:
        out.append(plot.baseline(*baseline))
    for curve, x, y, band in drawn:
        if len(x):
            out.append(_marked(curve.mark, _drawn(plot, curve, x, y, band)))
    if names:
        out.append(_end_names(plot, [(curve, y) for curve, _, y, _ in drawn if len(y)]))
    return svg(WIDTH, HEIGHT, "".join(out), _said(y_label, curves))


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
    shares = [np.histogram(sample.values, edges)[0] / max(1, len(sample.values)) * 100 for sample in samples]
    plot = Plot(WIDTH, HEIGHT, (low, high), (0.0, max(float(share.max()) for share in shares)), floor=0.0)
    out = [plot.frame(x_label, "% of responses")]
    for sample, share in zip(samples, shares, strict=True):
        x, y = np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
        outline = path_of(plot.x.at(x), plot.y.at(y))
        out.append(
            f'<path d="{outline}" fill="{sample.colour}" fill-opacity=".22" stroke="{sample.colour}" '
            'stroke-width="1.4"/>'
        )
        mean = float(plot.x.at(np.array([sample.values.mean()]))[0])
        out.append(
            f'<path d="M{mean:.1f} {plot.top:.1f}V{plot.bottom:.1f}" stroke="{sample.colour}" stroke-dasharray="3 3"/>'
        )
    if len(samples) > 1:
        out.append(_legend(samples))
    means = "; ".join(f"{sample.label}: mean {number(float(sample.values.mean()))}" for sample in samples)
    return svg(WIDTH, HEIGHT, "".join(out), f"Histogram of {x_label}. {means}")


def stacked_bars(bars: Sequence[Bar], *, x_label: str) -> str:
    """Horizontal stacked bars; a part is named inside its bar where it has the room."""
    width, left = 1000.0, 12.0 + _FONT * _LETTER * max(len(_short(bar.label, 28)) for bar in bars)
    longest = max(sum(part[1] for part in bar.parts) for bar in bars)
    bottom = 6.0 + ROW * len(bars)
    scale = Scale(0.0, longest, left, width - 14.0)
    out = []
    for value in ticks(0.0, longest, 8):
        x = float(scale.at(np.array([value]))[0])
        out.append(f'<path d="M{x:.1f} 2V{bottom:.1f}" stroke="{GRID}"/>')
        out.append(_text(x, bottom + 14, Plot.tick(value), MUTED, anchor="middle"))
    for row, bar in enumerate(bars):
        top, start, inside = 4.0 + ROW * row, 0.0, []
        for name, amount, colour in bar.parts:
            begin, end = (float(x) for x in scale.at(np.array([start, start + amount])))
            inside.append(
                f'<rect x="{begin:.1f}" y="{top:.1f}" width="{max(0.0, end - begin - 1):.1f}" height="{ROW - 7:.0f}" '
                f'fill="{colour}"/>'
            )
            if end - begin > _FONT * _LETTER * (len(name) + 1):
                inside.append(_text((begin + end) / 2, top + 16, name, _on(colour), "middle", "in"))
            start += amount
        inside.append(_text(left - 8, top + 16, _short(bar.label, 28), INK, anchor="end"))
        out.append(_marked(bar.mark, "".join(inside)))
    out.append(_text(width - 14, bottom + 28, x_label, MUTED, anchor="end"))
    parts = "; ".join(
        f"{bar.label}: " + ", ".join(f"{name} {number(amount)}" for name, amount, _ in bar.parts) for bar in bars
    )
    return svg(width, bottom + 34, "".join(out), f"Bars of {x_label}. {parts}", "bars")


def _drawn(plot: Plot, curve: Curve, x: np.ndarray, y: np.ndarray, band: np.ndarray | None) -> str:
    out = []
    dash = f' stroke-dasharray="{_DASHES[curve.dash % len(_DASHES)]}"' if curve.dash % len(_DASHES) else ""
    at_x, at_y = plot.x.at(x), plot.y.at(y)
    if band is not None:
        edge_x = np.concatenate([at_x, at_x[::-1]])
        edge_y = np.concatenate([plot.y.at(y + band), plot.y.at(y - band)[::-1]])
        out.append(f'<path d="{path_of(edge_x, edge_y)}z" fill="{curve.colour}" fill-opacity=".12"/>')
    line = f'fill="none" stroke="{curve.colour}" stroke-linejoin="round"{dash}'
    if noisy(y):
        out.append(f'<path d="{path_of(at_x, at_y)}" {line} stroke-width=".8" stroke-opacity=".35"/>')
        at_y = plot.y.at(smoothed(y))
        out.append(f'<path d="{path_of(at_x, at_y)}" {line} stroke-width="2"/>')
    else:
        out.append(f'<path d="{path_of(at_x, at_y)}" {line} stroke-width="1.8"/>')
        if len(x) <= 12:
            dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(at_x, at_y, strict=True))
            out.append(f'<path d="{dots}" stroke="{curve.colour}" stroke-width="6" stroke-linecap="round"/>')
    return "".join(out)


def _end_names(plot: Plot, ends: Sequence[tuple[Curve, np.ndarray]]) -> str:
    """Every curve's name at its right end, pushed apart where two would overlap."""
    placed = sorted(
        ((float(plot.y.at(np.array([smoothed(y)[-1] if noisy(y) else y[-1]]))[0]), curve) for curve, y in ends),
        key=lambda item: item[0],
    )
    gap = min(_GAP, (plot.bottom - plot.top) / max(1, len(placed) - 1))
    places = [min(max(place, plot.top), plot.bottom) for place, _ in placed]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > plot.bottom:
        places[-1] = plot.bottom
        for i in reversed(range(len(places) - 1)):
            places[i] = min(places[i], places[i + 1] - gap)
    out = []
    for place, (_, curve) in zip(places, placed, strict=True):
        dash = f' stroke-dasharray="{_DASHES[curve.dash % len(_DASHES)]}"' if curve.dash % len(_DASHES) else ""
        stroke = f'<path d="M{plot.right + 4:.1f} {place:.1f}h11" stroke="{curve.colour}" stroke-width="3"{dash}/>'
        out.append(_marked(curve.mark, stroke + _text(plot.right + 18, place + 4, _short(curve.label), INK)))
    return "".join(out)


def _legend(samples: Sequence[Sample]) -> str:
    out, right = [], WIDTH - 4.0
    for sample in reversed(samples):
        left = right - _FONT * _LETTER * len(sample.label)
        out.append(_text(left, 12, sample.label, INK))
        out.append(f'<rect x="{left - 13:.1f}" y="3.5" width="9" height="9" fill="{sample.colour}"/>')
        right = left - 24
    return "".join(out)


def thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The points that are there, as means of equal bins where there are more than MAX_POINTS."""
    there = np.isfinite(curve.y)
    x, y = curve.x[there].astype(float), curve.y[there]
    band = None if curve.band is None else np.nan_to_num(curve.band[there])
    if len(x) > MAX_POINTS:
        starts = np.linspace(0, len(x), MAX_POINTS, endpoint=False).astype(int)
        counts = np.diff(np.append(starts, len(x)))
        x, y = (np.add.reduceat(array, starts) / counts for array in (x, y))
        band = None if band is None else np.add.reduceat(band, starts) / counts
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


def _span(parts: Sequence[np.ndarray]) -> tuple[float, float]:
    if not parts:
        return 0.0, 1.0
    return min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)


def _room(names: Sequence[str]) -> float:
    """Width right of the axes for the longest name."""
    return 24.0 + _FONT * _LETTER * max(len(_short(name)) for name in names) if names else 12.0


def _said(y_label: str, curves: Sequence[Curve]) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for curve in curves:
        y = curve.y[np.isfinite(curve.y)]
        if len(y):
            parts.append(f"{curve.label}: first {number(float(y[0]))}, last {number(float(y[-1]))}")
    return f"Chart of {y_label}. " + "; ".join(parts)


def _marked(mark: str, inside: str) -> str:
    return f'<g class="{mark}">{inside}</g>' if mark else inside


def _text(x: float, y: float, text: str, colour: str, anchor: str = "", kind: str = "") -> str:
    where = (f' text-anchor="{anchor}"' if anchor else "") + (f' class="{kind}"' if kind else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}"{where}>{escaped(text)}</text>'


def _short(label: str, length: int = 18) -> str:
    return label if len(label) <= length else f"{label[: length - 1]}…"


def _on(colour: str) -> str:
    """Ink that can be read on `colour`: white on dark, dark on light (relative luminance of sRGB)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#ffffff" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.2 else INK
