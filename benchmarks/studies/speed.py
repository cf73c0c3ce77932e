"""What a run of the group-robustness study costs in processor time, with this build and with an earlier one.

    git worktree add --detach FOLDER COMMIT; (cd FOLDER && GIPO_MC_CUDA=0 python setup.py build_ext --inplace)
    python benchmarks/studies/speed.py --against FOLDER [--rounds 4] [--out FILE.json]

Both builds take turns, in an order that changes from round to round, each run in a process of its own with one thread:
100 iterations of the built-in task as the study configures them, evaluations included, from one reference that the
earlier build trains. "start" is what the process spends until the trainer is imported, which a study spends once for
all its runs and a user for each; "run" is all the rest. The numbers that both builds log are compared, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# The tree whose package is measured comes first: benchmarks/ is not installed, and gipo_mc may be, from elsewhere.
sys.path.insert(0, os.environ.get("MEASURED_TREE", str(ROOT)))

METHODS = ("ppo", "gi_ppo")
#: The study's size of a final run.
SIZE = {"iterations": 100, "batch": 128, "every": 10, "held_out": 256, "sft": 600, "demonstrations": 16384}
QUICK = {"iterations": 2, "batch": 8, "every": 1, "held_out": 8, "sft": 2, "demonstrations": 64}
#: Metrics of a run that are no result.
TIMES = ("time/", "throughput/")
SEED = 51


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    if options.worker:
        return work(options.worker, json.loads(options.given))
    from benchmarks.common.machine import describe_machine, show_machine
    from benchmarks.common.record import write

    record: dict[str, Any] = {"benchmark": "study_speed", "machine": describe_machine()}
    print(show_machine(record["machine"]), flush=True)
    trees = {"new": ROOT} | ({"old": options.against.resolve()} if options.against else {})
    record["commits"] = {side: _commit(tree) for side, tree in trees.items()}
    record["size"] = QUICK if options.quick else SIZE
    record["runs"] = {method: {side: [] for side in trees} for method in options.methods}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        given = {"size": record["size"], "folder": str(place)}
        _process(list(trees.values())[-1], "reference", given)
        for turn in range(options.rounds):
            for method in options.methods:
                rows = {}
                for side in list(trees)[:: 1 if turn % 2 else -1]:
                    found = _process(trees[side], "run", given | {"method": method, "name": f"{side}{turn}"})
                    record["runs"][method][side].append(found)
                    rows[side] = results(place / f"{side}{turn}" / "metrics.jsonl")
                    shutil.rmtree(place / f"{side}{turn}")
                    print(f"round {turn + 1}, {method}, {side}: {_sentence(found)}", flush=True)
                differing = different(rows["new"], rows["old"]) if "old" in rows else []
                record.setdefault("differing", {})[method] = differing
                if differing:
                    print(f"  the numbers of the two builds differ: {', '.join(differing[:5])}", flush=True)
    record["summary"] = summary(record["runs"])
    write(options.out, record)
    print("\n".join(table(record)))
    return 0


def results(metrics: Path) -> list[dict[str, Any]]:
    """What a run logged, its times left out."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows]


