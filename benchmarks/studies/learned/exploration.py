"""An exploration before the study of learned reward models: a few seeds, one setting for all methods, nothing tuned.

    python benchmarks/studies/learned/exploration.py [--strengths weak strong] [--methods ppo gi_ppo] [--seeds 141]
    python benchmarks/studies/learned/exploration.py --set equal_kl [--strengths weak]
    python benchmarks/studies/learned/exploration.py --set after_dpo [--strengths weak]
    python benchmarks/studies/learned/exploration.py --table FILE.json [--into docs/results/learned.md] [--pictures DIR]

It asks, of each strength of reward model: does the model know what it is to reward, domain by domain; what does an
oracle of the domains gain by it; what does each candidate signal know of the domains; and does GI-PPO on gains over the
reference close what is left. Its answers are leads: the record says that it is an exploration, how many cells (a method
at a strength) were tried, and on which seeds. It goes on where it was interrupted, and keeps what the record holds.

The set equal_kl asks what the place of the KL penalty is worth: the same total KL, which `algorithm.kl_target` holds,
spread evenly, by the mean membership, by a reward threshold, or by inferred groups. Nothing is left to tune there.
The set after_dpo asks what RL adds to a policy that DPO made of the reward model's own pairs: runs start there and are
held to it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, before torch is imported

from benchmarks.common.machine import describe_machine
from benchmarks.common.record import fingerprint, write
from benchmarks.studies import group_robustness, study
from benchmarks.studies.learned import learned, reward_models
from benchmarks.studies.runs import Method, Run, carry_out, finished, forked, outcome_path, train_rl, trained

SIZE = {"iterations": 100, "batch": 128, "every": 20, "held_out": 256, "sft": 600, "demonstrations": 16384}
QUICK = {"iterations": 2, "batch": 8, "every": 1, "held_out": 8, "sft": 2, "demonstrations": 64}
STRENGTHS = ("weak", "middle", "strong", "clean")
#: The one setting. With reference_samples a run logs what gains would know, and trains as without.
SETTING = ("algorithm.kl_coef=0.15", "policy.lr=0.0001")
HEAVY = ("algorithm.beta_policy=1", "algorithm.reweight_cap=1.6")
SEEN = (f"algorithm.reference_samples={learned.SAMPLES}",)
LOW = ("algorithm.kl_coef=0.05", "policy.lr=0.0001")
SIGNALS: dict[str, Method] = {
    "ppo": Method("PPO", "ppo", (), (), SETTING),
    "oracle_gi_ppo": Method("ORACLE GI-PPO", "oracle_gi_ppo", (), (), (*SETTING, *HEAVY)),
    "gi_ppo": Method("GI-PPO", "gi_ppo", (), (), (*SETTING, *HEAVY, *SEEN)),
    "gi_ppo_gain": Method("GI-PPO, gains", "gi_ppo", (), (), (*SETTING, *HEAVY, *learned.GAIN)),
    "threshold_gi_ppo": Method(
        "control: GI-PPO, reward-threshold groups", "threshold_gi_ppo", (), (), (*SETTING, *HEAVY)
    ),
    "threshold_gain": Method(
        "gain-threshold groups",
        "threshold_gi_ppo",
        (),
        (),
        (*SETTING, *HEAVY, *learned.GAIN, "algorithm.groups_from=gain"),
    ),
    "gi_ppo_gain_prompt": Method(
        "GI-PPO, gains, reads the prompt",
        "gi_ppo",
        (),
        (),
        (*SETTING, *HEAVY, *learned.GAIN, "algorithm.group_input=prompt"),
    ),
    "oracle_gain": Method("ORACLE GI-PPO, gains", "oracle_gi_ppo", (), (), (*SETTING, *HEAVY, *learned.GAIN)),
    "saturating": Method("PPO, saturating rewards", "ppo", (), (), (*SETTING, *learned.SATURATING)),
    "saturating_low": Method("PPO, saturating rewards, eta 0.05", "ppo", (), (), (*learned.SATURATING, *LOW)),
    "saturating_gi": Method(
        "GI-PPO, saturating rewards, eta 0.05", "gi_ppo", (), (), (*HEAVY, *learned.GAIN, *learned.SATURATING[1:], *LOW)
    ),
}
#: Nats of a response, of the mixture that is trained on.
TARGETS = ("0.75", "2")
_PLACES = {
    "ppo": ("evenly", "ppo", ()),
    "mean_kl": ("by the mean membership", "mean_kl", ()),
    "threshold_kl": ("above the mean reward", "threshold_kl", ()),
    "adaptive_kl": ("by groups of rewards", "adaptive_kl", ()),
    "adaptive_gain": ("by groups of gains", "adaptive_kl", learned.GAIN),
}
EQUAL_KL: dict[str, Method] = {
    f"{name}-{target}": Method(
        f"KL {where}, {target} nats", preset, (), (), (*SETTING, *others, f"algorithm.kl_target={target}")
    )
    for target in TARGETS
    for name, (where, preset, others) in _PLACES.items()
}

#: Beginning of the names of what starts from a policy that DPO made.
AFTER = "after_dpo_"
AFTER_DPO = {
    f"{AFTER}{name}": SIGNALS[name] for name in ("ppo", "threshold_gi_ppo", "gi_ppo", "gi_ppo_gain", "oracle_gi_ppo")
}
#: dpo.beta and policy.lr, as tuned in the study of the weak strength.
DPO = Method("DPO", "dpo", group_robustness.DPO, ("0.3 0.0003",))


@dataclass(frozen=True)
class Question:
    """What is tried by default, and the name of its record."""

    methods: dict[str, Method]
    strengths: tuple[str, ...]
    seeds: tuple[int, ...]
    name: str


SETS = {
    "signals": Question(SIGNALS, STRENGTHS, (141, 142), "learned_exploration"),
    "equal_kl": Question(EQUAL_KL, ("weak",), (143, 144, 145, 146, 147), "learned_equal_kl"),
    "after_dpo": Question(AFTER_DPO, ("weak",), (143, 144, 145, 146, 147), "learned_after_dpo"),
}
METHODS = {name: method for question in SETS.values() for name, method in question.methods.items()}


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    if options.table:
        return study.show(options)
    import gipo_mc.rl.gi_ppo  # noqa: F401  # before the forks, which then start at once

    size = QUICK if options.quick else SIZE
    record = _record(options.out, size, SETS[options.set])
    for line in group_robustness.references(options.seeds, size, options.runs, options.workers):
        print(line, flush=True)
    for strength in options.strengths:
        for line in reward_models.prepare(options.seeds, strength, 1, options.runs, options.workers, options.quick):
            print(line, flush=True)
    for line in _dpo_policies(options, size):
        print(line, flush=True)
    _collect(record, options)  # what has ended is not run again, whatever record knows of it
    cells = [(s, m, seed) for m in options.methods for s in options.strengths for seed in options.seeds]
    jobs: list[tuple[Any, tuple[Any, ...]]] = [
        (f"judge {s} {seed}", (reward_models.judge, seed, s, options.runs, 64 if options.quick else 1500))
        for s in options.strengths
        for seed in options.seeds
        if not _judged(options.runs, s, seed).exists()
    ]
    jobs += [(run_of(*cell), (_train, *cell, size, options.runs)) for cell in cells if not _known(record, *cell)]
    for number, (name, seconds) in enumerate(forked(jobs, options.runs, options.workers), 1):
        print(f"{number}/{len(jobs)} {getattr(name, 'name', name)}: {seconds:.0f} s", flush=True)
        _collect(record, options)
        write(options.out, record)
    write(options.out, record)
    from benchmarks.studies import tables

    print("\n\n".join(tables.table(record, part) for part in tables.parts(record)))
    return 0


def run_of(strength: str, method: str, seed: int) -> Run:
    return Run("explore", f"{strength}/{method}", "", seed)


def _record(path: Path, size: dict[str, int], question: Question) -> dict[str, Any]:
    """The record so far, or an empty one. Raises SystemExit where it is of another size."""
    titles = {
        name: {"title": m.title, "preset": m.preset, "others": list(m.others)} for name, m in question.methods.items()
    }
    fresh = {"benchmark": question.name, "exploration": True, "size": size, "methods": titles}
    fresh |= {"strengths": reward_models.described(), "machine": describe_machine(), "code": fingerprint()}
    fresh |= {"cells_tried": 0, "seeds": [], "judge": {}, "runs": []}
    if not path.exists():
        return fresh
    found: dict[str, Any] = json.loads(path.read_text())
    if found["size"] != size:
        raise SystemExit(f"{path} is of another size: give another --out.")
    return fresh | {key: found[key] for key in ("judge", "runs", "machine")}


def _known(record: dict[str, Any], strength: str, method: str, seed: int) -> bool:
    return any(run["run"] == vars(run_of(strength, method, seed)) for run in record["runs"])


def _judged(folder: Path, strength: str, seed: int) -> Path:
    return folder / f"seed{seed}" / f"judge_{strength}.json"


def _collect(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Put what has ended since into the record."""
    for strength in options.strengths:
        for seed in options.seeds:
            if (path := _judged(options.runs, strength, seed)).exists():
                record["judge"].setdefault(strength, {})[str(seed)] = json.loads(path.read_text())
            for method in options.methods:
                outcome = finished(run_of(strength, method, seed), options.runs)
                if outcome and not _known(record, strength, method, seed):
                    record["runs"].append(outcome)
    record["cells_tried"] = len({run["run"]["method"] for run in record["runs"]})
    record["seeds"] = sorted({run["run"]["seed"] for run in record["runs"]})


