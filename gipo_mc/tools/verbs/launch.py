"""The line that starts a run on several GPUs or nodes, checked first; or the script of a Slurm job.

    gipo-mc launch --nodes 4 --gpus 8 --config configs/paper/hh_rl.yaml run.name=large
    gipo-mc launch --nodes 4 --gpus 8 --config configs/paper/hh_rl.yaml --slurm > job.sbatch
    gipo-mc launch --gpus 2 --config configs/hh_tiny.yaml device=cpu --go

Prints what you would type, on stdout; --go does it. On several nodes the same line is run on each, HOST being one that
the others reach. Exit code with --go: the run's, or that of sbatch. docs/clusters.md has the rest.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gipo_mc.errors import ConfigError
from gipo_mc.run.arguments import Parser, name, number, say_warning
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.voice import tell
from gipo_mc.tools.commands import for_torchrun, trainer
from gipo_mc.tools.doctor import unfit_for_gpus
from gipo_mc.tools.slurm.job import MARGIN, Job, batch_script, lead_of, notes

if TYPE_CHECKING:
    from gipo_mc.config import Config
    from gipo_mc.plan.plan import Plan

HOST, PORT = "HOST", 29500
#: The GPU whose memory and speed are taken, since nothing says which there will be.
ASSUMED = "h100"
#: Bytes a second of a file system that is slow for a cluster's: an assumption.
SLOW = 2e9


def parsers() -> dict[str, Parser]:
    from gipo_mc.config import TRAINERS

    parser = Parser("launch", reports=True, description=__doc__)
    parser.add_argument("--nodes", type=number(1, 2**16), default=1, help="machines [1]")
    parser.add_argument(
        "--gpus",
        type=number(1, 1024),
        default=8,
        help="ranks on each of them, one for each GPU; plan and dry-run take the GPUs of all [8]",
    )
    parser.add_argument("--config", type=name, metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "--command",
        choices=TRAINERS,
        metavar="TRAINER",
        help="train_gi_ppo, train_sft, train_reward or train_dpo [by the data]",
    )
    parser.add_argument("--host", default=HOST, help="of several nodes, the one where they meet [HOST, to be replaced]")
    parser.add_argument("--port", type=number(1, 65535), default=PORT, help=f"and its port [{PORT}]")
    parser.add_argument("--slurm", action="store_true", help="a batch script in place of the line")
    parser.add_argument(
        "--sbatch",
        action="append",
        type=_option,
        default=[],
        metavar="OPTION",
        help="a line of it, such as --sbatch=--time=8:00:00",
    )
    parser.add_argument("--go", action="store_true", help="do it: start this node's ranks, or submit the job")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override an option")
    return {"": parser}


def _option(text: str) -> str:
    """An option of sbatch, with its dashes."""
    if not re.fullmatch("-[A-Za-z].*|--[a-z].*", text):
        raise argparse.ArgumentTypeError(
            f"an option of sbatch begins with dashes and is one line: --sbatch=--{text.lstrip('-')}"
        )
    return text


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = parsers()[""]
    return ended(lambda: _launch(parser, parser.parse_intermixed_args(words)))


@dataclass(frozen=True)
class Launch:
    """What is to be started. words: of the trainer, behind torchrun. data: data-parallel size. not_here: each
    file, folder or module that it names and this machine does not have, as `absent_files` says."""

    command: str
    config: Config
    nodes: int
    ranks: int
    data: int
    words: tuple[str, ...]
    not_here: tuple[tuple[str, int], ...]

    @property
    def run(self) -> str:
        """The name of the run's folder in run.dir."""
        return self.config.run.name or self.command

    def torchrun(self, host: str, port: int) -> list[str]:
        """The words behind `torchrun`."""
        meet = ["--standalone"]
        if self.nodes > 1:
            meet = ["--nnodes", str(self.nodes), "--rdzv-backend", "c10d", "--rdzv-id", self.run]
            meet += ["--rdzv-endpoint", f"{host}:{port}"]
        return [*meet, "--nproc-per-node", str(self.ranks), *for_torchrun(self.words)]

    @property
    def gpus(self) -> bool:
        """Are its ranks on GPUs?"""
        return self.config.device != "cpu"

    @property
    def job(self) -> Job:
        """The same as a job of Slurm."""
        config = self.config
        return Job(self.run, self.words, config.run.dir, self.nodes, self.ranks, self.gpus, self.describe())

    def describe(self) -> str:
        parallel = self.config.parallel
        ranks = f"{self.nodes} x {self.ranks} ranks" if self.nodes > 1 else f"{self.ranks} ranks"
        chunks = f" ({parallel.virtual_pipeline} chunks)" if parallel.virtual_pipeline > 1 else ""
        return f"{self.command} on {ranks}: TP{parallel.tensor} x PP{parallel.pipeline}{chunks} x DP{self.data}."


