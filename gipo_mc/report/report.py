"""The HTML report of one or several runs: one file, no script, nothing fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import gipo_mc
from gipo_mc.errors import DataError
from gipo_mc.report import comparison, diagnosis, groups, hacking, panels, summary
from gipo_mc.report.drawing import colours
from gipo_mc.report.runs import RunData, load_runs
from gipo_mc.report.texts import moment, readable
from gipo_mc.report.verdict import Verdict, verdict
from gipo_mc.run.jsonl import read_file, storage_errors, write_atomically

if TYPE_CHECKING:
    from gipo_mc.report.evaluation.winners import Evaluation


@dataclass(frozen=True)
class _RunView:
    """What the template shows of one run."""

    name: str
    anchor: str
    mark: str
    colour: str
    title: str
    state: str
    headline: str
    facts: list[tuple[str, str]]
    cards: list[summary.Card]
    notices: list[tuple[str, str]]
    parts: list[groups.Part]
    samples: list[summary.ShownSample]
    suspects: list[hacking.Suspect]
    hacking: list[hacking.ShownHacking]
    config: str


@dataclass(frozen=True)
class _Chapter:
    """Runs of one kind, which share axes. first: is its verdict to be read first? comparisons: tables side by side: the
    values and then, against each run, the differences."""

    title: str
    anchor: str
    first: bool
    verdict: Verdict
    runs: list[_RunView]
    comparisons: list[comparison.Table]
    sections: list[panels.Section]
    phases: list[tuple[str, str, list[tuple[str, str]]]]


def is_report(first: str) -> bool:
    """Is this the first line of a page?"""
    return first.startswith("<!doctype html>")


def build_report(
    runs: list[Path],
    out: Path,
    note: Path | None = None,
    evaluation: Path | None = None,
    *,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Path:
    """Write the report of the run folders `runs`, of the evaluation's folder, or of both, to `out` and return it.

    Runs of one kind are drawn into the same axes and compared in a table; kinds (SFT, reward model, RL) follow one
    another in the order in which they were given. The evaluation comes before the runs. note: a text file whose
    paragraphs, parted by empty lines, stand above all. tell: how many runs are drawn, of how many. Raises DataError
    where a run or the evaluation's table is missing, a log is damaged or the note cannot be read, StorageError where
    `out` cannot be written.
    """
    loaded = load_runs(runs) if runs or not evaluation else []
    shown = _evaluation(evaluation) if evaluation else None
    kinds = _by_kind(loaded)
    chapters: list[_Chapter] = []
    for number, (kind, members) in enumerate(kinds.items()):
        chapters.append(_chapter(kind, members, number))
        tell(sum(len(chapter.runs) for chapter in chapters), len(loaded))
    environment = Environment(
        loader=PackageLoader("gipo_mc.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["picture"] = Markup  # only what plots.py drew: its text is escaped there
    html = environment.get_template("report.html.j2").render(
        title=" · ".join([*(readable(run.name) for run in loaded), *([shown.name] if shown else [])]),
        kind="Training report" if loaded else "Evaluation report",
        evaluation=shown,
        note=_paragraphs(note) if note else [],
        chapters=chapters,
        version=gipo_mc.__version__,
        updated=moment(max((str(run.status.get("updated") or "") for run in loaded), default="")),
    )
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, html)
    return out


def save_charts(runs: list[Path], folder: Path, evaluation: Path | None = None) -> list[Path]:
    """Write every chart of the report of `runs`, and the bars of the evaluation, into `folder`, each as an SVG file
    named after its title (and its kind where the runs are of several); returns the files. Raises as `build_report`."""
    kinds = _by_kind(load_runs(runs) if runs or not evaluation else [])
    charts = _evaluation_charts(evaluation) if evaluation else []
    for kind, members in kinds.items():
        drawn = [panel for section in panels.sections(members, diagnosis.CHAPTER) for panel in section.panels]
        charts += [(panel.title if len(kinds) == 1 else f"{kind} {panel.title}", panel.svg) for panel in drawn]
    written: list[Path] = []
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for title, svg in charts:
        name = re.sub(r"\W+", "_", title.lower()).strip("_")
        taken = sum(path.stem == name or path.stem.startswith(f"{name}-") for path in written)
        path = folder / (f"{name}-{taken + 1}.svg" if taken else f"{name}.svg")
        # In the report a chart stands on the page's colour; alone it needs one of its own.
        write_atomically(path, svg.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1))
        written.append(path)
    return written


def _evaluation(folder: Path) -> Evaluation:
    from gipo_mc.report.evaluation.winners import (
        load_evaluation,  # it looks at responses with torch, which a run does not need
    )

    return load_evaluation(folder)


def _evaluation_charts(folder: Path) -> list[tuple[str, str]]:
    from gipo_mc.report.evaluation.winners import charts

    return charts(folder)


def _paragraphs(note: Path) -> list[str]:
    try:
        text = read_file(note).decode("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"The note {note} cannot be read: {error}. Give a text file in UTF-8.") from error
    return [part for part in (readable(part).strip() for part in re.split(r"\n\s*\n", text)) if part]


def _by_kind(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    kinds: dict[str, list[RunData]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    return kinds


def _chapter(kind: str, runs: Sequence[RunData], number: int) -> _Chapter:
    if len(runs) > 1:
        runs = [replace(run, mark=f"of-{number}-{index}") for index, run in enumerate(runs)]
    rows = summary.phase_rows(runs)
    return _Chapter(
        title=summary.TITLES.get(kind, kind),
        anchor=f"part-{number}",
        first=kind == "rl",
        verdict=verdict(runs),
        runs=[_view(run, index, f"run-{number}-{index}") for index, run in enumerate(runs)],
        comparisons=comparison.comparisons(runs) if len(runs) > 1 else [],
        sections=panels.sections(runs, diagnosis.CHAPTER),
        phases=[(phase.replace("_", " "), colours.phase_colour(phase), cells) for phase, cells in rows],
    )


def _view(run: RunData, index: int, anchor: str) -> _RunView:
    facts = [(readable(key), readable(value)) for key, value in run.about]
    if not any(key.lower() == "layout" for key, _ in facts) and summary.layout(run):
        facts.append(("layout", summary.layout(run)))
    if not any(key.lower() == "run folder" for key, _ in facts):
        facts.append(("run folder", readable(run.path)))
    return _RunView(
        name=readable(run.name),
        anchor=anchor,
        mark=run.mark,
        colour=colours.run_colour(index),
        title=summary.title(run),
        state=str(run.status.get("state") or "unknown"),
        headline=summary.headline(run),
        facts=facts,
        cards=summary.cards(run),
        notices=summary.notices(run) + [("info", text) for text in diagnosis.verdicts(run)],
        parts=groups.parts(run),
        samples=summary.chosen_samples(run),
        hacking=hacking.examples(run),
        suspects=hacking.suspects(run) if run.kind == "rl" else [],
        config=readable(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)) if run.config else "",
    )
