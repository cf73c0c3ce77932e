"""A start without its GPUs: builds every kind of rank on tensors without storage, and steps the schedules.

    gipo-mc dry-run --config configs/paper/hh_rl.yaml --gpus 8

One process, no GPU, no weights: the real modules, optimizers, process groups and schedules of a rank of each stage,
compared with the plan. Fails on what a start of so many ranks would fail on. Exit code 0: it would start; 2: it would
not, with the reasons. docs/planning.md has the rest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.plan.arguments import add_run, chosen_run
from gipo_mc.run.arguments import Parser, say_error
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import importing, waiting


def parsers() -> dict[str, Parser]:
    parser = Parser("dry-run", reports=True, description=__doc__)
    add_run(parser, most_gpus=2**16, of_cpu="memory is not judged")
    parser.add_argument("--without-files", action="store_true", help="models, tokenizers and data need not be here")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for whatever a start would fail on."""
    return ended(lambda: _judged(parsers()[""].parse_intermixed_args(words)))


def _judged(options: argparse.Namespace) -> int:
    try:
        return _dry_run(options)
    except GipoError as error:
        say_error(error)
        return ConfigError.exit_code


def _dry_run(options: argparse.Namespace) -> int:
    from gipo_mc.config import check_layout
    from gipo_mc.plan.plan import make_plan
    from gipo_mc.plan.run import read_run
    from gipo_mc.plan.show.one import reasons

    config, command, device = chosen_run(options)
    check_layout(config, options.gpus, command)

    with importing():
        from gipo_mc.tools.dry_run.files import look
        from gipo_mc.tools.dry_run.rehearsal import refused, rehearse
        from gipo_mc.tools.dry_run.show import as_json, as_text

    problems, notes = ([], []) if options.without_files else look(config, command)
    try:
        run = read_run(config, command, config_file=options.config, shape=options.shape)
        with waiting("Building the ranks of each pipeline stage") as tell:
            found = rehearse(make_plan(run, options.gpus, device, node=options.gpus_per_node), tell)
    except ConfigError as error:
        # Of a model that is not here nothing is known: what a start says of it comes first.
        raise refused(problems) or error from error
    found.problems += [*reasons(found.plan), *problems]
    found.notes += [*found.plan.notes, *notes]
    print(json.dumps(as_json(found), indent=2) if options.json else as_text(found))
    if refusal := refused(found.problems):
        raise refusal
    return 0
