"""Which charts a report shows, from the metrics that are there; a chart without data is left out.

One run: a chart holds all curves of its kind (every domain, every group). Several runs: a chart holds one metric of
all runs, in each run's colour; inferred groups, which do not correspond between runs, keep a chart for each run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gipo_mc.report import hacking
from gipo_mc.report.catalogue import REWARD_UNIT, RL_CHAPTERS, SPEED, SUPERVISED_CHAPTERS, Chapter, Chart
from gipo_mc.report.drawing import plots
from gipo_mc.report.drawing.colours import PHASES, domain_colours, group_colour, phase_colour, run_colour
from gipo_mc.report.drawing.plots import Bar, Curve, Sample
from gipo_mc.report.runs import RunData

#: Commands whose accuracy has a chance level: of two responses, which one is preferred.
_PAIRWISE = ("train_reward", "train_dpo")


@dataclass(frozen=True)
class Panel:
    """One chart. title and caption: what is seen and how to read it. svg: the picture. wide: takes the whole row. mark:
    CSS class of the one run that it is of, among several."""

    title: str
    caption: str
    svg: str
    wide: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Section:
    """Charts under one heading. folded: closed until asked for."""

    title: str
    text: str
    panels: list[Panel]
    folded: bool = False


def sections(runs: Sequence[RunData], *more: Chapter) -> list[Section]:
    """All sections of runs of one kind, in reading order. more: chapters of RL runs, behind those known here."""
    rl = runs[0].kind == "rl"
    seen = {f"time/{phase}" for run in runs for phase in run.keys("time/")}
    found = []
    for chapter in (*RL_CHAPTERS, *more, hacking.CHAPTER) if rl else SUPERVISED_CHAPTERS:
        found.append(_section(chapter, runs, seen))
        if chapter.title == "Reward":
            found.append(_distributions(runs, seen))
    found.append(_section(SPEED, runs, seen, first=_times(runs)))
    found.append(_rest(runs, seen))
    return [section for section in found if section.panels]


def phase_seconds(run: RunData) -> dict[str, float]:
    """Mean seconds of an iteration by phase, and `other`: what of time/total no phase accounts for."""
    phases = sorted((p for p in run.keys("time/") if p != "total"), key=lambda p: (_place(p), p))
    seconds = {phase: float(run.values(f"time/{phase}").sum()) / run.iterations for phase in phases}
    other = float(run.values("time/total").sum()) / run.iterations - sum(seconds.values())
    if seconds and other > 0.005 * sum(seconds.values()):
        seconds["other"] = other
    return seconds


def _place(phase: str) -> int:
    order = (*PHASES, "update", "evaluation")
    return order.index(phase) if phase in order else len(order)


def _section(chapter: Chapter, runs: Sequence[RunData], seen: set[str], first: Panel | None = None) -> Section:
    panels = [first] if first else []
    for chart in chapter.charts:
        panels += _panels(chart, runs, seen)
    return Section(chapter.title, chapter.text, panels)


def _panels(chart: Chart, runs: Sequence[RunData], seen: set[str]) -> list[Panel]:
    if chart.names == ("accuracy", "eval/accuracy") and runs[0].kind in _PAIRWISE:
        chart = replace(chart, baseline=(0.5, "chance"))
    if chart.names[0] == "loss" and runs[0].kind == "train_dpo" and any(r.option("dpo.loss") == "ipo" for r in runs):
        chart = replace(chart, unit="loss")  # IPO's is a square
    seen.update(name for name in (*chart.names, chart.band) if name)
    if "*" not in chart.names[0]:
        return _plain(chart, runs)
    prefix, suffix = chart.names[0].split("*")
    keys = sorted({key for run in runs for key in run.keys(prefix, suffix)})
    seen.update(f"{prefix}{key}{suffix}" for key in keys)
    if prefix == "group/":
        return _by_group(chart, runs, prefix, suffix)
    return _by_domain(chart, runs, prefix, suffix, keys)


def _plain(chart: Chart, runs: Sequence[RunData]) -> list[Panel]:
    names = [name for name in chart.names if any(_has(run, name) for run in runs)]
    if not names:
        return []
    labels = dict(zip(chart.names, chart.labels or chart.names))
    if len(runs) > 1:
        return [
            _panel(
                f"{chart.title}: {labels[name]}" if len(names) > 1 else chart.title,
                chart,
                runs,
                [
                    _curve(run, name, run.name, run_colour(i), mark=run.mark)
                    for i, run in enumerate(runs)
                    if _has(run, name)
                ],
            )
            for name in names
        ]
    band = runs[0].series.get(chart.band)
    curves = [
        _curve(runs[0], name, labels[name], run_colour(i), band if i == 0 else None) for i, name in enumerate(names)
    ]
    return [_panel(chart.title, chart, runs, curves)]


def _by_group(chart: Chart, runs: Sequence[RunData], prefix: str, suffix: str) -> list[Panel]:
    panels = []
    for run in runs:
        there = [key for key in run.keys(prefix, suffix) if _has(run, f"{prefix}{key}{suffix}")]
        if not there:
            continue
        curves = [_curve(run, f"{prefix}{g}{suffix}", f"group {g}", group_colour(g)) for g in there]
        title = chart.title if len(runs) == 1 else f"{chart.title}: {run.name}"
        panels.append(_panel(title, chart, [run], curves))
    return panels


def _by_domain(chart: Chart, runs: Sequence[RunData], prefix: str, suffix: str, keys: Sequence[str]) -> list[Panel]:
    colours = domain_colours(runs)
    single = chart.title.removesuffix(" by domain")
    if len(runs) == 1:
        there = [key for key in keys if _has(runs[0], f"{prefix}{key}{suffix}")]
        curves = [_of_key(runs[0], prefix, key, suffix, colours, i) for i, key in enumerate(there)]
        title = chart.title if len(curves) != 1 else f"{single}: {there[0]}"
        return [_panel(title, chart, runs, curves)] if curves else []
    panels = []
    for key in keys:
        name = f"{prefix}{key}{suffix}"
        curves = [
            _curve(run, name, run.name, run_colour(i), mark=run.mark) for i, run in enumerate(runs) if _has(run, name)
        ]
        if curves:
            panels.append(_panel(f"{single}: {key}", chart, runs, curves))
    return panels


def _of_key(run: RunData, prefix: str, key: str, suffix: str, colours: Mapping[str, str], place: int) -> Curve:
    """The curve of a domain, of a group, or of what else there are several of."""
    label, colour = key, colours.get(key, plots.DOMAIN_COLOURS[place % len(plots.DOMAIN_COLOURS)])
    if prefix.endswith("group/"):
        label, colour = f"group {key}", group_colour(key)
    return _curve(run, f"{prefix}{key}{suffix}", label, colour, dash=place // 8)


def _has(run: RunData, name: str) -> bool:
    return len(run.values(name)) > 0


def _curve(
    run: RunData, name: str, label: str, colour: str, band: np.ndarray | None = None, dash: int = 0, mark: str = ""
) -> Curve:
    return Curve(label, run.steps, run.series[name], colour, band, dash, mark)


def _panel(title: str, chart: Chart, runs: Sequence[RunData], curves: Sequence[Curve]) -> Panel:
    x_label = "iteration" if runs[0].kind == "rl" else "optimizer step"
    # Of a chart made for several curves of one run, what it says of them does not hold for one metric of several runs.
    several = len(runs) > 1 and ("*" in chart.names[0] or len(chart.names) > 1)
    caption = "" if several else chart.caption
    if chart.band and len(runs) == 1:
        caption = f"{caption} Band: ± one standard deviation over the batch.".strip()
    if len(curves) == 1 and len(runs) > 1:
        caption = f"Only in {curves[0].label}. {caption}".strip()
    svg = plots.line_chart(curves, x_label=x_label, y_label=chart.unit, baseline=chart.baseline)
    return Panel(title, caption, svg, mark=runs[0].mark if len(runs) == 1 else "")


def _times(runs: Sequence[RunData]) -> Panel | None:
    bars = []
    for run in runs:
        seconds = phase_seconds(run)
        if seconds:
            parts = tuple((phase.replace("_", " "), value, phase_colour(phase)) for phase, value in seconds.items())
            bars.append(Bar(run.name, parts, run.mark))
    if not bars:
        return None
    svg = plots.stacked_bars(bars, x_label="seconds per iteration (mean)")
    return Panel("Where the time goes", "", svg, wide=True)


def _distributions(runs: Sequence[RunData], seen: set[str]) -> Section:
    names = dict.fromkeys(name for run in runs for name in sorted(run.distributions, key=_distribution_order))
    panels = []
    for name in names:
        for i, run in enumerate(runs):
            if name in run.distributions:
                panels.append(_distribution(run, name, _distribution_colour(name, i, runs), len(runs) > 1))
    for chart in hacking.TAIL:
        panels += _panels(chart, runs, seen)
    text = "All rewards of the first iterations against those of the last; dashed: the mean."
    return Section("Reward distribution", text, panels)


def _distribution_order(name: str) -> tuple[bool, str]:
    return ("/" in name, name)


def _distribution_colour(name: str, index: int, runs: Sequence[RunData]) -> str:
    last = name.rsplit("/", 1)[-1]
    if len(runs) > 1:
        return run_colour(index)
    if "domain/" in name:
        return domain_colours(runs).get(last, run_colour(0))
    return group_colour(last) if "group/" in name else run_colour(0)


def _distribution(run: RunData, name: str, colour: str, several: bool) -> Panel:
    rows = sorted(run.distributions[name], key=lambda row: row.step)
    window = min(run.window, max(1, len(rows) // 2))
    early, late = rows[:window], rows[-window:]
    samples = [Sample(_span(late), np.concatenate([row.values for row in late]), colour)]
    if len(rows) > 1:
        samples.insert(0, Sample(_span(early), np.concatenate([row.values for row in early]), plots.BEFORE))
    title = name.replace("reward/domain/", "Reward in domain ").replace("reward/group/", "Reward in group ")
    title = "Reward" if title == "reward" else title
    unit = REWARD_UNIT if name.startswith("reward") else name
    name_shown = f"{title}: {run.name}" if several else title
    return Panel(name_shown, "", plots.histogram(samples, x_label=unit), mark=run.mark)


def _span(rows: Sequence) -> str:
    first, last = rows[0].step, rows[-1].step
    return f"iteration {first}" if first == last else f"iterations {first} to {last}"


def _rest(runs: Sequence[RunData], seen: set[str]) -> Section:
    """Whatever else was logged, so that no metric is hidden: names that differ in a domain or group share a chart."""
    names = sorted({name for run in runs for name in run.series} - seen)
    patterns = dict.fromkeys(
        re.sub(r"^group/\d+/", "group/*/", re.sub(r"(^|/)domain/.+$", r"\1domain/*", name)) for name in names
    )
    panels = []
    for pattern in patterns:
        panels += _panels(Chart(pattern, "", pattern.rsplit("/", 1)[-1].replace("*", "value"), (pattern,)), runs, seen)
    return Section("Everything else that was logged", "", panels, folded=True)
