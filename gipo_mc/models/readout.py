"""What the last pipeline stage makes of hidden states: log-probs, values, group logits, rewards.

The stages that only read get a `LastStage` for `gipo_mc.parallel.engine.Engine`; those that train compose their losses
from the same pieces, so that scoring and training cannot differ.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.errors import NumericsError
from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.models.projection import in_parts
from gipo_mc.ops import TokenStatistics, token_statistics
from gipo_mc.parallel.engine import LastStage, Outputs

#: How far a policy may be from the reference that it starts as, in nats a token (mean of the absolute differences).
START_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.02}
#: The same where both have layouts of their own, which add in another order.
START_TOLERANCE_BESIDE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def check_starts_as_reference(difference: float, dtype: torch.dtype, means: str, *, one_layout: bool) -> None:
    """Raise NumericsError where a policy that has yet to take its first step is not the reference it starts as.

    difference: of their log-probs, in nats a token. means: what is so where there is none, for the message.
    one_layout: do both lie on the ranks in the same way?
    """
    if not difference <= (START_TOLERANCE if one_layout else START_TOLERANCE_BESIDE)[dtype]:
        raise NumericsError(
            f"Before its first step the policy is the reference, so {means}, but their log-probs differ by "
            f"{difference:.3g} nats a token. Please report this with the run's config.yaml."
        )


def holds_the_vocabulary() -> bool:
    """Does this rank hold the logits of the whole vocabulary?"""
    return parallel_state.get_tensor_model_parallel_world_size() == 1


def response_states(hidden_LBH: Tensor, batch: MicroBatch) -> Tensor:
    """[N, H]: the hidden state that predicts each packed response token."""
    return hidden_LBH.flatten(0, 1)[batch.state_N]


def response_statistics(
    model: Any, hidden_LBH: Tensor, batch: MicroBatch, temperature: float, logit_rows: int
) -> TokenStatistics:
    """Log-prob and entropy of each packed response token, [N] each, at `temperature`.

    logit_rows: tokens whose logits exist at a time, see `in_parts`; 0: all.
    """
    group = None if holds_the_vocabulary() else parallel_state.get_tensor_model_parallel_group()

    def statistics(logits_nV: Tensor, target_n: Tensor) -> TokenStatistics:
        return token_statistics(
            logits_nV,
            target_n,
            vocab_start=model.vocab_start,
            vocab_size=model.vocab_size,
            temperature=temperature,
            group=group,
            # The logits are made here and used by nobody else: their gradient may take their place.
            inplace_backward=True,
        )

    state_NH = response_states(hidden_LBH, batch)
    if not logit_rows or len(state_NH) <= logit_rows:
        return statistics(model.lm_logits(state_NH), batch.target_N)
    found = in_parts(
        statistics,
        state_NH,
        model.head_weight,
        batch.target_N,
        rows=logit_rows,
        float32=model.fp32_logits,
        group=group,
    )
    return TokenStatistics(*found)


def response_values(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Tensor:
    """Value of the state before each response token, [b, T], zeros in the padding."""
    return batch.to_response_BT(model.value(response_states(hidden_LBH, batch)))


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


def response_rewards(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Tensor:
    """The reward of each sequence, float32 [b], read where the model's `shape.pad_token_id` says."""
    reward_b: Tensor = model.reward(hidden_LBH.flatten(0, 1)[batch.reward_B(model.shape.pad_token_id)])
    return reward_b


def sequence_rewards() -> LastStage:
    """Output "reward" [b], see `response_rewards`."""

    def last_stage(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Outputs:
        return {"reward": response_rewards(model, hidden_LBH, batch)}

    return last_stage
