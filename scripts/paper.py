"""Make the paper's table of win, tie and lose: train, generate, judge, and write the pages, step by step.

    python scripts/paper.py --config configs/paper/tiny.yaml --plan
    python scripts/paper.py --config configs/paper/tiny.yaml
    python scripts/paper.py --config configs/paper/llama2_7b.yaml --ranks 8 --methods sft ppo_kl

Each step is a command of this repository, printed before it runs. The same command goes on where the last one stopped;
a step that fails ends it with its own message and exit code, and those before it are kept. docs/paper.md has the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gipo_mc.run.arguments import Parser, name, number


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
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
    options = parser.parse_args(argv)
    if options.commands and not options.plan:
        parser.error("--commands belongs to --plan")
    from gipo_mc.errors import GipoError
    from gipo_mc.run.arguments import say_error
    from gipo_mc.run.jsonl import printable
    from gipo_mc.tools.paper.drive import drive, join_tables, show
    from gipo_mc.tools.paper.plan import load_plan, only
    from gipo_mc.tools.paper.standing import with_followers
    from gipo_mc.tools.paper.steps import steps_of

    try:
        plan = load_plan(options.config)
        if options.methods:
            plan = only(plan, options.methods)
        steps, folder = steps_of(plan, Path(__file__).resolve().parent, options.ranks), Path(plan.folder)
        again = with_followers(steps, options.again)
        if options.plan:
            show(steps, folder, again, commands=options.commands)
            return 0
        if code := drive(steps, folder, again):
            return code
        table = join_tables(steps, folder)
    except GipoError as error:
        return say_error(error)
    print(f"\nAll {len(steps)} steps are done." + (f" The tables: {printable(str(table))}" if table else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
