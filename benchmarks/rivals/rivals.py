"""Whole units of work beside others' programs: generation, SFT, DPO, reward model, a PPO iteration, memory.

    python benchmarks/rivals/rivals.py --python trl116=PATH --python trl112=PATH --python vllm=PATH --data data/hh
    python benchmarks/rivals/rivals.py --only generation --repeat 3
    python benchmarks/rivals/rivals.py --only demo,hh --against FOLDER --data data/hh

Installs nothing. transformers is measured in this environment; the others have environments of their own, which
docs/measurements.md says how to make, and are left out where none is given. Each side is a process with one thread,
which loads its model, tries every unit once, and then works only when it is its turn: the sides take turns in each
round. `tokens` are response tokens (the reward model: all tokens), counted by each side itself. `processor` is the time
of all threads and children of a side. With --against, the same iteration of GI-PPO runs in the working tree of an
earlier version with kernels of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

import torch

from benchmarks.common.machine import describe_machine, show_machine
from benchmarks.common.record import write
from benchmarks.rivals import builds, material
from benchmarks.rivals.protocol import Missing, Worker
from benchmarks.rivals.table import OURS, memory_summary, summary, table
from benchmarks.rivals.units import GENERATION

#: Sides that run in environments of their own.
GIVEN = ("trl116", "trl112", "vllm")


@dataclass(frozen=True)
class Workload:
    """The units that a side can be asked for, and the sides."""

    units: tuple[str, ...]
    sides: tuple[str, ...]


WORKLOADS = {
    "generation": Workload(tuple(GENERATION), (OURS, "transformers", "vllm")),
    "sft": Workload(("sft",), (OURS, "trl116")),
    "dpo": Workload(("dpo",), (OURS, "trl116")),
    "reward": Workload(("reward",), (OURS, "trl116")),
    "ppo": Workload(("ppo",), (OURS, "trl112")),
    "memory": Workload(("memory",), (OURS, "transformers")),
}


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    for side, path in options.python.items():
        if not Path(path).is_file():
            raise SystemExit(f"--python {side}={path}: there is no such interpreter.")
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rivals-")))
        if not (folder / "rows.json").exists():
            print("making the model and the rows ...", file=sys.stderr, flush=True)
            material.make(folder, options.data)
        record: dict[str, Any] = {
            "benchmark": "rivals",
            "machine": describe_machine(),
            "text": "HH-RLHF" if options.data else "nonsense",
            "rows": material.summary(folder),
            "rounds": options.repeat,
            "sides": {},
            "cases": [],
            "not_run": [],
        }
        print(show_machine(record["machine"]) + "\n", flush=True)
        for name in options.only:
            if name in WORKLOADS:
                run_workload(name, options, folder, record)
            else:
                builds.run(name, options, folder, record)
            if options.out:  # after every workload, so that what is there survives an interruption
                write(options.out, record)
        print(table(record))
    return 0


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        type=_pair,
        metavar="SIDE=PATH",
        help=f"interpreter of a rival's environment; SIDE is one of {', '.join(GIVEN)}",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="files of HH-RLHF [words of nonsense]")
    parser.add_argument("--only", type=_names, default=list(WORKLOADS), metavar="A,B", help="[all but demo and hh]")
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="rounds, in each of which all sides work [5]"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="working tree of an earlier version, its kernels built in it"
    )
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keep models and rows here, and take them from here"
    )
    options = parser.parse_args(words)
    if set(options.only) & set(builds.UNITS) and options.against is None:
        parser.error("demo and hh compare with an earlier version: give its working tree, --against FOLDER")
    options.python = dict(options.python)
    return options


def run_workload(name: str, options: argparse.Namespace, folder: Path, record: dict[str, Any]) -> None:
    """Let all sides of a workload take turns, and put the cases into the record."""
    workers: dict[str, Worker] = {}
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    try:
        start(name, options.python, folder, record, workers)
        runs |= {unit: {side: [] for side in workers} for unit in WORKLOADS[name].units}
        for turn in range(options.repeat):
            for unit, found in runs.items():
                order = list(workers)
                for side in order[turn % len(order) :] + order[: turn % len(order)]:  # another one begins each time
                    found[side].append(workers[side].measure(unit))
                    say(turn, unit, side, found[side][-1])
    finally:
        for worker in workers.values():
            worker.end()
    for unit, found in runs.items():
        shown = memory_summary(found, memory_floor(folder)) if unit == "memory" else summary(found)
        record["cases"].append({"workload": name, "unit": unit, "runs": found, "summary": shown})


def start(
    name: str, pythons: Mapping[str, str], folder: Path, record: dict[str, Any], workers: dict[str, Worker]
) -> None:
    """Put the sides of a workload that can be measured, loaded and warm, into `workers`; the others go into the
    record's "not_run"."""
    for side in WORKLOADS[name].sides:
        python = pythons.get(side, "" if side in GIVEN else sys.executable)
        reason = f"not given: --python {side}=PATH"
        if python:
            print(f"{name}: starting {side} ...", file=sys.stderr, flush=True)
            command = [python, "-m", "benchmarks.rivals.worker", side, name, str(folder)]
            workers[side] = Worker(command, f"{side} ({name})", folder / f"{side}_{name}.log")
            try:
                record["sides"][side] = workers[side].ready()
                continue
            except Missing as error:
                workers.pop(side).end()
                reason = str(error)
        if not any(left["side"] == side for left in record["not_run"]):
            record["not_run"].append({"side": side, "reason": reason})


def memory_floor(folder: Path) -> int:
    """Bytes of the weights, and of keys and values of all tokens at the end, float32."""
    weights = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
    tokens = sum(len(ids) + material.NEW_TOKENS for ids in material.prompts(folder, "generation"))
    return weights + tokens * 2 * material.LAYERS * material.HIDDEN * 4


def say(turn: int, unit: str, side: str, found: Mapping[str, Any]) -> None:
    figures = f"{found['processor']:.2f} s of the processor, {found['wall']:.2f} s, {found['tokens']:.0f} tokens"
    print(f"round {turn + 1}: {unit}, {side}: {figures}", file=sys.stderr, flush=True)


def _pair(text: str) -> tuple[str, str]:
    side, _, path = text.partition("=")
    if side not in GIVEN or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not SIDE=PATH with SIDE of {', '.join(GIVEN)}")
    return side, str(Path(path).absolute())  # not resolved: the link itself says which environment


def _names(text: str) -> list[str]:
    names = text.split(",")
    known = (*WORKLOADS, *builds.UNITS)
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
