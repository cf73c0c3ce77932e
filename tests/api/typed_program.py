# mypy: warn-unused-ignores
"""A program of a user's, as a type checker sees it; what is marked is wrong, and has to be found. It is never run."""

from __future__ import annotations

import pandas
import torch

import gipo_mc


async def mine(samples: list[gipo_mc.Sample]) -> list[float]:
    return [float(len(sample.response)) for sample in samples]


def right() -> pandas.DataFrame:
    with gipo_mc.load_policy("models/x", dtype="float32") as policy:
        texts: list[str] = [one.text for one in policy.sample(["a"], top_k=3)]
        log_probs: list[torch.Tensor] = policy.log_probs(["a"], texts)
    run: gipo_mc.Run = gipo_mc.train(policy="models/x", reward=mine, prompts=[{"prompt": "a"}], run="runs/x")
    sft: gipo_mc.Run = gipo_mc.train_sft(policy="models/x", demonstrations="a.jsonl", run="runs/sft")
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    gipo_mc.train_reward(policy=sft.path, preferences=pairs, run="runs/reward")
    gipo_mc.train_dpo(policy=sft.path, preferences=pairs, run="runs/dpo", reference="models/x", options={"dpo.beta": 1})
    try:
        weights: torch.Tensor = gipo_mc.kl_weights(0.1, log_probs[0], None, "adaptive")
        found: gipo_mc.GroupVariance = gipo_mc.group_variance(weights, weights, 3, weights="size")
        print(found.variance, gipo_mc.__version__)
    except gipo_mc.errors.ConfigError as error:
        print(error.exit_code)
    return run.metrics()


def wrong() -> None:
    gipo_mc.load_policy(3)  # type: ignore[arg-type]
    gipo_mc.train(policy="x", reward="y", prompts="z")  # type: ignore[call-arg]
    gipo_mc.train_sft(policy="x", preferences="y", run="z")  # type: ignore[call-arg]
    gipo_mc.group_variance(torch.ones(2), torch.ones(2), 3, weights="other")  # type: ignore[arg-type]
    gipo_mc.kl_weights(0.1, torch.ones(1, 1), None, "adaptiv")  # type: ignore[arg-type]
    four, one = [torch.ones(1, 2)] * 4, torch.ones(1)
    for_all = (*four, one.long(), torch.ones(1, 1), one, one)
    gipo_mc.group_objective(*for_all, clip=0.2, kl_estimator="k4", signal_form="ratio")  # type: ignore[arg-type]
    gipo_mc.group_objective(*for_all, clip=0.2, kl_estimator="k1", signal_form="value")  # type: ignore[arg-type]
    print(gipo_mc.no_such_name)  # type: ignore[attr-defined]
    print(gipo_mc.Sample(prompt=1, response="a"))  # type: ignore[arg-type]
