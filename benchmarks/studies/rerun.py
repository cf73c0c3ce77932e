"""Does a study's record come out again? Some of its runs, by the commit that made them, compared digit by digit.

    python benchmarks/studies/rerun.py benchmarks/results/group_robustness.json --methods ppo gi_ppo --seeds 56 57

The commit that the record names for these methods and seeds is checked out beside this tree and its kernels are built
there. Its own study then runs them, with the settings of the record, from references that it trains itself. Whatever
both hold of a run is compared, but for seconds. Prints what differs, and ends with 1 where anything does. It goes on
where it was interrupted, with the same --place.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.common.earlier import ROOT, earlier_build
from benchmarks.common.machine import describe_machine

#: What of a run is no result: how long it took, and what it cost.
TIMES = ("seconds", "cost", "time/", "throughput/")
#: Programs of studies that have another name than their records' "benchmark".
SCRIPTS = {"learned_reward": "learned"}
#: What of a machine may change digits.
MACHINE = ("cpu", "instructions", "torch_instructions", "python", "torch", "megatron_core")


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    record = json.loads(options.record.read_text())
    wanted = [
        outcome
        for outcome in record.get("runs", [])
        if outcome["run"]["method"] in options.methods and outcome["run"]["seed"] in options.seeds
    ]
    if not wanted:
        raise SystemExit(f"{options.record} has no run of these methods and seeds.")
    machine = made_by(record, options.methods, options.seeds)
    here = describe_machine()
    print(f"{len(wanted)} runs of commit {machine['commit']}, {machine['date']}", flush=True)
    for name in MACHINE:
        if machine.get(name) != here.get(name):
            print(f"  {name}: {machine.get(name)} then, {here.get(name)} now", flush=True)
    again = carried_out(record, wanted, machine["commit"], options)
    return 1 if show(wanted, again) else 0


def made_by(record: dict[str, Any], methods: Collection[str], seeds: Collection[int]) -> dict[str, Any]:
    """The machine, with commit, that all runs of these methods and seeds were carried out on. Raises SystemExit where
    there are several, or the tree had changes that no commit holds."""
    found = []
    for method in methods:
        for seed in seeds:
            found.append(record.get("final_machine", record["machine"]))
            for addition in record.get("additions", []):
                if method in addition["methods"] or seed in addition["final_seeds"]:
                    found[-1] = addition["machine"]
    commits = sorted({machine["commit"] for machine in found})
    if len(commits) > 1:
        raise SystemExit(f"These runs are of several commits ({', '.join(commits)}): ask for those of one at a time.")
    if found[0]["dirty"]:
        raise SystemExit(f"These runs are of {commits[0]} with uncommitted changes: they cannot be repeated.")
    return found[0]  # type: ignore[no-any-return]


def cut(record: dict[str, Any], wanted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A record of the wanted methods and seeds alone, with the settings that were chosen and without results, which the
    study goes on from: nothing is tuned again."""
    methods, seeds = ({outcome["run"][key] for outcome in wanted} for key in ("method", "seed"))
    kept = {key: value for key, value in record.items() if key not in ("runs", "additions", "overhead")}
    for key in ("methods", "tuning", "chosen"):
        kept[key] = {name: value for name, value in record[key].items() if name in methods}
    kept["final_seeds"] = [seed for seed in record["final_seeds"] if seed in seeds]
    return kept


def carried_out(
    record: dict[str, Any], wanted: Sequence[dict[str, Any]], commit: str, options: argparse.Namespace
) -> dict[str, Any]:
    """The record that the commit's own study makes of the wanted runs."""
    place = options.place.absolute()
    place.mkdir(parents=True, exist_ok=True)
    out = place / "record.json"
    if not out.exists():
        out.write_text(json.dumps(cut(record, wanted)))
    with earlier_build(commit, place / "tree", own_kernels=True) as tree:
        stem = SCRIPTS.get(record["benchmark"], record["benchmark"])
        [script] = [path for path in (tree / "benchmarks").rglob("*.py") if path.stem == stem]
        seeds = [str(seed) for seed in json.loads(out.read_text())["final_seeds"]]
        command = [sys.executable, str(script), "--methods", *options.methods, "--seeds", *seeds]
        command += ["--workers", str(options.workers), "--runs", str(place / "runs"), "--out", str(out)]
        if strength := record.get("size", {}).get("strength"):
            command += ["--strength", strength]
        subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, check=True)
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def show(wanted: Sequence[dict[str, Any]], again: dict[str, Any]) -> int:
    """Print how each run compares; how many differ or are missing."""
    found = {tuple(sorted(outcome["run"].items())): outcome for outcome in again["runs"]}
    wrong = 0
    for outcome in wanted:
        run = outcome["run"]
        name = f"{run['method']} {run['value']} on {run['data']}, seed {run['seed']}"
        other = found.get(tuple(sorted(run.items())))
        if other is None:
            print(f"MISSING {name}")
            wrong += 1
            continue
        numbers, differences = compared(outcome, other)
        print(f"{'DIFFERS' if differences else 'equal  '} {name}: {numbers} numbers, {len(differences)} differ")
        for line in differences[:5]:
            print(f"    {line}")
        wrong += bool(differences)
    print(f"{len(wanted) - wrong} of {len(wanted)} runs came out again, to the six digits of the record.")
    return wrong


def compared(one: Any, other: Any) -> tuple[int, list[str]]:
    """(how many numbers both have, sentences about what differs)."""
    left, right = dict(_leaves(one)), dict(_leaves(other))
    both = left.keys() & right.keys()
    alone = [f"{name}: in one of the two only" for name in sorted(left.keys() ^ right.keys())]
    return len(both), [f"{n}: {left[n]} then, {right[n]} now" for n in sorted(both) if left[n] != right[n]] + alone


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not str(key).startswith(TIMES):
                yield from _leaves(item, f"{name} {key}".strip())
    else:
        yield name, float(f"{value:.6g}") if isinstance(value, float) else value


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="a record of benchmarks/studies/")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="final seeds of the record")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each [1]")
    parser.add_argument("--place", type=Path, default=ROOT / "runs/rerun", help="folder of the commit and its runs")
    options = parser.parse_args(words)
    if not options.record.is_file():
        parser.error(f"there is no file {options.record}")
    return options


if __name__ == "__main__":
    sys.exit(main())
