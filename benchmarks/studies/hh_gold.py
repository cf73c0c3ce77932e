"""The study on HH-RLHF rows: GI-PPO beside PPO and the controls of group inference, with a held-out gold reward model.

    python benchmarks/studies/hh_gold.py --data DIR [--budget] [--quick] [--workers 2] [--runs DIR] [--out FILE.json]
    python benchmarks/studies/hh_gold.py --table FILE.json [--into docs/results/hh.md] [--pictures docs/pictures]

The training rows are split in two by their first question. SFT policy and proxy reward model come from one half, the
gold reward model from the other; RL asks the questions of the first half. Settings are chosen by the gold reward on
questions of the gold half, which the policy never saw, and the published test questions say what came of it. Policy,
proxy and gold are the same for all seeds: a seed is another RL run, and intervals are over such runs. Harmless and
helpful are two domains that only the metrics are told of. --data: folder with
{harmless,helpful}_base_{train,test}.jsonl.gz (default: $HH_DATA). What is tuned how: `study.py` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, before torch is imported

from benchmarks.studies import dpo, group_robustness, hh_models, study
from benchmarks.studies.runs import Method, Run, common_words, evaluations, own_words
from benchmarks.studies.study import Study
from gipo_mc.errors import DataError

if TYPE_CHECKING:
    from gipo_mc.config import Config

PAIRS = ("0.05 0.0001", "0.05 0.0003", "0.2 0.0001", "0.2 0.0003")
RATES = ("5e-05", "0.0001", "0.0002", "0.0003")
BETAS = ("0.1 0.0001", "0.1 0.0003", "0.3 0.0001", "0.3 0.0003")
#: Methods of the study on the built-in task, with candidates of this one.
METHODS = {
    name: replace(group_robustness.METHODS[name], values={"ppo_no_kl": RATES, "dpo": BETAS}.get(name, PAIRS))
    for name in ("ppo", "ppo_no_kl", "mean_kl", "threshold_kl", "gi_ppo", "gi_ppo_prompt", "dpo")
}
TUNING_SEEDS, FINAL_SEEDS = (61, 62), (71, 72, 73, 74, 75)
#: dpo: steps of 32 pairs each.
FULL: dict[str, Any] = {"iterations": 30, "batch": 64, "every": 10, "held_out": 256, "dpo": 80}
QUICK: dict[str, Any] = {"iterations": 2, "batch": 8, "every": 1, "held_out": 4, "dpo": 4}
#: Seconds of a response in training and in an evaluation on one core, for the budget alone.
SECONDS_TRAINED, SECONDS_EVALUATED = 0.024, 0.009
#: Of a step of DPO, evaluations included: a guess, since none of this size has been run yet.
SECONDS_STEP = 1.0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    study.arguments(parser, "hh_gold")
    parser.add_argument("--data", type=Path, default=os.environ.get("HH_DATA"), help="folder of the rows [$HH_DATA]")
    options = study.parsed(parser, words)
    if options.table:
        return study.show(options)
    if why := hh_models.lacking(options.data):
        parser.error(why)
    try:
        return study.run(described(options), options)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error


def described(options: argparse.Namespace) -> Study:
    folder, data = options.runs, options.data
    size = (QUICK if options.quick else FULL) | {"rows_and_models": hh_models.fingerprint(data)}
    methods = METHODS
    if options.quick:
        methods = {name: replace(METHODS[name], values=METHODS[name].values[:2]) for name in ("ppo", "gi_ppo", "dpo")}

    def seconds(run: Run) -> float:
        if METHODS[run.method].learns_from_pairs:
            return size["dpo"] * SECONDS_STEP
        held_out = evaluations(run, size) * 2 * size["held_out"] * SECONDS_EVALUATED
        return size["iterations"] * size["batch"] * SECONDS_TRAINED + held_out

    return Study(
        name="hh_gold",
        methods=methods,
        tuning_seeds=TUNING_SEEDS[:1] if options.quick else TUNING_SEEDS,
        final_seeds=FINAL_SEEDS[:2] if options.quick else FINAL_SEEDS,
        data="hh",
        mixtures={},
        size=size,
        train=partial(
            dpo.train,
            rl=partial(configured, size=size, folder=folder),
            pairs=partial(configured_on_pairs, size=size, folder=folder),
        ),
        prepare=lambda seeds: hh_models.prepare(data, folder, options.workers, options.quick) if seeds else iter(()),
        seconds=seconds,
        judge=lambda: {"judge": json.loads((folder / "judge.json").read_text())},
    )


def configured(run: Run, method: Method, *others: str, size: dict[str, Any], folder: Path) -> Config:
    """A run of `configs/hh_tiny.yaml` on the policy's half, with the gold reward model beside it."""
    from gipo_mc.config import load_config

    words = [
        *hh_models.words("prompts", folder, "policy", "gold" if run.stage == "tuning" else "test"),
        *common_words(run, method, size, folder),
        f"model.policy={folder / 'sft_policy'}",
        *others,
        f"model.reward={folder / 'reward_policy'}",
        f"eval.reward={folder / 'reward_gold'}",
    ]
    return load_config(str(hh_models.CONFIGS / "hh_tiny.yaml"), words)


def configured_on_pairs(run: Run, method: Method, size: dict[str, Any], folder: Path) -> Config:
    """A run of `configs/hh_tiny_dpo.yaml` on the policy's half: the pairs that made the proxy."""
    from gipo_mc.config import load_config

    words = [
        *hh_models.words("preferences", folder, "policy"),
        *own_words(run, method, folder),
        *dpo.words(run, size["dpo"], size["held_out"]),
        f"model.policy={folder / 'sft_policy'}",
        *hh_models.LENGTHS,
    ]
    return load_config(str(hh_models.CONFIGS / "hh_tiny_dpo.yaml"), words)


if __name__ == "__main__":
    sys.exit(main())