def _launch(parser: Parser, options: argparse.Namespace) -> int:
    if options.sbatch and not options.slurm:
        parser.error("--sbatch belongs to --slurm")
    if options.json and options.go:
        parser.error("--json shows what --go would do: leave one of them out")
    launch = _checked(options)
    words = launch.torchrun(options.host, options.port)
    if options.go and launch.nodes > 1 and options.host == HOST and not options.slurm:
        parser.error("--go on several nodes needs --host, the one where they meet; run the same line on each")
    script = batch_script(launch.job, options.sbatch) if options.slurm else ""
    if options.json:
        _print_json(launch, {"script": script} if script else {"torchrun": words})
        return 0
    _describe(launch, options)
    if not options.go:
        if launch.nodes > 1 and not script:
            tell("Run this on each node." + (" HOST is one that all reach." if options.host == HOST else ""))
        print(script or f"torchrun {shlex.join(words)}", end="" if script else "\n")
        return 0
    if script:
        return _submit(script)
    from gipo_mc.tools import torchrun

    return torchrun.main(words)


def _describe(launch: Launch, options: argparse.Namespace) -> None:
    """On stderr: what is to be started, and what may be wrong with that."""
    tell(launch.describe())
    for text, code in launch.not_here:
        say_warning(text) if code else tell(f"note: {text}")
    if options.slurm:
        for text in notes(launch.job, options.sbatch):
            tell(text)
    if not launch.gpus:
        return
    for text in (*unfit_for_gpus(), *_outlook(launch, options)):
        tell(f"note: {text}")


def _outlook(launch: Launch, options: argparse.Namespace) -> Iterator[str]:
    """What the plan says of memory, and of the time that a job has to save, where it knows the sizes of the models."""
    from gipo_mc.plan.hardware import HARDWARE
    from gipo_mc.plan.plan import make_plan
    from gipo_mc.plan.run import read_run
    from gipo_mc.plan.show.one import reasons

    ranks = launch.nodes * launch.ranks
    try:
        run = read_run(launch.config, launch.command, config_file=options.config)
        plan = make_plan(run, ranks, HARDWARE[ASSUMED], node=launch.ranks)
    except ConfigError:  # a model of unknown size, or none at all: nothing was to be judged
        return
    if not plan.fits:
        kinds = [device for kind, device in HARDWARE.items() if device.cuda and kind != ASSUMED]
        larger = [device.name for device in kinds if make_plan(run, ranks, device, node=launch.ranks).fits]
        yield (
            f"gipo-mc plan, on {plan.device.name}: {' '.join(reasons(plan))} "
            f"{f'{larger[0]} has room. ' if larger else ''}gipo-mc plan --gpus {ranks} says what else would."
        )
    if options.slurm and plan.cost:
        step, lead = _to_stopping_point(plan), lead_of(options.sbatch)
        wanted = math.ceil((step + plan.checkpoint / SLOW) / 30) * 30 + MARGIN
        if lead < wanted:
            fast = plan.checkpoint / max(lead - MARGIN - step, 1)
            yield (
                f"the signal comes {lead} seconds before the time limit. By gipo-mc plan, on {plan.device.name}, a "
                f"step takes up to {step:.0f} of them, and the file system has to take {fast / 1e9:.1f} GB/s for the "
                f"{plan.checkpoint / 1e9:,.0f} GB of a save. With {SLOW / 1e9:.0f} GB/s it is "
                f"--sbatch=--signal=B:USR1@{wanted}."
            )


