"""Make the paper's table of win, tie and lose: train, generate, judge, and write the pages, step by step.

    gipo-mc paper --config configs/paper/tiny.yaml --plan
    gipo-mc paper --config configs/paper/tiny.yaml
    gipo-mc paper --config configs/paper/llama2_7b.yaml --ranks 8 --methods sft ppo_kl

Each step is a command of gipo-mc, printed before it runs. The same command goes on where the last one stopped;
a step that fails ends it with its own message and exit code, and those before it are kept. docs/paper.md has the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gipo_mc.run.arguments import Parser, name, number
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import waiting


def parsers() -> dict[str, Parser]:
    parser = Parser("paper", reports=True, description=__doc__)
    parser.add_argument("--config", type=name, required=True, metavar="FILE", help="the plan, configs/paper/*.yaml")
    parser.add_argument(
        "--plan", action="store_true", help="print the steps, what is left and about how long; run none"
    )
    parser.add_argument("--commands", action="store_true", help="with --plan: each step's command too")
    parser.add_argument("--ranks", type=number(1, 2**20), default=0, metavar="N", help="ranks of a step [the plan's]")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="only these of the opponents [all]")
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="STEP", help="make these anew; runs are set aside, not deleted"
    )
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = parsers()[""]
    return ended(lambda: _paper(parser, parser.parse_args(words)))


def _paper(parser: Parser, options: argparse.Namespace) -> int:
    if options.commands and not options.plan:
        parser.error("--commands belongs to --plan")
    from gipo_mc.run.jsonl import encode, printable
    from gipo_mc.tools.paper.drive import drive, join_tables
    from gipo_mc.tools.paper.plan import load_plan, only
    from gipo_mc.tools.paper.show import as_json, rows_of, show
    from gipo_mc.tools.paper.standing import with_followers
    from gipo_mc.tools.paper.steps import steps_of

    plan = load_plan(options.config)
    if options.methods:
        plan = only(plan, options.methods)
    steps, folder = steps_of(plan, options.ranks), Path(plan.folder)
    again = with_followers(steps, options.again)
    if options.plan:
        with waiting("Looking at the steps") as progress:
            rows = rows_of(steps, folder, again, progress)
        if options.json:
            print(encode({"folder": plan.folder, "steps": as_json(rows, commands=options.commands)}))
        else:
            show(rows, folder, commands=options.commands)
        return 0
    if code := drive(steps, folder, again, aside=options.json):
        return code
    table = join_tables(steps, folder)
    if options.json:
        print(encode({"folder": plan.folder, "done": len(steps), "table": str(table) if table else None}))
        return 0
    print(f"\nAll {len(steps)} steps are done." + (f" The tables: {printable(str(table))}" if table else ""))
    return 0
