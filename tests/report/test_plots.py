"""Charts: smoothing, labels that do not overlap, thinned curves."""

import re
from itertools import pairwise

import numpy as np
import pytest

from gipo_mc.report.drawing import plots


def test_smoothing_keeps_constants_and_straight_lines():
    np.testing.assert_allclose(plots.smoothed(np.full(50, 3.0)), 3.0, rtol=1e-12)
    line = np.arange(100.0)
    np.testing.assert_allclose(plots.smoothed(line)[10:-10], line[10:-10], rtol=1e-12)
    assert len(plots.smoothed(np.array([1.0]))) == 1


def test_a_schedule_is_drawn_as_it_is_and_noise_is_smoothed():
    schedule = np.concatenate([np.linspace(0, 1, 10), np.linspace(1, 0, 90)])
    assert not plots.noisy(schedule)
    assert plots.noisy(np.random.default_rng(1).normal(size=100) + np.linspace(0, 5, 100))
    assert not plots.noisy(np.full(100, 2.0))


def test_end_labels_do_not_overlap():
    x = np.arange(3.0)
    curves = [plots.Curve(f"name{i}", x, np.full(3, 1.0 + i * 1e-3), plots.RUN_COLOURS[i]) for i in range(5)]
    curves.append(plots.Curve("far", x, np.full(3, 5.0), plots.RUN_COLOURS[5]))
    svg = plots.line_chart(curves, x_label="iteration", y_label="y")
    heights = {
        name: float(re.search(r' y="([\d.]+)"', found)[1])
        for found, name in re.findall(r"(<text[^>]*>)((?:name\d|far))</text>", svg)
    }
    assert len(heights) == 6
    ordered = sorted(heights.values())
    assert min(b - a for a, b in pairwise(ordered)) > 11.0, "the size of the font"
    assert min(ordered) > 0.0 and max(ordered) < plots.HEIGHT


def test_a_long_run_is_thinned_but_keeps_its_mean():
    curve = plots.Curve("a", np.arange(6000), np.random.default_rng(1).normal(2, 1, 6000), "#000000")
    x, y, _ = plots.thinned(curve)
    assert len(x) == plots.MAX_POINTS and y.mean() == pytest.approx(curve.y.mean())
    assert len(plots.line_chart([curve], x_label="iteration", y_label="y")) < 12_000


def test_histogram_needs_values():
    with pytest.raises(ValueError, match="needs values"):
        plots.histogram([plots.Sample("a", np.empty(0), "#000000")], x_label="x")


def test_what_never_left_zero_has_no_axis_below_it():
    steps, zero = np.arange(5.0), np.zeros(5)
    svg = plots.line_chart([plots.Curve("clipped", steps, zero, plots.INK)], x_label="iteration", y_label="share")
    assert "\N{MINUS SIGN}" not in svg and ">0.5<" in svg
