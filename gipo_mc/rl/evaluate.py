"""The policy on held-out prompts, by domain: the reward it was trained on, one it never saw, and its KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gipo_mc.algorithms.advantages import response_mask
from gipo_mc.algorithms.distribution import excess_kurtosis, lower_tail
from gipo_mc.config import Config
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import token_log_probs
from gipo_mc.rl.hacking.metrics import domain_rows
from gipo_mc.rl.learned.paid import paid
from gipo_mc.rl.metrics import by_domain, worst_domain
from gipo_mc.rl.rollout import roll_out
from gipo_mc.rl.setup import RLSetup
from gipo_mc.rl.sifting import finite_rewards
from gipo_mc.types import Prompt, Rollout


def evaluate_policy(setup: RLSetup, config: Config, tell: Callable[[int, int], None] | None = None) -> dict[str, float]:
    """What held-out prompts say of the policy, and held-out pairs of the reward (`learned.pairs`). tell: how far the
    generation is, which takes most of the time."""
    metrics = _on_prompts(setup, config, tell) if setup.held_out is not None else {}
    setup.troubles.tell()
    return metrics | (setup.pairs.metrics() if setup.pairs is not None else {})


def _on_prompts(setup: RLSetup, config: Config, tell: Callable[[int, int], None] | None) -> dict[str, float]:
    """Sample one response for the first `eval.prompts` held-out prompts of each domain, always with the same random
    numbers, so that two evaluations differ by the policy alone.

    Metrics "eval/reward/mean", "eval/reward/domain/<name>", "eval/kl/mean" and "eval/kl/domain/<name>" (k1, nats a
    response), "eval/length" and, with eval.reward, "gold/mean", "gold/domain/<name>" and "worst/domain_gold". Of each
    reward also "<reward>/lowest_tenth", the mean of the lowest tenth, and "<reward>/kurtosis" (excess), whole and by
    domain. With algorithm.reference_samples "eval/gain/..." and "worst/domain_gain": gains over the reference, which
    begin at one level in all domains; with reward.models "eval/disagreement/...". The worst domain is one of those that
    are trained on. Rewards that are not finite are left out and outliers winsorised: "<reward>/{invalid,clipped}" count
    them, where there are any.
    """
    prompts = _held_out(setup, config.eval.prompts)
    rollout = roll_out(setup.rollout_engine, setup.tokenizer, prompts, config, 0, purpose="evaluation", on_step=tell)
    level = setup.models.reference_samples(prompts, "evaluation") if setup.models.reference_samples else None
    raw_B, _, disagreement_B = paid(setup.models.reward, prompts, rollout, level)
    kl_B = _kl(setup, rollout, config)
    reward_B, domain_B, left_out = finite_rewards(raw_B, rollout.domain_B, config, "eval/reward")
    metrics = {
        "eval/reward/mean": float(reward_B.mean()),
        "eval/kl/mean": float(kl_B.mean()),
        "eval/length": float(rollout.sequences.response_length_B.float().mean()),
        **by_domain(reward_B, domain_B, "eval/reward"),
        **by_domain(kl_B, rollout.domain_B, "eval/kl"),
        **_shape(reward_B, domain_B, "eval/reward"),
        **left_out,
    }
    if level is not None:
        gain_B, domain_B, left_out = finite_rewards(raw_B - level.reward_B, rollout.domain_B, config, "eval/gain")
        metrics |= {"eval/gain/mean": float(gain_B.mean()), **by_domain(gain_B, domain_B, "eval/gain"), **left_out}
        metrics |= worst_domain(gain_B, domain_B, "worst/domain_gain", setup.prompts.domains)
    if disagreement_B is not None:
        metrics |= {"eval/disagreement/mean": float(disagreement_B.nanmean())}
        metrics |= by_domain(disagreement_B, rollout.domain_B, "eval/disagreement")
    if setup.gold is not None:
        gold_B, domain_B, left_out = finite_rewards(setup.gold(prompts, rollout), rollout.domain_B, config, "gold")
        metrics |= {"gold/mean": float(gold_B.mean()), **by_domain(gold_B, domain_B, "gold"), **left_out}
        metrics |= worst_domain(gold_B, domain_B, "worst/domain_gold", setup.prompts.domains)
        metrics |= _shape(gold_B, domain_B, "gold")
    return metrics


def _kl(setup: RLSetup, rollout: Rollout, config: Config) -> Tensor:
    """log pi - log pi_ref summed over each response, [B]."""
    sequences, width = rollout.sequences, rollout.width
    stage = token_log_probs(config.rollout.temperature, config.parallel.logit_rows)
    policy_BT, reference_BT = (
        run_forward(model, micro_batches(sequences, config.parallel, model.layout), stage, {"logp": width})["logp"]
        for model in (setup.models.policy, setup.models.reference)
    )
    return ((policy_BT - reference_BT) * response_mask(sequences.response_length_B, width)).sum(1)


def _shape(values_B: Tensor, domains: Sequence[str], prefix: str) -> dict[str, float]:
    """Tail and kurtosis of `values_B` [B], whole and by domain."""
    metrics = {f"{prefix}/lowest_tenth": lower_tail(values_B), f"{prefix}/kurtosis": excess_kurtosis(values_B)}
    for name, rows in domain_rows(domains).items():
        metrics[f"{prefix}/lowest_tenth/{name}"] = lower_tail(values_B[rows])
        metrics[f"{prefix}/kurtosis/{name}"] = excess_kurtosis(values_B[rows])
    return metrics


def _held_out(setup: RLSetup, count: int) -> list[Prompt]:
    assert setup.held_out is not None
    chosen: list[Prompt] = []
    domain_of = setup.held_out.domain_of
    for name in setup.held_out.domains:
        rows = [row for row, domain in enumerate(domain_of) if domain == name]
        chosen += [setup.held_out[row] for row in rows[:count]]
    return chosen