def _train(strength: str, method: str, seed: int, size: dict[str, int], folder: Path) -> None:
    run, chosen = run_of(strength, method, seed), METHODS[method]
    start = (
        [f"model.policy={outcome_path(_dpo_run(strength, seed), folder).parent}"] if method.startswith(AFTER) else []
    )
    config = learned.configured(run, chosen, *start, strength=strength, size=size, folder=folder)
    carry_out(run, lambda: train_rl(config), folder)


def _dpo_run(strength: str, seed: int) -> Run:
    return Run("explore", f"{strength}/dpo", DPO.values[0], seed)


def _dpo_policies(options: argparse.Namespace, size: dict[str, int]) -> Iterator[str]:
    """Train what runs of the set after_dpo start from, where it is missing; a line each."""
    wanted = any(name.startswith(AFTER) for name in options.methods)
    runs = [_dpo_run(strength, seed) for strength in options.strengths for seed in options.seeds if wanted]
    missing = [run for run in runs if not trained(outcome_path(run, options.runs).parent)]
    jobs = [(run, (_train_dpo, run, size, options.runs)) for run in missing]
    yield from (f"{run.name}: {seconds:.0f} s" for run, seconds in forked(jobs, options.runs, options.workers))


def _train_dpo(run: Run, size: dict[str, int], folder: Path) -> None:
    from gipo_mc.supervised import dpo

    study_size = learned.FULL if size is SIZE else learned.QUICK
    strength = run.method.partition("/")[0]
    dpo.train(learned.configured_on_pairs(run, DPO, strength=strength, size=study_size, folder=folder))


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", nargs="+", choices=reward_models.STRENGTHS, help="[those of the set]")
    parser.add_argument("--set", choices=SETS, default="signals", help="the question [%(default)s]")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="[all of the set]")
    parser.add_argument("--seeds", type=int, nargs="+", help="[those of the set]")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each [1]")
    folder = Path("runs/learned_exploration")
    parser.add_argument("--runs", type=Path, default=folder, help="folder of the runs [%(default)s]")
    parser.add_argument("--out", type=Path, help="the record [that of the set, in benchmarks/results]")
    parser.add_argument("--quick", action="store_true", help="a tiny size: does it run?")
    study.table_arguments(parser, drawn=True)
    options = study.parsed(parser, words)
    question = SETS[options.set]
    options.strengths = options.strengths or list(question.strengths)
    options.seeds = options.seeds or list(question.seeds)
    options.methods = options.methods or list(question.methods)
    options.out = options.out or Path("benchmarks/results") / f"{question.name}.json"
    if unknown := [name for name in options.methods if name not in question.methods]:
        parser.error(f"--methods: {unknown[0]} is none of the set {options.set}: {', '.join(question.methods)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
