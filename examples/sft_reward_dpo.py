"""The supervised trainers from a program: an SFT model, a reward model from it, and DPO against it.

    python examples/sft_reward_dpo.py models/my-base

Each is given its rows as Python has them, and the folder of a run is taken wherever a model is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gipo_mc


def main(base: str, runs: str = "runs/library", iterations: int = 4) -> dict[str, gipo_mc.Run]:
    """Three runs of `iterations` steps on sums, right ones preferred to wrong ones."""
    sums = [(f"{a} + {b} =", f" {a + b}", f" {a + b + 1}") for a in range(5) for b in range(5)]
    demonstrations = [{"prompt": prompt, "response": right} for prompt, right, _ in sums]
    preferences = [{"prompt": prompt, "chosen": right, "rejected": wrong} for prompt, right, wrong in sums]
    options = {"run.iterations": iterations, "train.batch_size": 8, "policy.lr": 1e-3}

    folder = Path(runs)
    sft = gipo_mc.train_sft(policy=base, demonstrations=demonstrations, run=folder / "sft", options=options)
    reward = gipo_mc.train_reward(policy=sft.path, preferences=preferences, run=folder / "reward", options=options)
    dpo = gipo_mc.train_dpo(policy=sft.path, preferences=preferences, run=folder / "dpo", options=options)
    with gipo_mc.load_reward(reward.path) as scorer:
        print(scorer.score([sums[0][0]] * 2, sums[0][1:]).tolist())
    return {"sft": sft, "reward": reward, "dpo": dpo}


if __name__ == "__main__":
    for name, run in main(sys.argv[1]).items():
        print(name, run.metrics()["loss"].tolist())
