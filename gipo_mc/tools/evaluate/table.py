"""Compute the table of an evaluation, write table.json, and print it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gipo_mc.run.arguments import name, number
from gipo_mc.run.terminal.waiting import waiting

if TYPE_CHECKING:
    from gipo_mc.evaluation.judges.journal import Setup
    from gipo_mc.evaluation.statistics.outcomes import Design


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=name, metavar="DIR", help="folder of an evaluation (--out of judge)")
    parser.add_argument("--draws", type=number(100, 1_000_000), default=10_000, help="of the bootstrap [10000]")
    parser.add_argument("--seed", type=number(0, 2**32 - 1), default=0, help="of the bootstrap and the halves [0]")


def run(own: argparse.Namespace) -> int:
    """Returns the exit code. Raises GipoError."""
    from gipo_mc.evaluation.reading import Judged
    from gipo_mc.evaluation.tables.build import build_table
    from gipo_mc.evaluation.tables.model import write_table
    from gipo_mc.evaluation.tables.text import show
    from gipo_mc.run.jsonl import encode

    judged = Judged(Path(own.folder))
    designs: dict[str, Design] = {setup.evaluator: _design(setup) for setup in judged.setups}
    games = judged.games
    with waiting("Computing the table, games") as tell:
        table = build_table(games, own.draws, own.seed, designs, judged.unasked, tell)
    write_table(judged.folder, table)
    print(encode(asdict(table)) if own.json else show(table), end="\n" if own.json else "")
    return 0


def _design(setup: Setup) -> Design:
    if not setup.sees_order:
        return "no order"
    return "both orders" if setup.orders == "both" else "one order"
