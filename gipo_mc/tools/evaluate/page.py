"""Write the page that people vote on."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from gipo_mc.run.arguments import name, number
from gipo_mc.run.jsonl import encode, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=name, metavar="DIR", help="the evaluation, made by `judge`")
    parser.add_argument("--out", type=name, required=True, metavar="FILE", help="the page to write, an HTML file")
    parser.add_argument(
        "--guideline", type=name, metavar="FILE", help="text for the voters [a default for each domain]"
    )
    parser.add_argument("--pairs", type=number(1, 100_000), metavar="N", help="how many pairs [one of each prompt]")
    parser.add_argument(
        "--against", nargs="+", metavar="LABEL", help="only pairs with these opponents [all of them, in turn]"
    )
    parser.add_argument("--repeats", type=number(0, 100_000), metavar="N", help="pairs shown twice [a tenth]")
    parser.add_argument("--attention", type=number(0, 100_000), metavar="N", help="attention pairs [a twentieth]")
    parser.add_argument("--seed", type=number(0, 2**31 - 1), default=0, help="draws sides, order, opponents [0]")


def run(own: argparse.Namespace) -> int:
    """Raises GipoError."""
    from gipo_mc.evaluation.people.page import is_page, write_page
    from gipo_mc.tools.output import check_file

    out = Path(own.out)
    check_file(out, is_page)
    done = write_page(
        Path(own.folder), out, guideline=Path(own.guideline) if own.guideline else None, pairs=own.pairs,
        repeats=own.repeats, attention=own.attention, opponents=own.against, seed=own.seed,
    )  # fmt: skip
    if own.json:
        print(encode({**asdict(done), "path": str(done.path), "key": str(done.key)}))
        return 0
    against = ", ".join(f"{count} with {printable(label)}" for label, count in done.opponents.items())
    print(f"{printable(str(done.path))}: {done.pairs} pairs ({against}), {done.repeats} of them twice, and", end=" ")
    print(f"{done.attention} attention pairs. Page {done.hash}.")
    if done.identical:
        print(f"{done.identical} more pairs of the sample have two equal texts: ties, which nobody is asked about.")
    print(f"Its key is {printable(str(done.key))}: give voters the page alone, never the folder.")
    return 0
