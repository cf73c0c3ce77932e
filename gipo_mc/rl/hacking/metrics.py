"""Metrics of what responses look like: alike to different prompts, repeating themselves, refusing, long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.association import correlation
from gipo_mc.algorithms.responses.likeness import Likeness, likeness, repetition, response_tokens
from gipo_mc.algorithms.responses.refusals import PHRASES, TOKENS_READ, refuses
from gipo_mc.data.encode import encoder_of
from gipo_mc.rl.experience import Experience
from gipo_mc.types import Sequences


@dataclass(frozen=True)
class Looks:
    """What the responses of a rollout batch look like. alike: to those of other prompts. repetition_B: share of pieces
    that a response has had before; refuses_B: does it refuse? float64 [B]."""

    alike: Likeness
    repetition_B: Tensor
    refuses_B: Tensor


def looks(sequences: Sequences, tokenizer: PreTrainedTokenizerBase, phrases: Sequence[str] = ()) -> Looks:
    """Look at every response. phrases: what marks a refusal; none: those of the project."""
    starts = replace(sequences, response_length_B=sequences.response_length_B.clamp(max=TOKENS_READ))
    rows = zip(response_tokens(starts).tolist(), starts.response_length_B.tolist())
    refused = refuses(encoder_of(tokenizer).texts([ids[:length] for ids, length in rows]), phrases or PHRASES)
    refuses_B = torch.tensor(refused, dtype=torch.float64, device=sequences.tokens_BL.device)
    return Looks(likeness(sequences), repetition(sequences), refuses_B)


def response_metrics(experience: Experience, seen: Looks) -> dict[str, float]:
    """Metrics of what was seen (`looks`) of a rollout batch, which is the same on every rank.

    response/identical, response/near_identical: share of the responses that are that, to another prompt.
    response/commonest: the largest share of the other prompts' responses that one response is near-identical to.
    response/repetition, response/refusals: means. Each also by domain (<name>/domain/<domain>; commonest: among the
    responses of the domain), as is response/length; group/<g>/{near_identical,repetition,refusals,length}: means
    weighted by p, 0 for an empty group. reward/length_correlation: of reward and length.
    """
    rollout = experience.rollout
    length_B = rollout.sequences.response_length_B.double()
    values = {
        "identical": seen.alike.identical_B.double(),
        "near_identical": seen.alike.near_B.double(),
        "repetition": seen.repetition_B,
        "refusals": seen.refuses_B,
        "length": length_B,
    }
    metrics = {f"response/{name}": float(of_B.mean()) for name, of_B in values.items() if name != "length"}
    metrics["response/commonest"] = seen.alike.commonest()
    for domain, rows in domain_rows(rollout.domain_B).items():
        rows_b = torch.tensor(rows, device=length_B.device)
        metrics |= {f"response/{name}/domain/{domain}": float(of_B[rows_b].mean()) for name, of_B in values.items()}
        metrics[f"response/commonest/domain/{domain}"] = seen.alike.commonest(rows)
    metrics["reward/length_correlation"] = correlation(experience.outputs.reward_B, length_B)
    return metrics | _by_group(experience.inputs.group_probs_BM, values)


def domain_rows(domains: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each domain, domains in order of their names."""
    return {name: [row for row, own in enumerate(domains) if own == name] for name in sorted(set(domains))}


def _by_group(probs_BM: Tensor, values: dict[str, Tensor]) -> dict[str, float]:
    if probs_BM.shape[1] < 2:
        return {}
    probs_BM = probs_BM.double()
    mass_M = probs_BM.sum(0)
    means_M = {name: of_B @ probs_BM / mass_M.clamp(min=1e-12) for name, of_B in values.items() if name != "identical"}
    return {
        f"group/{group}/{name}": value for name, of_M in means_M.items() for group, value in enumerate(of_M.tolist())
    }
