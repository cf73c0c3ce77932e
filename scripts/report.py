"""Build one self-contained HTML report of runs, of an evaluation, or of both."""

from __future__ import annotations

import sys
from pathlib import Path

from gipo_mc.errors import GipoError
from gipo_mc.run.arguments import Parser, name, say_error
from gipo_mc.run.jsonl import printable
from gipo_mc.tools.output import check_file


def main(argv: list[str] | None = None) -> int:
    """Parse, build, say where; returns the exit code."""
    parser = Parser(
        description=__doc__,
        epilog="Several runs are drawn into the same axes: scripts/report.py runs/ppo runs/gi_ppo --out compare.html",
    )
    parser.add_argument("runs", nargs="*", type=name, metavar="RUN", help="run folder (the one with metrics.jsonl)")
    parser.add_argument("--evaluation", type=name, metavar="DIR", help="folder of scripts/evaluate.py, with its table")
    parser.add_argument("--out", type=name, help="file to write (default: report.html in the first run folder, or DIR)")
    parser.add_argument("--note", type=name, metavar="FILE", help="text file whose paragraphs stand above the runs")
    parser.add_argument("--charts", type=name, metavar="DIR", help="write each chart as an SVG file too, into DIR")
    args = parser.parse_args(argv)
    if not args.runs and not args.evaluation:
        parser.error("name a run folder, such as runs/builtin_gi_ppo, or an evaluation with --evaluation DIR")
    from gipo_mc.report.report import build_report, is_report, save_charts  # not for --help: it draws

    try:
        runs = list(map(Path, args.runs))
        evaluation = Path(args.evaluation) if args.evaluation else None
        out = Path(args.out) if args.out else [*runs, *([evaluation] if evaluation else [])][0] / "report.html"
        check_file(out, is_report)
        print(printable(str(build_report(runs, out, Path(args.note) if args.note else None, evaluation))))
        if args.charts:
            print(f"{printable(args.charts)}: {len(save_charts(runs, Path(args.charts), evaluation))} charts")
    except GipoError as error:
        return say_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
