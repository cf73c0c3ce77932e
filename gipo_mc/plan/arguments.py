"""What the commands that plan a run ask for alike: a configuration, its ranks and their device."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from gipo_mc.config import TRAINERS, Config, load_config
from gipo_mc.errors import ConfigError
from gipo_mc.plan.hardware import GIB, HARDWARE, Hardware, hardware
from gipo_mc.run.arguments import name, number, real, say_warning

_GIB = real(lambda value: 0 < value < math.inf, "number of GiB above 0")


def add_run(parser: argparse.ArgumentParser, *, most_gpus: int, of_cpu: str) -> None:
    """The options that `chosen_run` and `gipo_mc.plan.run.read_run` want. of_cpu: what there is not for a CPU."""
    parser.add_argument("--config", type=name, metavar="FILE", required=True, help="YAML file of the run")
    parser.add_argument("--gpus", type=number(1, most_gpus), default=8, help="ranks, one on each GPU [8]")
    parser.add_argument(
        "--gpu",
        default="h100",
        type=str.lower,
        choices=list(HARDWARE),
        metavar="NAME",
        help=f"a100, h100, h200, b200, or cpu ({of_cpu}) [h100]",
    )
    parser.add_argument("--gpus-per-node", type=number(1, 1024), default=8, help="GPUs of one machine [8]")
    parser.add_argument(
        "--host-memory", type=_GIB, default=0.0, metavar="GIB",
        help="memory of one machine, which offloading and saves must fit in [not judged]",
    )  # fmt: skip
    parser.add_argument(
        "--command",
        default="",
        choices=TRAINERS,
        metavar="TRAINER",
        help="train_gi_ppo, train_sft, train_reward or train_dpo [by the data]",
    )
    parser.add_argument("--shape", default="", help="config.json, folder or published name of all models [their own]")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override an option")


def chosen_run(options: argparse.Namespace) -> tuple[Config, str, Hardware]:
    """(configuration, its command, the device) of the options of `add_run`. Raises ConfigError."""
    from gipo_mc.plan.run import command_of

    gpus, node = options.gpus, options.gpus_per_node
    if gpus > node and gpus % node:
        say_warning(
            f"{gpus} GPUs do not fill nodes of {node}: the last one is taken to have {gpus % node}. --gpus-per-node "
            "says how many a node has; launchers want as many ranks on each."
        )
    device = hardware(options.gpu)
    if options.host_memory and not device.cuda:
        raise ConfigError("--host-memory is what a machine has beside its GPUs: leave it out with --gpu cpu.")
    device = replace(device, host_memory=options.host_memory * GIB)
    config = load_config(options.config, options.overrides)
    return config, options.command or command_of(config), device
