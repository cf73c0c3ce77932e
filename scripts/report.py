"""Build one self-contained HTML report of one run or several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gipo_mc.errors import GipoError
from gipo_mc.report.report import build_report, save_charts
from gipo_mc.run.jsonl import printable


def main(argv: list[str] | None = None) -> int:
    """Parse, build, say where; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Several runs are drawn into the same axes: scripts/report.py runs/ppo runs/gi_ppo --out compare.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (the one with metrics.jsonl)")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the first run folder)")
    parser.add_argument("--note", type=Path, metavar="FILE", help="text file whose paragraphs stand above the runs")
    parser.add_argument("--charts", type=Path, metavar="DIR", help="write each chart as an SVG file too, into DIR")
    args = parser.parse_args(argv)
    try:
        print(build_report(args.runs, args.out or args.runs[0] / "report.html", args.note))
        if args.charts:
            print(f"{args.charts}: {len(save_charts(args.runs, args.charts))} charts")
    except GipoError as error:
        print("\n".join(printable(line) for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
