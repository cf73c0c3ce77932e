"""The policy on held-out prompts, by domain: the reward it was trained on, and one it never saw."""

from __future__ import annotations

from gipo_mc.config import Config
from gipo_mc.training.rl_metrics import by_domain, worst_domain
from gipo_mc.training.rl_setup import RLSetup
from gipo_mc.training.rollout import roll_out
from gipo_mc.types import Prompt


def evaluate_policy(setup: RLSetup, config: Config) -> dict[str, float]:
    """Sample one response for the first `eval.prompts` held-out prompts of each domain, always with the same random
    numbers, so that two evaluations differ by the policy alone.

    Metrics "eval/reward/mean", "eval/reward/domain/<name>", "eval/length" and, with eval.reward, "gold/mean",
    "gold/domain/<name>" and "worst/domain_gold".
    """
    assert setup.held_out is not None, "the caller checks that there are held-out prompts"
    prompts = _held_out(setup, config.eval.prompts)
    rollout = roll_out(setup.policy_model, setup.tokenizer, prompts, config, 0, purpose="evaluation")
    reward_B = setup.models.reward(prompts, rollout)
    metrics = {
        "eval/reward/mean": float(reward_B.mean()),
        "eval/length": float(rollout.sequences.response_length_B.float().mean()),
        **by_domain(reward_B, rollout.domain_B, "eval/reward"),
    }
    if setup.gold is not None:
        gold_B = setup.gold(prompts, rollout)
        metrics |= {"gold/mean": float(gold_B.mean()), **by_domain(gold_B, rollout.domain_B, "gold")}
        metrics |= worst_domain(gold_B, rollout.domain_B, "worst/domain_gold")
    return metrics


def _held_out(setup: RLSetup, count: int) -> list[Prompt]:
    assert setup.held_out is not None
    chosen: list[Prompt] = []
    domain_of = setup.held_out.domain_of
    for name in setup.held_out.domains:
        rows = [row for row, domain in enumerate(domain_of) if domain == name]
        chosen += [setup.held_out[row] for row in rows[:count]]
    return chosen
