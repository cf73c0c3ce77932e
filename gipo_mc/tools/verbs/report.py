"""Build one self-contained HTML report of runs, of an evaluation, or of both.

    gipo-mc report runs/gi_ppo
    gipo-mc report runs/ppo runs/gi_ppo --out compare.html

Several runs are drawn into the same axes. Prints where the report is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gipo_mc.run.arguments import Parser, name
from gipo_mc.run.jsonl import encode, printable
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import waiting
from gipo_mc.tools.output import check_file


def parsers() -> dict[str, Parser]:
    parser = Parser("report", reports=True, description=__doc__)
    parser.add_argument("runs", nargs="*", type=name, metavar="RUN", help="run folder (the one with metrics.jsonl)")
    parser.add_argument("--evaluation", type=name, metavar="DIR", help="folder of `gipo-mc evaluate`, with its table")
    parser.add_argument("--out", type=name, help="file to write (default: report.html in the first run folder, or DIR)")
    parser.add_argument("--note", type=name, metavar="FILE", help="text file whose paragraphs stand above the runs")
    parser.add_argument("--charts", type=name, metavar="DIR", help="write each chart as an SVG file too, into DIR")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = parsers()[""]
    return ended(lambda: _report(parser, parser.parse_args(words)))


def _report(parser: Parser, options: argparse.Namespace) -> int:
    """Build, and say where."""
    if not options.runs and not options.evaluation:
        parser.error("name a run folder, such as runs/builtin_gi_ppo, or an evaluation with --evaluation DIR")
    from gipo_mc.report.report import build_report, is_report, save_charts  # not for --help: it draws

    runs = list(map(Path, options.runs))
    evaluation = Path(options.evaluation) if options.evaluation else None
    out = Path(options.out) if options.out else [*runs, *([evaluation] if evaluation else [])][0] / "report.html"
    check_file(out, is_report)
    with waiting("Drawing the report, runs") as tell:
        built = build_report(runs, out, Path(options.note) if options.note else None, evaluation, tell=tell)
        tell.phase("the charts' files")
        charts = save_charts(runs, Path(options.charts), evaluation) if options.charts else []
    if options.json:
        print(encode({"report": str(built), "runs": options.runs, "charts": [str(path) for path in charts]}))
        return 0
    print(printable(str(built)))
    if options.charts:
        print(f"{printable(options.charts)}: {len(charts)} charts")
    return 0
