"""Write the table of an evaluation in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from gipo_mc.run.arguments import name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=name, metavar="DIR", help="folder of an evaluation that has a table.json")
    parser.add_argument("--format", choices=("csv", "markdown", "latex", "json"), required=True)
    parser.add_argument("--out", type=name, metavar="FILE", required=True, help="file to write")


def run(own: argparse.Namespace) -> int:
    """Returns the exit code. Raises GipoError."""
    from gipo_mc.evaluation.tables.export import FORMATS, is_export
    from gipo_mc.evaluation.tables.model import read_table
    from gipo_mc.run.jsonl import encode, printable, write_atomically
    from gipo_mc.tools.output import check_file

    out = Path(own.out)
    check_file(out, is_export)
    write_atomically(out, FORMATS[own.format](read_table(Path(own.folder))))
    print(encode({"export": str(out)}) if own.json else printable(str(out)))
    return 0
