"""The study of group robustness: GI-PPO beside its baselines, controls and oracles on the built-in task, over seeds.

    python benchmarks/group_robustness.py [--budget] [--quick] [--workers 2] [--runs DIR] [--out FILE.json]
    python benchmarks/group_robustness.py --overhead 6 --out FILE.json
    python benchmarks/group_robustness.py --table FILE.json [--into docs/results.md] [--pictures docs/pictures]

Prints first how many runs are left and about how long they take (--budget: nothing else). Then, of every rival, each
candidate of its tuned keys on the tuning seeds; the best by the criterion below is written into --out and stays
fixed; then every method at its best on the final seeds, and some on prompts that are half easy, half hard. It goes on
where it was interrupted: a run that has ended is not run again. A failed run is a result, listed with its reason.

Oracles, and GI-PPO to the letter, are no rivals: they take the value chosen for the method that they follow.

Criterion: the mean gold reward of easy and hard held-out prompts at the end, averaged over the tuning seeds. A method
is a set of options over the one training loop; the proxy reward is what all of them are trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, before torch is imported

from benchmarks import documents, study_overhead, study_pictures, study_tables
from benchmarks.machine import describe_machine, show_machine
from benchmarks.record import fingerprint, write
from benchmarks.study_runs import Method, Run, Size, finished, has_reference, references, run_all
from benchmarks.study_statistics import best_value, figures

#: What is tuned of every method with a KL: its eta together with the policy's learning rate, each pair a candidate.
KL = ("algorithm.kl_coef", "policy.lr")
PAIRS = (
    *(f"{eta} {lr}" for eta in ("0.05", "0.2") for lr in ("2.5e-05", "5e-05", "0.0001")),
    *("0.01 5e-05", "0.01 7e-05"),  # an eta of 0.05 was the best of all that were tried: a lower one was added
)
RATES = ("1.2e-05", "2.5e-05", "3.5e-05", "5e-05", "7e-05", "0.0001", "6e-05", "8.5e-05")  # as many for PPO without KL
PROMPT = ("algorithm.group_input=prompt",)
METHODS: dict[str, Method] = {
    "ppo": Method("PPO", "ppo", KL, PAIRS),
    "ppo_no_kl": Method("PPO without KL", "ppo_no_kl", KL[1:], RATES),
    "mean_kl": Method("control: mean KL", "mean_kl", KL, PAIRS),
    "threshold_kl": Method("control: reward threshold", "threshold_kl", KL, PAIRS),
    "adaptive_kl": Method("adaptive KL alone", "adaptive_kl", KL, PAIRS),
    "variance_penalty": Method("variance penalty alone", "variance_penalty", KL, PAIRS),
    "gi_ppo": Method("GI-PPO", "gi_ppo", KL, PAIRS),
    "gi_ppo_prompt": Method("GI-PPO, reads the prompt", "gi_ppo", KL, PAIRS, PROMPT),
    "rloo": Method("RLOO", "rloo", KL, PAIRS),
    "gi_rloo": Method("GI-RLOO", "gi_rloo", KL, PAIRS),
    "paper": Method("GI-PPO to the letter", "paper", KL, PAIRS, follows="gi_ppo"),
    "oracle_gi_ppo": Method("ORACLE GI-PPO", "oracle_gi_ppo", KL, PAIRS, follows="gi_ppo"),
    "oracle_group_dro": Method("ORACLE group-DRO", "oracle_group_dro", KL, PAIRS, follows="ppo"),
}
EVEN_METHODS = ("ppo", "mean_kl", "threshold_kl", "gi_ppo", "gi_ppo_prompt")
TUNING_SEEDS, FINAL_SEEDS = (31, 32), (51, 52, 53, 54, 55)
#: Seconds of an iteration and of an evaluation's prompt on one core, and of a reference, for the budget alone.
SECONDS_ITERATION, SECONDS_PROMPT, SECONDS_REFERENCE = 0.36, 0.0008, 50.0


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    if options.table:
        return show(options)
    if options.overhead:
        return overhead(options)
    record = load(options)
    print(budget(options, record), flush=True)
    if options.budget:
        return 0
    record["machine"] = record.get("machine") or describe_machine()
    print(show_machine(record["machine"]) + "\n", flush=True)
    import gipo_mc.training.builtin  # noqa: F401  # before the forks, which then start at once

    carry_out(tuning_runs(options), options)
    if not record.get("chosen"):
        record["tuning"] = tuning_scores(options)
        record["chosen"] = {name: choose(name, record["tuning"]) for name in options.methods}
        record["settings_fixed"] = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "code": fingerprint()}
        write(options.out, record)
        print(study_tables.tuning(record), flush=True)
    if options.tuning_only:
        return 0
    for runs in (final_runs(options, record), even_runs(options, record)):
        carry_out(runs, options)
        record["runs"] = [finished(run, options.runs) for run in all_final(options, record) if done(run, options)]
        write(options.out, record)
    for part in study_tables.STUDY:
        print(study_tables.table(record, part) + "\n")
    return 0


def overhead(options: argparse.Namespace) -> int:
    """A record of its own: what an iteration of GI-PPO costs beside one of PPO."""
    import gipo_mc.training.builtin  # noqa: F401

    record: dict[str, Any] = {"benchmark": "group_robustness", "machine": describe_machine()}
    print(show_machine(record["machine"]) + "\n", flush=True)
    seed = options.final_seeds[0]
    for _ in references([seed], options.size, options.runs, 1):
        pass
    record["overhead"] = study_overhead.measure(options.runs, options.size, seed, options.overhead)
    write(options.out, record)
    print(study_tables.table(record, "overhead"))
    return 0


# -------------------------------------------------------------------------------------------------- what is to be run
def tuning_runs(options: argparse.Namespace) -> list[Run]:
    return [
        Run("tuning", name, value, seed)
        for name in options.methods
        if not METHODS[name].follows
        for seed in options.tuning_seeds
        for value in METHODS[name].values[: options.candidates]
    ]


def final_runs(options: argparse.Namespace, record: dict[str, Any]) -> list[Run]:
    """Seed by seed, so that what is there after an interruption is paired."""
    return [
        Run("final", name, record["chosen"][name], seed) for seed in options.final_seeds for name in options.methods
    ]


def even_runs(options: argparse.Namespace, record: dict[str, Any]) -> list[Run]:
    """The same settings on prompts that are half easy, half hard: nothing is tuned for them."""
    names = [name for name in EVEN_METHODS if name in options.methods]
    return [
        Run("final", name, record["chosen"][name], seed, "builtin:even")
        for seed in options.final_seeds
        for name in names
    ]


def all_final(options: argparse.Namespace, record: dict[str, Any]) -> list[Run]:
    return [*final_runs(options, record), *even_runs(options, record)]


def done(run: Run, options: argparse.Namespace) -> bool:
    return finished(run, options.runs) is not None


def carry_out(runs: list[Run], options: argparse.Namespace) -> None:
    left = [run for run in runs if not done(run, options)]
    began = time.monotonic()
    ended = run_all(left, METHODS, options.size, options.runs, options.workers, options.max_load)
    for number, (run, seconds) in enumerate(ended, 1):
        failure = (finished(run, options.runs) or {}).get("failure")
        rest = (time.monotonic() - began) / number * (len(left) - number) / 60
        print(
            f"{number}/{len(left)} {run.name}: {seconds:.0f} s{', FAILED: ' + failure if failure else ''}; "
            f"about {rest:.0f} minutes left",
            flush=True,
        )


def tuning_scores(options: argparse.Namespace) -> dict[str, dict[str, list[dict[str, float] | None]]]:
    """method -> value -> the figures of each tuning seed, None of a run that failed."""
    found: dict[str, dict[str, list[dict[str, float] | None]]] = {}
    for run in tuning_runs(options):
        own = figures(finished(run, options.runs) or {})
        kept = {name: own[name] for name in ("mean", "worst", "ood", "kl")} if own else None
        found.setdefault(run.method, {}).setdefault(run.value, []).append(kept)
    return found


def choose(method: str, scores: dict[str, Any]) -> str:
    """The candidate with the best criterion; one that failed on a seed is out, unless all did."""
    method = METHODS[method].follows or method
    complete = {value: [seed["mean"] for seed in seeds] for value, seeds in scores[method].items() if all(seeds)}
    return best_value(complete) if complete else METHODS[method].values[-1]


def budget(options: argparse.Namespace, record: dict[str, Any]) -> str:
    """Runs of each kind, those left, and about how long they take."""
    size = options.size
    chosen = record.get("chosen") or {name: METHODS[name].values[0] for name in options.methods}
    planned = {
        "tuning": tuning_runs(options),
        "final": final_runs(options, {"chosen": chosen}),
        "even mixture": even_runs(options, {"chosen": chosen}),
    }
    counts = ", ".join(f"{name} {len(runs)}" for name, runs in planned.items())
    evaluations = {
        "tuning": 2,
        "final": 1 + size.iterations // size.every,
        "even mixture": 1 + size.iterations // size.every,
    }
    seconds, left = 0.0, 0
    for name, runs in planned.items():
        own = [run for run in runs if not done(run, options)]
        left += len(own)
        seconds += len(own) * (
            size.iterations * SECONDS_ITERATION * size.batch / 128
            + evaluations[name] * 3 * size.held_out * SECONDS_PROMPT
        )
    seeds = {run.seed for runs in planned.values() for run in runs}
    missing = [seed for seed in seeds if not has_reference(seed, options.runs)]
    seconds += len(missing) * SECONDS_REFERENCE * size.sft / 600
    return (
        f"{len(options.methods)} methods, {size.iterations} iterations of {size.batch} responses a run. "
        f"Runs: {counts}; {left} left, and {len(missing)} references: about {seconds / 60 / options.workers:.0f} "
        f"minutes with {options.workers} worker(s) of one thread, {seconds / 60:.0f} core-minutes."
    )


# ------------------------------------------------------------------------------------------------- record and options
def load(options: argparse.Namespace) -> dict[str, Any]:
    """The record so far, or an empty one. Its settings, once chosen, are kept."""
    plan = {
        "size": vars(options.size),
        "tuning_seeds": list(options.tuning_seeds),
        "final_seeds": list(options.final_seeds),
        "methods": {
            name: {
                "title": m.title,
                "preset": m.preset,
                "tuned": " ".join(m.tuned),
                "values": list(m.values),
                "others": list(m.others),
                "follows": m.follows,
            }
            for name, m in METHODS.items()
            if name in options.methods
        },
    }
    record: dict[str, Any] = {"benchmark": "group_robustness", **json.loads(json.dumps(plan))}
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        changed = [key for key in plan if earlier.get(key) != record[key]]
        if changed:
            raise SystemExit(
                f"{options.out} is of another study (it differs in {', '.join(changed)}): give another --out."
            )
        record = earlier
    return record


def show(options: argparse.Namespace) -> int:
    record = json.loads(options.table.read_text())
    if options.pictures:
        study_pictures.draw(record, options.pictures, options.table.stem)
    text = options.into.read_text() if options.into else ""
    parts = study_tables.STUDY if "runs" in record else ("overhead",)
    sources = {part: f"{options.table.as_posix()}: {part}" for part in parts}
    wanted = [part for part in sources if options.into is None or documents.marker(sources[part]) in text]
    if not wanted:
        raise SystemExit(f"{options.into} has no line {documents.marker(sources[parts[0]])} or the like.")
    for part in wanted:
        table = study_tables.table(record, part)
        if options.into is None:
            print(table + "\n")
        else:
            text = documents.inserted(text, sources[part], table)
    if options.into:
        options.into.write_text(text)
    return 0


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", action="store_true", help="say what is left to run, and stop")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two methods: does it run?")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each [1]")
    parser.add_argument(
        "--max-load", type=float, default=float("inf"), help="with several workers: start a second below this load only"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", help=f"final seeds [{' '.join(map(str, FINAL_SEEDS))}]")
    parser.add_argument("--tuning-only", action="store_true", help="stop when the settings are chosen and written")
    parser.add_argument(
        "--overhead", type=int, default=0, metavar="ROUNDS", help="no study: time GI-PPO beside PPO [0]"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/group_robustness"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/group_robustness.json"), help="the record")
    parser.add_argument("--table", type=Path, help="run nothing: the tables of this record, in Markdown")
    parser.add_argument("--into", type=Path, help="with --table: replace the tables between their markers there")
    parser.add_argument("--pictures", type=Path, help="with --table: draw the pictures into this folder")
    options = parser.parse_args(words)
    if (options.into or options.pictures) and not options.table:
        parser.error("--into and --pictures need --table FILE.json")
    options.size = Size(2, 8, 1, 8, 2, 64) if options.quick else Size(100, 128, 10, 256, 600, 16384)
    options.methods = options.methods or (["ppo", "gi_ppo"] if options.quick else list(METHODS))
    options.candidates = 2 if options.quick else None
    options.tuning_seeds = TUNING_SEEDS[:1] if options.quick else TUNING_SEEDS
    options.final_seeds = tuple(options.seeds or (FINAL_SEEDS[:2] if options.quick else FINAL_SEEDS))
    return options


if __name__ == "__main__":
    sys.exit(main())
