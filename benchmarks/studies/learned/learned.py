"""The study of learned reward models: the methods of `group_robustness.py` where the reward is a Bradley-Terry model of
the built-in task's pairs, of several strengths, and the gold reward is seen by evaluations alone.

    python benchmarks/studies/learned/learned.py --strength weak [--budget] [--quick] [--workers 2]
    python benchmarks/studies/learned/learned.py --strength weak --tuning-only
    python benchmarks/studies/learned/learned.py --table benchmarks/results/learned_weak.json

A study for each strength (`reward_models.STRENGTHS`), each with a record of its own and tuning of its own: eight
candidates a method on two seeds, then ten seeds that the tuning never saw. --tuning-only stops when the settings are
chosen and written: commit that record, then run the final seeds. SFT policies and reward models of a seed are shared by
all methods. It goes on where it was interrupted. The budget counts RL and DPO, and says what comes before them.

Main questions, tested together (`paired.holm`): GI-PPO on gains over the reference minus PPO, minus its
reward-threshold control, and minus PPO with a conservative ensemble, on the worst domain; the same method minus PPO out
of domain.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, before torch is imported

from benchmarks.studies import dpo, group_robustness, study
from benchmarks.studies.learned import reward_models
from benchmarks.studies.runs import Method, Run, evaluations, own_words
from benchmarks.studies.study import Study

if TYPE_CHECKING:
    from gipo_mc.config import Config

#: Models of an ensemble.
MEMBERS = 4
#: Responses of the reference to each prompt.
SAMPLES = 4
KL = ("algorithm.kl_coef", "policy.lr")
PAIRS = tuple(f"{eta} {lr}" for eta in ("0.05", "0.15", "0.4", "1.0") for lr in ("5e-05", "0.0001"))
RATES = ("1.2e-05", "2.5e-05", "3.5e-05", "5e-05", "7e-05", "0.0001", "0.00015", "0.0002")
BETA = ("algorithm.beta_policy", "algorithm.reweight_cap", "algorithm.kl_coef")
STRENGTHS = tuple(f"{beta} {eta}" for beta in ("0.3 0.8", "1 1.6") for eta in ("0.05", "0.15", "0.4", "1.0"))
DEVIATIONS = ("reward.deviations", "algorithm.kl_coef")
PENALTIES = tuple(f"{k} {eta}" for k in ("0.5", "1", "2", "4") for eta in ("0.05", "0.15"))
RATE = ("policy.lr=0.0001",)
#: The other rate of PPO's candidates.
SLOW = ("policy.lr=5e-05",)
#: Saturating rewards are smaller, and so are their etas.
SMALL_PAIRS = tuple(f"{eta} {lr}" for eta in ("0.0125", "0.04", "0.12", "0.4") for lr in ("5e-05", "0.0001"))
SATURATING = (f"algorithm.reference_samples={SAMPLES}", "algorithm.reward_transform=log_sigmoid")
GAIN = ("algorithm.signal=gain", "algorithm.best_group=gain", f"algorithm.reference_samples={SAMPLES}")
#: DPO on as many pairs with the domains of the prompts that RL has; of those that made the reward model half are hard.
SKEWED = "dpo_skewed"
#: Named by what they train on; the ensemble's other models are put in by `configured`.
METHODS: dict[str, Method] = {
    "ppo": Method("PPO", "ppo", KL, PAIRS),
    "ppo_no_kl": Method("PPO without KL", "ppo_no_kl", KL[1:], RATES),
    "rloo": Method("RLOO", "rloo", KL, PAIRS),
    "ensemble": Method("PPO, conservative ensemble", "ppo", DEVIATIONS, PENALTIES, RATE),
    "ensemble_gain": Method(
        "PPO, conservative ensemble of gains",
        "ppo",
        DEVIATIONS,
        PENALTIES,
        (*RATE, f"algorithm.reference_samples={SAMPLES}"),
    ),
    "saturating": Method("PPO, saturating rewards", "ppo", KL, SMALL_PAIRS, SATURATING),
    "mean_kl": Method("control: mean KL", "mean_kl", KL, PAIRS),
    "threshold_kl": Method("control: reward threshold", "threshold_kl", KL, PAIRS),
    "threshold_gi_ppo": Method("control: GI-PPO, reward-threshold groups", "threshold_gi_ppo", BETA, STRENGTHS, RATE),
    "threshold_gain": Method(
        "control: GI-PPO, gain-threshold groups",
        "threshold_gi_ppo",
        BETA,
        STRENGTHS,
        (*RATE, *GAIN, "algorithm.groups_from=gain"),
    ),
    "gi_ppo": Method("GI-PPO", "gi_ppo", BETA, STRENGTHS, RATE),
    "gi_ppo_gain": Method("GI-PPO, gains", "gi_ppo", BETA, STRENGTHS, (*RATE, *GAIN)),
    "gi_ppo_slow": Method("GI-PPO, half the rate", "gi_ppo", BETA, STRENGTHS, SLOW),
    "dpo": Method("DPO", "dpo", group_robustness.DPO, group_robustness.BETAS),
    SKEWED: Method("DPO, one pair in five hard", "dpo", group_robustness.DPO, group_robustness.BETAS),
    "oracle_gi_ppo": Method("ORACLE GI-PPO", "oracle_gi_ppo", BETA, STRENGTHS, RATE, follows="gi_ppo"),
    # With settings of its own: what knowing the domains is worth at the most.
    "oracle_tuned": Method("ORACLE GI-PPO, tuned", "oracle_gi_ppo", BETA, STRENGTHS, RATE),
    "oracle_slow": Method(
        "ORACLE GI-PPO, half the rate", "oracle_gi_ppo", BETA, STRENGTHS, SLOW, follows="gi_ppo_slow"
    ),
    "oracle_gain": Method(
        "ORACLE GI-PPO, gains", "oracle_gi_ppo", BETA, STRENGTHS, (*RATE, *GAIN), follows="gi_ppo_gain"
    ),
    "oracle_group_dro": Method("ORACLE group-DRO", "oracle_group_dro", KL, PAIRS, follows="ppo"),
}
ENSEMBLES = ("ensemble", "ensemble_gain")
#: (method, other, figure) of the main questions.
QUESTIONS = (
    ("gi_ppo_gain", "ppo", "worst"),
    ("gi_ppo_gain", "threshold_gi_ppo", "worst"),
    ("gi_ppo_gain", "ensemble", "worst"),
    ("gi_ppo_gain", "ppo", "ood"),
)
TUNING_SEEDS, FINAL_SEEDS = (131, 132), tuple(range(151, 161))
FULL = group_robustness.FULL
QUICK = group_robustness.QUICK
#: Seconds of a step of 64 pairs, for the budget.
SECONDS_STEP = 0.055


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    if options.table:
        return study.show(options)
    print(_before(options))
    return study.run(described(options), options)


def described(options: argparse.Namespace) -> Study:
    size, folder, strength = QUICK if options.quick else FULL, options.runs, options.strength
    names = options.methods or (["ppo", "gi_ppo_gain"] if options.quick else list(METHODS))
    methods = {name: METHODS[name] for name in METHODS if name in names}
    if options.quick:
        methods = {name: replace(method, values=method.values[:2]) for name, method in methods.items()}

    def seconds(run: Run) -> float:
        if METHODS[run.method].learns_from_pairs:
            return float(size["dpo"] * group_robustness.SECONDS_STEP)
        held_out = evaluations(run, size) * 3 * size["held_out"] * group_robustness.SECONDS_PROMPT
        return float(size["iterations"] * group_robustness.SECONDS_ITERATION * size["batch"] / 128 + held_out)

    return Study(
        name="learned_reward",
        methods=methods,
        tuning_seeds=TUNING_SEEDS[:1] if options.quick else TUNING_SEEDS,
        final_seeds=options.seeds or (FINAL_SEEDS[:2] if options.quick else FINAL_SEEDS),
        data="builtin",
        mixtures={},
        size={**size, "strength": strength, **reward_models.described()[strength], "members": MEMBERS},
        train=partial(
            dpo.train,
            rl=partial(configured, strength=strength, size=size, folder=folder),
            pairs=partial(configured_on_pairs, strength=strength, size=size, folder=folder),
        ),
        prepare=lambda seeds: _prepare(seeds, methods, options),
        seconds=seconds,
        judge=lambda: {"judge": judged([*TUNING_SEEDS[:1]] if options.quick else TUNING_SEEDS, options)},
    )


def configured(run: Run, method: Method, *others: str, strength: str, size: dict[str, int], folder: Path) -> Config:
    """A run of RL on the reward model of its seed, or on the ensemble."""
    base = folder / f"seed{run.seed}"
    words = [f"model.reward={base / reward_models.reward_name(strength)}", *others]
    if run.method in ENSEMBLES:
        more = (base / reward_models.reward_name(strength, member) for member in range(1, MEMBERS))
        words.append(f"reward.models=[{','.join(map(str, more))}]")
    return group_robustness.configured(run, method, *words, size=size, folder=folder, reward="")


def configured_on_pairs(run: Run, method: Method, strength: str, size: dict[str, int], folder: Path) -> Config:
    """A run of `scripts/train_dpo.py` on the pairs that made the reward model, or on as many others (`SKEWED`), in one
    pass over them at least."""
    from gipo_mc.config import load_config
    from gipo_mc.tools import builtin

    split = "skewed" if run.method == SKEWED else "train"
    steps = max(size["dpo"], reward_models.STRENGTHS[strength].pairs // 64) if size is FULL else size["dpo"]
    words = [
        *own_words(run, method, folder),
        *dpo.words(run, steps, size["held_out"]),
        f"model.policy={folder / f'seed{run.seed}' / 'reference'}",
        *reward_models.pairs_of(run.seed, strength, folder, 0 if size is FULL else size["pairs"], split),
    ]
    return load_config(None, words, builtin.dpo_base())


def judged(seeds: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """What the reward models of the tuning seeds know, by seed and domain (`reward_models.judge`)."""
    import json

    from benchmarks.studies.runs import forked

    paths = {seed: options.runs / f"seed{seed}" / f"judge_{options.strength}.json" for seed in seeds}
    jobs = [
        (f"judge of seed {seed}", (reward_models.judge, seed, options.strength, options.runs))
        for seed, path in paths.items()
        if not path.exists()
    ]
    for name, seconds in forked(jobs, options.runs, options.workers):
        print(f"{name}: {seconds:.0f} s", flush=True)
    return {str(seed): json.loads(path.read_text()) for seed, path in paths.items()}


def _prepare(seeds: Sequence[int], methods: dict[str, Method], options: argparse.Namespace) -> Iterator[str]:
    size = QUICK if options.quick else FULL
    yield from group_robustness.references(seeds, size, options.runs, options.workers)
    yield from reward_models.prepare(
        seeds, options.strength, _members(methods), options.runs, options.workers, options.quick
    )


def _members(methods: Iterable[str]) -> int:
    """Reward models that a seed needs."""
    return MEMBERS if set(methods) & set(ENSEMBLES) else 1


def _before(options: argparse.Namespace) -> str:
    """What runs start from, and about how long that takes, where none of it is there."""
    seeds = len({*TUNING_SEEDS, *(options.seeds or FINAL_SEEDS)})
    steps, members = reward_models.STRENGTHS[options.strength].steps, _members(options.methods or METHODS)
    minutes = seeds * (FULL["sft"] + members * steps) * SECONDS_STEP / 60 / options.workers
    return (
        f"Reward models of strength {options.strength}: {members} of each of {seeds} seeds, {steps} steps, after an "
        f"SFT policy a seed: up to {minutes:.0f} minutes before the runs, for what is missing."
    )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    study.arguments(parser, "learned_reward")
    strengths = reward_models.STRENGTHS
    parser.add_argument("--strength", choices=strengths, help=", ".join(strengths))
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", help=f"final seeds [{' '.join(map(str, FINAL_SEEDS))}]")
    options = study.parsed(parser, words)
    if not options.table and not options.strength:
        parser.error(f"--strength is one of {', '.join(strengths)}")
    if options.out == parser.get_default("out"):
        options.out = options.out.with_name(f"learned_{options.strength}.json")
    study.refuse_followers_alone(parser, options.methods or list(METHODS), METHODS)
    return options


if __name__ == "__main__":
    sys.exit(main())
