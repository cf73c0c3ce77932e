"""What a run will need, before anything starts: memory by rank and phase, disk, communication, time.

    gipo-mc plan --config configs/paper/hh_rl.yaml --gpus 8 --gpu h100
    gipo-mc plan --config configs/paper/hh_rl.yaml --gpus 16 --search
    gipo-mc plan --config configs/paper/hh_rl.yaml --gpus 8 --scale-to 4096 --grow-batch

By arithmetic from the configuration and the models' sizes; no weights are read, and torch is not imported. A model is a
folder, a run, a published name, or what --shape says. Exit code 0: it fits; 2: it does not, or the configuration is
wrong.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gipo_mc.errors import ConfigError
from gipo_mc.plan.arguments import add_run, chosen_run
from gipo_mc.run.arguments import Parser, number, real, say_warning
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import waiting

if TYPE_CHECKING:
    from gipo_mc.plan.hardware import Hardware
    from gipo_mc.plan.run import Run

#: Of layouts that --search shows.
SHOWN = 12
_POSITIVE = real(lambda value: 0 < value < math.inf, "number above 0")
_SHARE = real(lambda value: 0 < value <= 1, "share above 0 and up to 1")
_MILLISECONDS = real(lambda value: 0 <= value <= 1e6, "number of milliseconds from 0 to 1,000,000")


def parsers() -> dict[str, Parser]:
    parser = Parser("plan", reports=True, description=__doc__)
    add_run(parser, most_gpus=2**20, of_cpu="no times")
    parser.add_argument("--prompt", type=number(1, 2**20), default=0, help="usual prompt tokens, for times [the most]")
    parser.add_argument("--response", type=number(1, 2**20), default=0, help="usual response tokens [the most]")
    parser.add_argument("--utilisation", type=_SHARE, help="share of the bf16 peak that is reached [0.4]")
    parser.add_argument(
        "--layer-ms", type=_MILLISECONDS, default=0.0, metavar="MS",
        help="ms that a layer takes in each way of a pass, beside the arithmetic [0]",
    )  # fmt: skip
    parser.add_argument(
        "--row-ms", type=_MILLISECONDS, default=0.0, metavar="MS",
        help="ms of the host for a row of a decoding step [0]",
    )  # fmt: skip
    parser.add_argument("--search", action="store_true", help="rank the layouts of these ranks by time")
    parser.add_argument(
        "--scale-to", type=number(1, 2**20), default=0, metavar="GPUS",
        help="the best layout on --gpus, twice as many, ... up to GPUS, and what failures cost there",
    )  # fmt: skip
    parser.add_argument("--grow-batch", action="store_true", help="with --scale-to: batches grow with the GPUs")
    parser.add_argument(
        "--failure-hours", type=_POSITIVE, default=None, help="hours of one GPU between failures of a job [50,677]"
    )
    parser.add_argument(
        "--restart-seconds", type=_POSITIVE, default=None, help="from a failure until the checkpoint is read [300]"
    )
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _plan(parsers()[""].parse_intermixed_args(words)))


def _plan(options: argparse.Namespace) -> int:
    from gipo_mc.config import wide_tensor
    from gipo_mc.plan.hardware import OURS, UTILISATION
    from gipo_mc.plan.layouts.nearest import more_gpus, nearest_change
    from gipo_mc.plan.layouts.search import check_alone, search
    from gipo_mc.plan.plan import make_plan
    from gipo_mc.plan.run import read_run
    from gipo_mc.plan.show.one import as_json, as_text
    from gipo_mc.plan.show.search import search_text

    config, command, device = chosen_run(options)
    run = read_run(
        config, command, config_file=options.config, shape=options.shape, prompt=options.prompt,
        response=options.response,
    )  # fmt: skip
    program = replace(OURS, layer=options.layer_ms / 1e3, row=options.row_ms / 1e3)
    share = {"node": options.gpus_per_node, "utilisation": options.utilisation or UTILISATION, "program": program}
    if options.scale_to:
        return _scale(options, run, device, share)
    if options.search:
        with waiting("Trying layouts") as tell:
            plans = search(run, options.gpus, device, **share, tell=tell)
        if not plans:
            check_alone(run, device)
            raise ConfigError(f"No layout of {options.gpus} ranks divides the models' heads, layers and batches.")
        change = None
        if not plans[0].fits:
            with waiting("Trying more GPUs") as tell:
                change = more_gpus(lambda gpus: search(run, gpus, device, **share, tell=tell), options.gpus)
        rows = [as_json(plan, change) for plan in plans]
        print(json.dumps(rows, indent=2) if options.json else search_text(plans, SHOWN, change))
        return 0 if plans[0].fits else ConfigError.exit_code
    if wide := wide_tensor(config, min(options.gpus, options.gpus_per_node), "GPUs"):
        say_warning(f"{wide} --gpus-per-node says how many a node has.")
    plan = make_plan(run, options.gpus, device, **share)
    change = None if plan.fits else nearest_change(plan)
    print(json.dumps(as_json(plan, change), indent=2) if options.json else as_text(plan, change))
    return 0 if plan.fits else ConfigError.exit_code


def _scale(options: argparse.Namespace, run: Run, device: Hardware, share: dict[str, Any]) -> int:
    from gipo_mc.plan.goodput import FAILURE_HOURS, RESTART, scale, sizes
    from gipo_mc.plan.show.scale import scale_json, scale_text

    if not device.cuda:
        raise ConfigError("--scale-to needs times, and nobody stated a CPU's rates: name a GPU with --gpu.")
    if options.scale_to < options.gpus:
        raise ConfigError(f"--scale-to {options.scale_to} is less than --gpus {options.gpus}: swap them.")
    hours, restart = options.failure_hours or FAILURE_HOURS, options.restart_seconds or RESTART
    with waiting("Trying numbers of GPUs") as tell:
        found = scale(
            run, sizes(options.gpus, options.scale_to), device, grow=options.grow_batch, failure_hours=hours,
            restart=restart, **share, tell=tell,
        )  # fmt: skip
    print(json.dumps(scale_json(found), indent=2) if options.json else scale_text(found, hours, restart))
    return 0
