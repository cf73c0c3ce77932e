"""A policy trained with a reward function of one's own, in ten lines.

    python examples/own_reward.py models/my-sft

The function is given the row that the response answers, with every column of it.
"""

from __future__ import annotations

import sys

import gipo_mc


def exact(sample: gipo_mc.Sample) -> float:
    """1 where the response says the row's answer, a little less for each token."""
    return float(sample.columns["answer"] in sample.response) - 0.01 * len(sample.response_ids)


def main(policy: str, run: str = "runs/own_reward", iterations: int = 2) -> gipo_mc.Run:
    """Train on sums; the run."""
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(5) for b in range(5)]
    options = {"run.iterations": iterations, "rollout.batch_size": 8, "rollout.max_new_tokens": 8}
    options |= {"algorithm.mini_batch_size": 8, "eval.prompts": 0}
    return gipo_mc.train(policy=policy, reward=exact, prompts=rows, run=run, options=options)


if __name__ == "__main__":
    print(main(sys.argv[1]).metrics()[["reward/mean", "kl/mean"]])