def different(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> list[str]:
    """Metrics that are not the same, bit by bit, in both."""
    if len(one) != len(other):
        return ["the number of rows"]
    pairs = list(zip(one, other))
    return sorted({name for a, b in pairs for name in a.keys() | b.keys() if a.get(name) != b.get(name)})


def summary(runs: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, dict[str, Any]]:
    """Of each method: medians by side of all that was measured, and with two sides the share that the new one needs
    of the old one's processor time, of a run alone and of a whole process, each round by itself."""
    found: dict[str, dict[str, Any]] = {}
    for method, sides in runs.items():
        own: dict[str, Any] = {
            side: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
            for side, rows in sides.items()
        }
        if "old" in sides:
            pairs = list(zip(sides["new"], sides["old"], strict=True))
            own["share of a run"] = [new["run"] / old["run"] for new, old in pairs]
            own["share of a process"] = [(n["start"] + n["run"]) / (o["start"] + o["run"]) for n, o in pairs]
        found[method] = own
    return found


def table(record: dict[str, Any]) -> list[str]:
    """In Markdown."""
    lines = ["| method | build | start, s of the processor | run | peak, MiB |", "| --- | --- | --: | --: | --: |"]
    for method, own in record["summary"].items():
        for side in record["commits"]:
            row = own[side]
            lines.append(f"| {method} | {side} | {row['start']:.1f} | {row['run']:.1f} | {row['peak']:.0f} |")
        if "share of a run" in own:
            shares = (statistics.median(own[name]) for name in ("share of a run", "share of a process"))
            lines.append("| {} | new / old | | {:.2f}, with the start {:.2f} | |".format(method, *shares))
    return lines


# ------------------------------------------------------------------------------------ one process, in the measured tree
def work(what: str, given: dict[str, Any]) -> int:
    """Train the reference, or one run, and print what it took."""
    import torch

    torch.set_num_threads(1)
    from gipo_mc.config import load_config
    from gipo_mc.rl import gi_ppo
    from gipo_mc.supervised import sft
    from gipo_mc.tools import builtin, builtin_models  # noqa: F401  # as a study imports it before its forks

    size, folder = given["size"], given["folder"]
    common = [f"run.dir={folder}", f"run.seed={SEED}", "device=cpu"]
    if what == "reference":
        words = [*common, "run.name=reference", f"run.iterations={size['sft']}", f"checkpoint.every={size['sft']}"]
        config = load_config(None, [*words, f"data.max_rows={size['demonstrations']}"], builtin.sft_base())
        builtin.SFT.prepare(config)
        sft.train(config)
        return 0
    words = [
        *common,
        f"run.name={given['name']}",
        f"algorithm.name={given['method']}",
        f"run.iterations={size['iterations']}",
        f"rollout.batch_size={size['batch']}",
        f"algorithm.mini_batch_size={size['batch'] // 2}",
        "checkpoint.every=0",
        f"eval.every={size['every']}",
        f"eval.prompts={size['held_out']}",
        f"model.policy={folder}/reference",
        "data.prompts=[builtin]",
    ]
    config = load_config(None, words, builtin.gi_ppo_base())
    start, clock = time.process_time(), time.monotonic()
    gi_ppo.train(config)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    measured = {"start": start, "run": time.process_time() - start, "wall": time.monotonic() - clock}
    measured |= {"system": usage.ru_stime, "faults": usage.ru_minflt, "peak": usage.ru_maxrss / 1024}
    print(json.dumps(measured))
    return 0


def _process(tree: Path, what: str, given: dict[str, Any]) -> dict[str, float]:
    if not list((tree / "gipo_mc").glob("_C*.so")):
        raise SystemExit(f"{tree} has no kernels: run `GIPO_MC_CUDA=0 python setup.py build_ext --inplace` in it.")
    environment = {"PYTHONPATH": str(tree), "MEASURED_TREE": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", what, "--given", json.dumps(given)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} in {tree} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if what == "run" else {}  # type: ignore[no-any-return]


def _sentence(row: dict[str, float]) -> str:
    return (
        f"start {row['start']:.2f} s of the processor, run {row['run']:.2f} s (whole process: {row['system']:.2f} s in "
        f"the kernel, {row['faults']:.0f} page faults), {row['wall']:.2f} s on the clock, {row['peak']:.0f} MiB"
    )


def _commit(tree: Path) -> str:
    found = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="tree of an earlier commit, its kernels built")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD", help="[ppo gi_ppo]")
    parser.add_argument("--rounds", type=int, default=4, help="[4]")
    parser.add_argument("--quick", action="store_true", help="a tiny size: does it run?")
    out = Path("benchmarks/results/study_speed.json")
    parser.add_argument("--out", type=Path, default=out, help="the record [%(default)s]")
    parser.add_argument("--worker", choices=("reference", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--given", default="{}", help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
