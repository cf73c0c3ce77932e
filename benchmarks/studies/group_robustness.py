"""The study of group robustness: GI-PPO beside its baselines, controls and oracles on the built-in task, over seeds.

    python benchmarks/studies/group_robustness.py [--budget] [--quick] [--workers 2] [--runs DIR] [--out FILE.json]
    python benchmarks/studies/group_robustness.py --overhead 6 [--out FILE.json]
    python benchmarks/studies/group_robustness.py --table FILE.json [--into docs/results/builtin.md] [--pictures DIR]

Prints first how many runs are left and about how long they take (--budget: nothing else), then tunes and runs them
(see `benchmarks/studies/study.py`); some methods also on prompts that are half easy, half hard. It goes on where it was
interrupted: a run that has ended is not run again. A failed run is a result, listed with its reason.

Oracles, and GI-PPO to the letter, are no rivals: they take the value chosen for the method that they follow. A method
is a set of options over the one training loop; the proxy reward is what all of them are trained on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, before torch is imported

from benchmarks.common.machine import describe_machine, show_machine
from benchmarks.common.record import write
from benchmarks.studies import dpo, overhead, study, tables
from benchmarks.studies.runs import Method, Run, common_words, evaluations, forked, import_once, own_words, trained
from benchmarks.studies.study import Study

if TYPE_CHECKING:
    from gipo_mc.config import Config

PROXY, GOLD = "python:gipo_mc.data.synthetic:proxy", "python:gipo_mc.data.synthetic:gold"
#: What is tuned of every method with a KL: its eta together with the policy's learning rate, each pair a candidate.
KL = ("algorithm.kl_coef", "policy.lr")
PAIRS = (
    *(f"{eta} {lr}" for eta in ("0.05", "0.2") for lr in ("2.5e-05", "5e-05", "0.0001")),
    *("0.01 5e-05", "0.01 7e-05"),  # an eta of 0.05 was the best of all that were tried: a lower one was added
)
RATES = ("1.2e-05", "2.5e-05", "3.5e-05", "5e-05", "7e-05", "0.0001", "6e-05", "8.5e-05")  # as many for PPO without KL
#: As many candidates of what learns from pairs, beta (IPO: tau) and learning rate, placed after a look at seed 901.
DPO = ("dpo.beta", "policy.lr")
BETAS = tuple(f"{beta} {lr}" for beta in ("0.1", "0.2", "0.3", "0.5") for lr in ("0.0001", "0.0003"))
TAUS = tuple(f"{tau} {lr}" for tau in ("0.02", "0.05", "0.1", "0.2") for lr in ("0.0001", "0.0003"))
#: And of the variance penalty's weight, with the bound of the weights, at the eta that every method chose.
BETA = ("algorithm.beta_policy", "algorithm.reweight_cap", "policy.lr")
STRENGTHS = tuple(
    f"{strength} {lr}" for strength in ("0.5 0.8", "1 0.8", "1 1.6", "2 1.6") for lr in ("7e-05", "0.0001")
)
ETA = ("algorithm.kl_coef=0.01",)
PROMPT = ("algorithm.group_input=prompt",)
#: A response counts in the penalty as in the PPO loss, by its tokens; the others have responses count alike.
TOKENS = ("algorithm.penalty_over=tokens",)
METHODS: dict[str, Method] = {
    "ppo": Method("PPO", "ppo", KL, PAIRS),
    "ppo_no_kl": Method("PPO without KL", "ppo_no_kl", KL[1:], RATES),
    "mean_kl": Method("control: mean KL", "mean_kl", KL, PAIRS),
    "threshold_kl": Method("control: reward threshold", "threshold_kl", KL, PAIRS),
    "threshold_gi_ppo": Method("control: GI-PPO, reward-threshold groups", "threshold_gi_ppo", KL, PAIRS),
    "adaptive_kl": Method("adaptive KL alone", "adaptive_kl", KL, PAIRS),
    "variance_penalty": Method("variance penalty alone", "variance_penalty", KL, PAIRS),
    "gi_ppo": Method("GI-PPO", "gi_ppo", KL, PAIRS),
    "gi_ppo_prompt": Method("GI-PPO, reads the prompt", "gi_ppo", KL, PAIRS, PROMPT),
    "threshold_gi_ppo_beta": Method(
        "control: GI-PPO, reward-threshold groups, beta tuned", "threshold_gi_ppo", BETA, STRENGTHS, ETA
    ),
    "gi_ppo_beta": Method("GI-PPO, beta tuned", "gi_ppo", BETA, STRENGTHS, ETA),
    "gi_ppo_tokens": Method("GI-PPO, penalty over tokens", "gi_ppo", KL, PAIRS, TOKENS, follows="gi_ppo"),
    "gi_ppo_beta_tokens": Method(
        "GI-PPO, beta tuned, penalty over tokens", "gi_ppo", BETA, STRENGTHS, (*ETA, *TOKENS), follows="gi_ppo_beta"
    ),
    "rloo": Method("RLOO", "rloo", KL, PAIRS),
    "gi_rloo": Method("GI-RLOO", "gi_rloo", KL, PAIRS),
    "dpo": Method("DPO", "dpo", DPO, BETAS),
    "cdpo": Method("conservative DPO", "dpo", DPO, BETAS, ("dpo.label_smoothing=0.1",)),
    "ipo": Method("IPO", "dpo", DPO, TAUS, ("dpo.loss=ipo",)),
    "paper": Method("GI-PPO to the letter", "paper", KL, PAIRS, follows="gi_ppo"),
    "oracle_gi_ppo": Method("ORACLE GI-PPO", "oracle_gi_ppo", KL, PAIRS, follows="gi_ppo"),
    "oracle_gi_ppo_beta": Method(
        "ORACLE GI-PPO, beta as tuned", "oracle_gi_ppo", BETA, STRENGTHS, ETA, follows="gi_ppo_beta"
    ),
    "oracle_group_dro": Method("ORACLE group-DRO", "oracle_group_dro", KL, PAIRS, follows="ppo"),
}
EVEN = {
    "builtin:even": (
        *("ppo", "mean_kl", "threshold_kl", "threshold_gi_ppo", "gi_ppo", "gi_ppo_prompt"),
        *("threshold_gi_ppo_beta", "gi_ppo_beta", "dpo", "ipo"),
    )
}
#: The pairs of what learns from pairs have the mixture of the prompts that the others are asked.
PAIRS_OF = {"builtin": "builtin:skewed", "builtin:even": "builtin:even"}
#: 56 to 60 were added when the results of the first five were known, to see whether they hold.
TUNING_SEEDS, FINAL_SEEDS = (31, 32), (51, 52, 53, 54, 55, 56, 57, 58, 59, 60)
#: Seconds of an iteration of 128 responses, and of an evaluation's prompt, on one core, for the budget alone.
SECONDS_ITERATION, SECONDS_PROMPT = 0.36, 0.0008
#: Of a step of DPO, data and evaluations included.
SECONDS_STEP = 0.13


#: sft, demonstrations: steps and rows of the reference's training. dpo, pairs: the same of DPO, whose pairs have as
#: many responses as an RL run samples. The others as `runs.common_words` has them.
FULL = {"iterations": 100, "batch": 128, "every": 10, "held_out": 256, "sft": 600, "demonstrations": 16384}
FULL |= {"dpo": 200, "pairs": 6400}
QUICK = {"iterations": 2, "batch": 8, "every": 1, "held_out": 8, "sft": 2, "demonstrations": 64, "dpo": 4, "pairs": 64}


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    if options.table:
        return study.show(options)
    return time_overhead(options) if options.overhead else study.run(described(options), options)


def described(options: argparse.Namespace) -> Study:
    size, folder = QUICK if options.quick else FULL, options.runs
    names = options.methods or (["ppo", "gi_ppo"] if options.quick else list(METHODS))
    methods = {name: METHODS[name] for name in METHODS if name in names}
    if options.quick:
        methods = {name: replace(method, values=method.values[:2]) for name, method in methods.items()}

    def seconds(run: Run) -> float:
        if METHODS[run.method].learns_from_pairs:
            return size["dpo"] * SECONDS_STEP
        held_out = evaluations(run, size) * 3 * size["held_out"] * SECONDS_PROMPT
        return size["iterations"] * SECONDS_ITERATION * size["batch"] / 128 + held_out

    return Study(
        name="group_robustness",
        methods=methods,
        tuning_seeds=TUNING_SEEDS[:1] if options.quick else TUNING_SEEDS,
        final_seeds=options.seeds or (FINAL_SEEDS[:2] if options.quick else FINAL_SEEDS),
        data="builtin",
        mixtures=EVEN,
        size=size,
        train=partial(
            dpo.train,
            rl=partial(configured, size=size, folder=folder),
            pairs=partial(configured_on_pairs, size=size, folder=folder),
        ),
        prepare=lambda seeds: references(seeds, size, folder, options.workers),
        seconds=seconds,
    )


def configured(
    run: Run, method: Method, *others: str, size: dict[str, int], folder: Path, reward: str = PROXY
) -> Config:
    """A run of `scripts/train_gi_ppo.py` on the built-in task, whose defaults hold for all that is not named here. The
    weight of the variance penalty, which that sets, is the package's default here unless the method tunes it. reward:
    model.reward; empty: `others` name it."""
    from gipo_mc.config import load_config
    from gipo_mc.tools import builtin

    base = builtin.gi_ppo_base()
    for key in BETA[:2]:
        del base["algorithm"][key.removeprefix("algorithm.")]

    words = [
        *common_words(run, method, size, folder),
        f"model.policy={folder / f'seed{run.seed}' / 'reference'}",
        *others,
        *([f"model.reward={reward}"] if reward else []),
        f"eval.reward={GOLD}",
        f"data.prompts=[{run.data}]",
    ]
    return load_config(None, words, base)


def configured_on_pairs(run: Run, method: Method, size: dict[str, int], folder: Path) -> Config:
    """A run of `scripts/train_dpo.py` on the built-in task's pairs."""
    from gipo_mc.config import load_config
    from gipo_mc.tools import builtin

    words = [
        *own_words(run, method, folder),
        *dpo.words(run, size["dpo"], size["held_out"]),
        f"model.policy={folder / f'seed{run.seed}' / 'reference'}",
        f"data.preferences=[{PAIRS_OF[run.data]}]",
        f"data.max_rows={size['pairs']}",
    ]
    return load_config(None, words, builtin.dpo_base())


