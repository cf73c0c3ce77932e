"""The page that follows runs: made here from what is known of them, the same pieces and pictures as the report's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import gipo_mc
from gipo_mc.monitor.follow import View
from gipo_mc.monitor.shown import charts
from gipo_mc.report import groups, hacking, summary
from gipo_mc.report.drawing import colours, plots
from gipo_mc.report.drawing.plots import Bar
from gipo_mc.report.panels import phase_seconds
from gipo_mc.report.runs import RunData
from gipo_mc.run.console import duration, number

#: Samples of the newest iteration that are shown.
_SAMPLES = 4


@dataclass(frozen=True)
class _Chart:
    """id: of the element, so that only what changed is put into the page."""

    id: str
    title: str
    svg: str


@dataclass(frozen=True)
class _Shown:
    """What the template shows of one run. share: of the iterations, in %; None where that is unknown."""

    view: View
    colour: str
    share: float | None
    pace: str
    left: str
    cards: list[summary.Card]
    parts: list[groups.Part]
    suspects: list[hacking.Suspect]
    samples: list[summary.ShownSample]


class Page:
    """Renders the page and the part of it that changes."""

    def __init__(self, every: float) -> None:
        self._every = every
        loader = ChoiceLoader([PackageLoader("gipo_mc.monitor"), PackageLoader("gipo_mc.report")])
        self._environment = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._environment.filters["picture"] = Markup  # only what plots.py drew: its text is escaped there

    def style(self) -> str:
        """The report's style, and what is the monitor's own."""
        return _template("gipo_mc.report", "report.css") + _template("gipo_mc.monitor", "monitor.css")

    def script(self) -> str:
        """What asks for the part that changes."""
        return _template("gipo_mc.monitor", "monitor.js")

    def page(self, views: Sequence[View]) -> str:
        """The whole page."""
        return self._environment.get_template("monitor.html.j2").render(
            title=" · ".join(view.name for view in views),
            state=Markup(self.state(views)),  # rendered, and so escaped, by the line before
            every=f"{self._every:g}",
            version=gipo_mc.__version__,
        )

    def state(self, views: Sequence[View]) -> str:
        """The part that changes."""
        data = [view.data for view in views if view.data is not None]
        drawn = [
            _Chart(f"chart-{at}", title, plots.line_chart(curves, x_label="step", y_label=unit))
            for at, (title, unit, curves) in enumerate(charts(data) if data else [])
        ]
        return self._environment.get_template("state.html.j2").render(
            shown=[_shown(view, at) for at, view in enumerate(views)], charts=drawn, times=_times(data)
        )


def _template(package: str, name: str) -> str:
    return (files(package) / "templates" / name).read_text(encoding="utf-8")


def _shown(view: View, at: int) -> _Shown:
    data = view.data
    return _Shown(
        view=view,
        colour=colours.run_colour(at),
        share=100 * min(1.0, view.step / view.total) if view.total else None,
        pace="" if view.pace is None else f"{number(view.pace)} s each",
        left="" if view.left is None else f"{duration(view.left)} left",
        cards=summary.cards(data) if data else [],
        parts=groups.parts(data) if data else [],
        suspects=hacking.suspects(data) if data and data.kind == "rl" else [],
        samples=summary.newest_samples(data, _SAMPLES) if data else [],
    )


def _times(data: Sequence[RunData]) -> _Chart | None:
    bars = []
    for run in data:
        seconds = phase_seconds(run)
        parts = [(name.replace("_", " "), amount, colours.phase_colour(name)) for name, amount in seconds.items()]
        if parts:
            bars.append(Bar(run.name, tuple(parts), run.mark))
    if not bars:
        return None
    return _Chart("times", "Where the time goes", plots.stacked_bars(bars, x_label="seconds per iteration (mean)"))
