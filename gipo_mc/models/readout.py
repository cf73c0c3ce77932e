"""What the last pipeline stage makes of hidden states: log-probs, values, group logits, rewards.

Each function here returns a `LastStage` for `gipo_mc.parallel.engine.Engine`; the update stages compose losses from
the same pieces, so that what is scored and what is trained cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.ops import (
    GroupObjective,
    TokenObjective,
    TokenStatistics,
    group_objective,
    token_objective,
    token_statistics,
)
from gipo_mc.parallel.engine import LastStage, Outputs


def response_statistics(
    model: Any, hidden_LBH: Tensor, batch: MicroBatch, temperature: float, logit_rows: int
) -> TokenStatistics:
    """Log-prob and entropy of each packed response token, [N] each, at `temperature`.

    logit_rows: tokens whose logits exist at a time, see `by_rows`; 0: all.
    """
    tensor_parallel = parallel_state.get_tensor_model_parallel_world_size() > 1
    group = parallel_state.get_tensor_model_parallel_group() if tensor_parallel else None

    def statistics(state_nH: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
        found = token_statistics(
            model.lm_logits(state_nH),
            target_n,
            vocab_start=model.vocab_start,
            vocab_size=model.vocab_size,
            temperature=temperature,
            group=group,
            # The logits are made here and used by nobody else: their gradient may take their place.
            inplace_backward=True,
        )
        return found.logp_N, found.entropy_N

    state_NH = hidden_LBH.flatten(0, 1)[batch.state_N]
    return TokenStatistics(*by_rows(statistics, state_NH, batch.target_N, rows=logit_rows))


def response_objective(
    model: Any,
    hidden_LBH: Tensor,
    batch: MicroBatch,
    temperature: float,
    logit_rows: int,
    signal: dict[str, Any] | None = None,
    **inputs: Any,
) -> TokenObjective:
    """The group objective of the response tokens, and the sum of the entropies of each sequence.

    inputs: what `gipo_mc.ops.group_objective` takes beside log-probs and lengths. signal: see `objective_with_signal`.
    Without it, where this rank holds the whole vocabulary and all logits exist at a time, one op goes from the logits
    to the objective; otherwise the log-probs stand between. The numbers are the same.
    """
    length_B, tokens = batch.sequences.response_length_B, len(batch.state_N)
    whole = parallel_state.get_tensor_model_parallel_world_size() == 1 and (not logit_rows or tokens <= logit_rows)
    if whole and signal is None:
        return token_objective(
            model.lm_logits(hidden_LBH.flatten(0, 1)[batch.state_N]),
            batch.target_N,
            length_B=length_B,
            vocab_size=model.vocab_size,
            temperature=temperature,
            inplace_backward=True,
            **inputs,
        )
    statistics = response_statistics(model, hidden_LBH, batch, temperature, logit_rows)
    objective = objective_with_signal(batch.to_response_BT(statistics.logp_N), length_B, inputs, signal)
    return TokenObjective(objective, batch.to_response_BT(statistics.entropy_N).sum(dim=1))


def objective_with_signal(
    logp_BT: Tensor, length_B: Tensor, inputs: dict[str, Any], signal: dict[str, Any] | None
) -> GroupObjective:
    """The group objective of log-probs; with `signal` its signals and their group sums are those of other inputs."""
    objective = group_objective(logp_BT, length_B=length_B, **inputs)
    if signal is None:
        return objective
    own = group_objective(logp_BT, length_B=length_B, **signal)
    return objective._replace(signal_B=own.signal_B, mass_M=own.mass_M, weighted_M=own.weighted_M)


def by_rows(
    function: Callable[..., tuple[Tensor, ...]], state_NH: Tensor, *others_N: Tensor, rows: int
) -> tuple[Tensor, ...]:
    """`function(state_NH, *others_N)` -> tensors [N], computed on at most `rows` rows at a time (0: all at once).

    What `function` holds between its input and its output, logits above all, exists for one part at a time. Where a
    gradient is wanted, all parts but the last are computed a second time in the backward pass, and their gradients of
    the weights are added to Megatron's float32 buffer part by part, as those of micro-batches are. Parts differ in
    size by at most one row, and are the same on every tensor-parallel rank.
    """
    count = -(-len(state_NH) // rows) if rows else 1
    if count <= 1:
        return function(state_NH, *others_N)
    outputs = []
    parts = zip(*(tensor.tensor_split(count) for tensor in (state_NH, *others_N)))
    for number, part in enumerate(parts, 1):
        # The backward pass begins with the last part, so what that one holds can wait for it.
        if torch.is_grad_enabled() and number < count:
            # Reentrant on purpose: the other kind sums the weight gradients of all parts in the model's dtype before
            # Megatron is given them. Nothing here draws random numbers.
            outputs.append(checkpoint(function, *part, use_reentrant=True, preserve_rng_state=False))
        else:
            outputs.append(function(*part))
    return tuple(torch.cat(columns) for columns in zip(*outputs))


def response_values(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Tensor:
    """Value of the state before each response token, [b, T], zeros in the padding."""
    return batch.to_response_BT(model.value(hidden_LBH.flatten(0, 1)[batch.state_N]))


def group_probabilities(model: Any, hidden_LBH: Tensor, batch: MicroBatch, *, reads: str, detach: bool) -> Tensor:
    """p_phi(g|x,y), float32 [b, M], read at the last response token ("xy") or the last prompt token ("prompt").

    detach: keep the classifier's gradient out of the critic's trunk.
    """
    position_B = batch.last_B if reads == "xy" else batch.prompt_end_B
    feature_BH = hidden_LBH.flatten(0, 1)[position_B]
    logits_BM: Tensor = model.group_logits(feature_BH.detach() if detach else feature_BH)
    return logits_BM.softmax(dim=-1)


def token_log_probs(temperature: float, logit_rows: int) -> LastStage:
    """Outputs "logp" and "entropy", [b, T]; `logit_rows` as in `response_statistics`."""

    def last_stage(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Outputs:
        statistics = response_statistics(model, hidden_LBH, batch, temperature, logit_rows)
        return {
            "logp": batch.to_response_BT(statistics.logp_N),
            "entropy": batch.to_response_BT(statistics.entropy_N),
        }

    return last_stage


def values_and_groups(groups: int, reads: str) -> LastStage:
    """Outputs "values" [b, T] and, where there are groups, "groups" [b, M]."""

    def last_stage(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Outputs:
        outputs = {"values": response_values(model, hidden_LBH, batch)}
        if groups > 1:
            outputs["groups"] = group_probabilities(model, hidden_LBH, batch, reads=reads, detach=True)
        return outputs

    return last_stage


def groups_alone(reads: str) -> LastStage:
    """Output "groups" [b, M]."""

    def last_stage(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Outputs:
        return {"groups": group_probabilities(model, hidden_LBH, batch, reads=reads, detach=True)}

    return last_stage


def sequence_rewards() -> LastStage:
    """Output "reward" [b], read at the last token of prompt + response."""

    def last_stage(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Outputs:
        return {"reward": model.reward(hidden_LBH.flatten(0, 1)[batch.last_B])}

    return last_stage