def references(seeds: Sequence[int], size: dict[str, int], folder: Path, workers: int) -> Iterator[str]:
    """Train the references that are missing; yields a line for each."""
    missing = [seed for seed in seeds if not trained(folder / f"seed{seed}" / "reference")]
    jobs = [(f"reference of seed {seed}", (train_reference, seed, size, folder)) for seed in missing]
    yield from (f"{name}: {seconds:.0f} s" for name, seconds in forked(jobs, folder, workers))


def train_reference(seed: int, size: dict[str, int], folder: Path) -> None:
    """The SFT policy that all runs of a seed start from and are held to: trained until the held-out loss hardly falls
    (150 steps on 4,096 demonstrations leave the hard domain's chains unlearned)."""
    from gipo_mc.config import load_config
    from gipo_mc.supervised import sft
    from gipo_mc.tools import builtin

    path = folder / f"seed{seed}"
    words = [f"run.dir={path}", "run.name=reference", f"run.seed={seed}", f"run.iterations={size['sft']}", "device=cpu"]
    words += [f"data.max_rows={size['demonstrations']}", f"checkpoint.every={size['sft']}"]
    config = load_config(None, words, builtin.sft_base())
    builtin.SFT.prepare(config)
    sft.train(config)


def time_overhead(options: argparse.Namespace) -> int:
    """A record of its own: what an iteration of GI-PPO costs beside one of PPO."""
    import_once()

    record: dict[str, Any] = {"benchmark": "group_overhead", "machine": describe_machine()}
    print(show_machine(record["machine"]) + "\n", flush=True)
    size, seed = QUICK if options.quick else FULL, FINAL_SEEDS[0]
    for line in references([seed], size, options.runs, 1):
        print(line, flush=True)
    record["overhead"] = overhead.measure(options.runs, PROXY, size["batch"], seed, options.overhead)
    write(options.out, record)
    print(tables.table(record, "overhead"))
    return 0


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    study.arguments(parser, "group_robustness")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", help=f"final seeds [{' '.join(map(str, FINAL_SEEDS))}]")
    parser.add_argument(
        "--overhead", type=int, default=0, metavar="ROUNDS", help="no study: time GI-PPO beside PPO [0]"
    )
    options = study.parsed(parser, words)
    if options.overhead and options.out == parser.get_default("out"):
        options.out = options.out.with_name("group_overhead.json")
    study.refuse_followers_alone(parser, options.methods or list(METHODS), METHODS)
    return options


if __name__ == "__main__":
    sys.exit(main())
