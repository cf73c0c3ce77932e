"""Does the reward model know what it is to reward? Held-out preference pairs, by domain and by inferred group.

Where a reward model orders the pairs of a domain no better than chance, what it pays there is noise: no choice of
groups, and no oracle, can raise that domain by it. A run that names such pairs (eval.pairs) says so in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.loading import load_preferences
from gipo_mc.data.sets import PreferenceSet
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import groups_alone, values_and_groups
from gipo_mc.parallel.layout import Layout
from gipo_mc.rl.hacking.metrics import domain_rows
from gipo_mc.rl.rollout import longest_sequence
from gipo_mc.rl.scoring import Models
from gipo_mc.types import Prompt, Rollout, Sequences


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs that are ordered as labelled, a tie one half. count: pairs; of a group with unequal memberships
    the number that says as much, (sum p)^2 / sum p^2."""

    share: float
    count: float

    @property
    def half(self) -> float:
        """Half of its 95 % interval (normal approximation, at chance)."""
        return 1.96 * 0.5 / math.sqrt(self.count) if self.count else math.inf

    @property
    def at_chance(self) -> bool:
        """Is it no better than chance, as far as these pairs can tell?"""
        return self.share - self.half <= 0.5


def load_pairs(config: Config, tokenizer: PreTrainedTokenizerBase) -> PreferenceSet:
    """The pairs of eval.pairs, cut to what RL reads. Raises DataError, ConfigError."""
    changed = {"evaluation": config.eval.pairs, "sequence_length": longest_sequence(config)}
    data = config.data.model_copy(update=changed)
    return load_preferences(data, tokenizer, seed=config.run.seed, part="evaluation")


class HeldOutPairs:
    """The first `eval.prompts` pairs of each domain, scored once: reward models are frozen, classifiers are not.

    warn: told, once each, of the domains and groups whose pairs are ordered no better than by chance.
    """

    def __init__(
        self,
        pairs: PreferenceSet,
        models: Models,
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        warn: Callable[[str], None],
    ) -> None:
        by_domain = domain_rows(pairs.domain_of).values()
        chosen = [pairs[row] for rows in by_domain for row in rows[: config.eval.prompts]]
        self.domain_P = tuple(pair.domain for pair in chosen)
        self._models, self._config, self._warn = models, config, warn
        self._said: set[str] = set()
        layout = models.policy.layout
        prompt_ids = [pair.prompt_ids for pair in chosen]
        sides = [
            to_sequences(prompt_ids, [getattr(pair, side) for pair in chosen], tokenizer.pad_token_id, layout.device)
            for side in ("chosen_ids", "rejected_ids")
        ]
        self._chosen = sides[0]
        prompts = [
            Prompt(row, ids, domain, tokenizer.decode(ids, skip_special_tokens=True))
            for row, (ids, domain) in enumerate(zip(prompt_ids, self.domain_P, strict=True))
        ]
        chosen_P, rejected_P = (
            models.reward(prompts, _as_rollout(side, self.domain_P, tokenizer, layout)) for side in sides
        )
        self.correct_P = (0.5 * (torch.sign(chosen_P - rejected_P) + 1.0)).double()

    def metrics(self) -> dict[str, float]:
        """ "pairs/accuracy" over all pairs, "pairs/accuracy/domain/<name>" and "pairs/accuracy/group/<g>"."""
        domains, groups = self.by_domain(), {str(group): found for group, found in enumerate(self.by_group())}
        for text in (*chance_warnings(domains, "domain"), *chance_warnings(groups, "group")):
            if (of := text.partition(" the reward model ")[0]) not in self._said:
                self._said.add(of)
                self._warn(text)
        metrics = {"pairs/accuracy": float(self.correct_P.mean())}
        metrics |= {f"pairs/accuracy/domain/{name}": found.share for name, found in domains.items()}
        return metrics | {f"pairs/accuracy/group/{name}": found.share for name, found in groups.items()}

    def by_domain(self) -> dict[str, Accuracy]:
        """Domain -> how many of its pairs are ordered as labelled."""
        return {
            name: Accuracy(float(self.correct_P[rows].mean()), float(len(rows)))
            for name, rows in domain_rows(self.domain_P).items()
        }

    def by_group(self) -> list[Accuracy]:
        """The same of each inferred group, by memberships of the chosen responses; none without a classifier."""
        settings, models = self._config.algorithm, self._models
        if not settings.inferred:
            return []
        if models.classifier is not None:
            engine, stage = models.classifier, groups_alone(settings.group_input)
        else:
            assert models.critic is not None, "a classifier stands on the critic where it has no trunk of its own"
            engine, stage = models.critic, values_and_groups(settings.groups, settings.group_input)
        packed = micro_batches(self._chosen, self._config.parallel, engine.layout)
        probs_PM = run_forward(engine, packed, stage, {"groups": settings.groups})["groups"].double()
        mass_M, square_M = probs_PM.sum(0), probs_PM.square().sum(0).clamp(min=1e-300)
        share_M = (probs_PM * self.correct_P[:, None]).sum(0) / mass_M.clamp(min=1e-300)
        return [Accuracy(*both) for both in zip(share_M.tolist(), (mass_M.square() / square_M).tolist(), strict=True)]


def chance_warnings(found: Mapping[str, Accuracy], what: str) -> list[str]:
    """A sentence for each domain or group (`what`) whose pairs are ordered no better than by chance."""
    return [
        f"On held-out pairs of {what} {name} the reward model is right in {accuracy.share:.0%} of about "
        f"{accuracy.count:.0f}, which cannot be told from chance (50% ± {accuracy.half:.0%}): what it pays there is "
        "noise, and no method can raise it by this reward. More or cleaner pairs of that kind come first."
        for name, accuracy in found.items()
        if accuracy.at_chance
    ]


def _as_rollout(
    sequences: Sequences, domains: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> Rollout:
    """Written responses as if they had been generated: a reward reads them so. One without EOS was cut."""
    count, width = len(sequences), int(sequences.response_length_B.max())
    last_B = (sequences.prompt_length_B + sequences.response_length_B - 1).clamp(min=0)
    end_B: Tensor = sequences.tokens_BL.gather(1, last_B[:, None])[:, 0]
    return Rollout(
        sequences,
        torch.arange(count, device=layout.device),
        domains,
        torch.zeros(count, width, device=layout.device),
        (end_B != tokenizer.eos_token_id) | (sequences.response_length_B == 0),
    )
