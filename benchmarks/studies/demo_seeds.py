"""What `make demo` shows, over seeds: GI-PPO beside PPO on the built-in task, with the demo's own settings.

    python benchmarks/studies/demo_seeds.py [--seeds 1 2 ...] [--workers 2] [--runs DIR] [--out FILE.json]
    python benchmarks/studies/demo_seeds.py --table FILE.json [--into docs/results/demo.md]

The demo shows one seed, 1. Here each seed trains an SFT policy of its own, and PPO and GI-PPO from it, all on one rank.
It goes on where it was interrupted: a run that has ended is not run again. --quick: two seeds at a tiny size.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, before torch is imported

from benchmarks.common.machine import describe_machine
from benchmarks.common.record import write
from benchmarks.studies import study, tables
from benchmarks.studies.runs import (
    Method,
    Run,
    carry_out,
    finished,
    forked,
    import_once,
    own_words,
    train_rl,
    trained,
)
from gipo_mc.config import load_config
from gipo_mc.supervised import sft
from gipo_mc.tools import builtin

#: As the demo runs them: without an option but the method's own.
METHODS = {"ppo": Method("PPO", "ppo", (), (), builtin.PPO), "gi_ppo": Method("GI-PPO", "gi_ppo", (), ())}
SEEDS = tuple(range(1, 11))
QUICK_SFT = ["run.iterations=2", "data.max_rows=64", "eval.prompts=8"]
QUICK_RL = ["run.iterations=2", "rollout.batch_size=8", "algorithm.mini_batch_size=4", "eval.prompts=8"]


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    if options.table:
        return study.show(options)
    machine, seeds = describe_machine(), options.seeds or (SEEDS[:2] if options.quick else SEEDS)
    import_once()
    jobs = [(f"seed {seed}", (train, seed, options.runs, options.quick)) for seed in seeds]
    for number, (name, seconds) in enumerate(forked(jobs, options.runs, options.workers), 1):
        print(f"{number}/{len(jobs)} {name}: {seconds:.0f} s", flush=True)
    outcomes = [finished(_run(method, seed), options.runs) for seed in seeds for method in METHODS]
    methods = {name: {"title": method.title, "others": list(method.others)} for name, method in METHODS.items()}
    record = {"benchmark": "demo_seeds", "machine": machine, "final_seeds": list(seeds), "methods": methods}
    write(options.out, record | {"runs": outcomes})
    print("\n\n".join(tables.table(record | {"runs": outcomes}, part) for part in tables.DEMO))
    return 0


def train(seed: int, folder: Path, quick: bool) -> None:
    """The SFT policy of a seed and the runs that start from it, as far as they are missing."""
    start = folder / f"seed{seed}" / "reference"
    if not trained(start):
        words = [f"run.dir={start.parent}", f"run.name={start.name}", f"run.seed={seed}", "device=cpu"]
        config = load_config(None, [*words, *(QUICK_SFT if quick else [])], builtin.sft_base())
        builtin.SFT.prepare(config)
        sft.train(config)
    for name, method in METHODS.items():
        run = _run(name, seed)
        if finished(run, folder) is None:
            words = [*own_words(run, method, folder), f"model.policy={start}", "checkpoint.every=0"]
            config = load_config(None, [*words, *(QUICK_RL if quick else [])], builtin.gi_ppo_base())
            carry_out(run, partial(train_rl, config), folder)


def _run(method: str, seed: int) -> Run:
    return Run("demo", method, "", seed)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="[1 to 10]")
    parser.add_argument("--workers", type=int, default=1, help="seeds at a time, one thread each [1]")
    parser.add_argument("--runs", type=Path, default=Path("runs/demo_seeds"), help="folder of the runs [%(default)s]")
    out = Path("benchmarks/results/demo_seeds.json")
    parser.add_argument("--out", type=Path, default=out, help="the record [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a tiny size, two seeds: does it run?")
    study.table_arguments(parser, drawn=False)
    return study.parsed(parser, words)


if __name__ == "__main__":
    sys.exit(main())
