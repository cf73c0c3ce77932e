"""model outputs -> those that training may use: one bad number must not decide a run.

- A response of which a number is not finite, or out of all bounds, is left out on every rank, as if it had not been
  sampled: no gradient, no mean, no group, no controller sees it.
- A reward far out of its batch, a sentinel for "invalid" for example, is winsorised: it becomes the farthest reward of
  the batch that is none. The policy is trained with that one too.

Every rank holds the whole rollout batch, so all of them take the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.distribution import reach_of, winsorised
from gipo_mc.algorithms.state import Health
from gipo_mc.config import Config
from gipo_mc.errors import NumericsError
from gipo_mc.rl.experience import ModelOutputs
from gipo_mc.rl.reward_sources.troubles import Troubles
from gipo_mc.rl.rewards import responses
from gipo_mc.run.jsonl import printable
from gipo_mc.types import Prompt, Rollout

#: A reward or value beyond it is not used: squares of it, added up over a batch, have to fit float32.
LARGEST = 1e15
#: A token whose log-prob lies under it is none that the policy could have sampled: its model is broken.
LOWEST_LOG_PROB = -1e4
#: Where each number comes from, in the order in which a cause is named: (name, what it is, the key of its model).
_SOURCES = {
    "policy": ("log-prob of the policy", "model.policy"),
    "reference": ("log-prob of the reference", "model.reference"),
    "critic": ("value of the critic", "model.critic"),
    "classifier": ("group probability of the classifier", "model.critic"),
    "reward": ("reward", "model.reward"),
    "level": ("reward of the reference's responses", "model.reward"),
}
#: Of these a function may have none for any response of a batch, and be whole.
_PAID = ("reward", "level")


@dataclass(frozen=True)
class Sifted:
    """What of a rollout batch is used.

    prompts, rollout, outputs: the rows kept, rewards winsorised. bad_rows: lines for samples.jsonl on each response
    that was left out or whose reward was changed. cause: a sentence on those left out, else "". metrics: of the kind
    "<source>/invalid" and "reward/clipped", responses each, where they are not 0.
    """

    prompts: Sequence[Prompt]
    rollout: Rollout
    outputs: ModelOutputs
    bad_rows: list[dict[str, object]]
    cause: str
    metrics: dict[str, float]


def sift(
    prompts: Sequence[Prompt],
    rollout: Rollout,
    outputs: ModelOutputs,
    health: Health,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    troubles: Troubles | None = None,
) -> tuple[Sifted, Health]:
    """The usable part of a rollout batch, and the health after it.

    troubles: what the rewards said while they scored the batch. It ends the sentence on what was left out, and is told
    by itself where nothing was.
    Without a critic a response is compared with the other samples of its prompt, so those go with it. Raises
    NumericsError where no response has a finite number of one of the models: then the model is broken, not a response.
    """
    reward_B, clipped_B = _winsorised_reward(outputs.reward_B, health, config)
    causes = _causes(outputs, reward_B)
    for source in sorted(set(causes) - {""}, key=list(_SOURCES).index):
        back_soon = source in _PAID and config.reward.from_outside(config.model.reward)
        if all(cause == source for cause in causes) and not back_soon:
            raise NumericsError(_broken_model(source, config))
    usable_B = torch.tensor([not cause for cause in causes], device=reward_B.device)
    if len(usable_B) and bool(usable_B.any()):
        health = health.reached(reach_of(reward_B[usable_B]), config.algorithm.signal_decay)
    health = health.counted(invalid=_too_many(causes, config))
    found = Counter(cause for cause in causes if cause)
    if troubles and not found:
        troubles.tell()
    if bool(usable_B.all()) and not bool(clipped_B.any()):
        return Sifted(prompts, rollout, outputs, [], "", {}), health
    metrics = {f"{source}/invalid": float(count) for source, count in found.items()}
    if count := int((clipped_B & usable_B).sum()):
        raw_B = outputs.reward_B[usable_B]
        metrics |= {
            "reward/clipped": float(count), "reward/min": float(raw_B.min()), "reward/max": float(raw_B.max())
        }  # fmt: skip
    bad_rows = _bad_rows(prompts, rollout, outputs, causes, clipped_B, tokenizer)
    cause = _sentence(found, next((row for row in bad_rows if row["invalid"]), None), config)
    cause = " ".join([cause, *(troubles.take() if troubles else ())])
    kept_B = _whole_prompts(usable_B, config) if config.algorithm.advantage != "gae" else usable_B
    rows_b = kept_B.nonzero().flatten()
    kept = replace(outputs, reward_B=reward_B)
    sifted = Sifted(
        [prompts[row] for row in rows_b.tolist()], rollout.rows(rows_b), kept.rows(rows_b), bad_rows, cause, metrics
    )
    return sifted, health


def finite_rewards(
    reward_B: Tensor, domains: Sequence[str], config: Config, name: str
) -> tuple[Tensor, Sequence[str], dict[str, float]]:
    """Of an evaluation: (rewards that are finite, outliers winsorised; their domains; "<name>/{invalid,clipped}" where
    not 0)."""
    clean_B, clipped_B = _winsorised_reward(reward_B, Health(), config)
    usable_B = clean_B.isfinite() & (clean_B.abs() <= LARGEST)
    counts = {"invalid": int((~usable_B).sum()), "clipped": int((clipped_B & usable_B).sum())}
    metrics = {f"{name}/{what}": float(count) for what, count in counts.items() if count}
    if not metrics:
        return reward_B, domains, {}
    return clean_B[usable_B], [domains[row] for row in usable_B.nonzero().flatten().tolist()], metrics


def usable_rewards(reward_B: Tensor, config: Config) -> Tensor:
    """Rewards [B] with outliers winsorised, and NaN for those that are not finite or out of all bounds."""
    clean_B, _ = _winsorised_reward(reward_B, Health(), config)
    return clean_B.where(clean_B.isfinite() & (clean_B.abs() <= LARGEST), torch.nan)


def _winsorised_reward(reward_B: Tensor, health: Health, config: Config) -> tuple[Tensor, Tensor]:
    """(rewards with outliers pulled in, which were), those that are not finite as they are."""
    finite_B = reward_B.isfinite()
    if bool(finite_B.all()):
        return winsorised(reward_B, config.algorithm.outlier, health.reach or 0.0)
    result_B, clipped_B = reward_B.clone(), torch.zeros_like(finite_B)
    result_B[finite_B], clipped_B[finite_B] = winsorised(
        reward_B[finite_B], config.algorithm.outlier, health.reach or 0.0
    )
    return result_B, clipped_B


def _causes(outputs: ModelOutputs, reward_B: Tensor) -> list[str]:
    """For each response the source of its first number that cannot be used, "" where all can."""

    def bounded(values: Tensor) -> Tensor:
        return (values.isfinite() & (values.abs() <= LARGEST)).reshape(len(values), -1).all(dim=1)

    def probable(logp_BT: Tensor) -> Tensor:
        return (logp_BT.isfinite() & (logp_BT >= LOWEST_LOG_PROB)).all(dim=1)

    fine = {
        "policy": probable(outputs.behaviour_logp_BT) & bounded(outputs.entropy_BT),
        "reference": probable(outputs.reference_logp_BT),
        "critic": bounded(outputs.values_BT),
        "classifier": bounded(outputs.group_probs_BM),
        "reward": bounded(reward_B),
        **({} if outputs.level_B is None else {"level": bounded(outputs.level_B)}),
    }
    causes = [""] * len(reward_B)
    for source, fine_B in reversed(fine.items()):
        for row in (~fine_B).nonzero().flatten().tolist():
            causes[row] = source
    return causes


def _too_many(causes: Sequence[str], config: Config) -> bool:
    """Does what is left out count towards algorithm.invalid_patience? A few rewards skipped by option do not."""
    rewards, all_of_them = causes.count("reward"), sum(map(bool, causes))
    tolerated = config.reward.max_skipped * len(causes) if config.reward.on_error == "skip" else 0.0
    return all_of_them > rewards or rewards > tolerated


def _whole_prompts(usable_B: Tensor, config: Config) -> Tensor:
    samples = config.rollout.samples_per_prompt
    return usable_B.reshape(-1, samples).all(dim=1).repeat_interleave(samples)


def _bad_rows(
    prompts: Sequence[Prompt],
    rollout: Rollout,
    outputs: ModelOutputs,
    causes: Sequence[str],
    clipped_B: Tensor,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, object]]:
    """Prompt, response, domain; "value", the reward as it came (a text, for nan), "invalid", what was wrong, and
    "clipped", whether the reward was pulled in."""
    bad = [row for row, cause in enumerate(causes) if cause or bool(clipped_B[row])]
    texts = responses(rollout.sequences.rows(torch.tensor(bad, device=clipped_B.device)), tokenizer)
    return [
        {
            "prompt": prompts[row].text,
            "response": text,
            "domain": rollout.domain_B[row],
            "reward": None,
            "value": f"{float(outputs.reward_B[row]):g}",
            "invalid": _SOURCES[causes[row]][0] if causes[row] else "",
            "clipped": bool(clipped_B[row]),
            "length": int(rollout.sequences.response_length_B[row]),
        }
        for row, text in zip(bad, texts, strict=True)
    ]


def _sentence(found: Counter[str], first: dict[str, object] | None, config: Config) -> str:
    if first is None:
        return ""
    named = {"reward": " + ".join(config.reward.sources(config.model.reward))}
    parts = [
        f"Responses without a usable {what}: {count} ({key}{'=' + named[source] if source in named else ''})"
        for source, count in found.items()
        for what, key in [_SOURCES[source]]
    ]
    response = printable(str(first["response"]))[:80]
    return (
        f"{'; '.join(parts)}. They were left out of the iteration. The first, of domain {first['domain']}, has the "
        f"reward {first['value']}: {response!r}."
    )


def _broken_model(source: str, config: Config) -> str:
    what, key = _SOURCES[source]
    model = getattr(config.model, key.removeprefix("model.")) or config.model.policy
    section = {"policy": "policy", "critic": "critic", "classifier": "critic"}.get(source)
    remedy = f", or {section}.lr is too large (go back to a checkpoint and lower it)" if section else ""
    return (
        f"No response has a usable {what}: {key}={model} holds weights that are not finite, or overflows in "
        f"dtype={config.dtype}{remedy}. Nothing was changed by it. Check the model with gipo-mc convert "
        "--check, or use dtype=float32."
    )