def _to_stopping_point(plan: Plan) -> float:
    """Seconds from one point at which a run may stop to the next, at most: a step, or the updates of an iteration or
    what comes before them."""
    updates = sum(one.seconds for name, one in (plan.cost or {}).items() if name.startswith("update"))
    return max(updates, plan.seconds - updates) if plan.run.command == "train_gi_ppo" else plan.seconds


def _checked(options: argparse.Namespace) -> Launch:
    """Raises ConfigError where a start would be refused for its options, its ranks, or a model or rows that are here.
    Files and modules that are not here are only noted, and no function is imported: this may be a login node."""
    from gipo_mc.config import check_layout, load_config, names_nothing, wide_tensor
    from gipo_mc.config.load import read_layers
    from gipo_mc.plan.run import command_of
    from gipo_mc.tools.start_checks import absent_files, problems_of, unfit_heads, unfit_models, unfit_rows

    ranks = options.nodes * options.gpus
    base: dict[str, Any] = {}
    not_here: tuple[tuple[str, int], ...] = ()
    if names_nothing(options.config, options.overrides):
        if not options.command:
            raise ConfigError(
                "Nothing names a model or data, so there is nothing to choose the trainer by: give --config FILE, or "
                "--command for its built-in task."
            )
        from gipo_mc.tools.builtin import layout_for
        from gipo_mc.tools.verbs.train import TRAINERS

        base = TRAINERS[trainer(options.command)[-1]].task.base() | {"parallel": layout_for(ranks)}
    config = load_config(options.config, options.overrides, base)
    command = options.command or command_of(config)
    if not base:
        looks = (unfit_models, unfit_heads, unfit_rows)
        unfit = [each for look in looks for each in look(config, command)]
        if found := [*problems_of(config, command, ranks), *(text for text, code in unfit if code)]:
            raise ConfigError("\n".join(found))
        # Not refused: they may be on the cluster.
        not_here = tuple(absent_files(config, command))
    data = check_layout(config, ranks, command)
    if wide := wide_tensor(config, options.gpus, "ranks"):
        say_warning(wide)
    given = ["--config", options.config] if options.config else []
    # auto is the CPU where torch is a CPU build, as on a login node it may be: the GPUs would idle, without a word.
    layers, _ = read_layers(options.config, options.overrides, {})
    unsaid = config.device == "auto" and not any("device" in layer.values for layer in layers)
    words = (*trainer(command), *given, *options.overrides, *["device=cuda"] * unsaid)
    return Launch(command, config, options.nodes, options.gpus, data, words, not_here)


def _submit(script: str) -> int:
    if shutil.which("sbatch") is None:
        raise ConfigError("There is no sbatch here: run this on a login node of the cluster, or without --slurm.")
    return subprocess.run(["sbatch"], input=script, text=True).returncode


def _print_json(launch: Launch, what: dict[str, Any]) -> None:
    from gipo_mc.run.jsonl import encode

    parallel = launch.config.parallel
    layout = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "virtual": parallel.virtual_pipeline}
    layout["data"] = launch.data
    found = {"command": launch.command, "run": f"{launch.config.run.dir}/{launch.run}", "nodes": launch.nodes}
    not_here = [text for text, _ in launch.not_here]
    print(encode({**found, "ranks_per_node": launch.ranks, "layout": layout, "not_here": not_here, **what}))
