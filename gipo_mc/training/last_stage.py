"""What the last pipeline stage makes of hidden states: log-probs, values, group logits, rewards.

Each function here returns a `LastStage` for `gipo_mc.parallel.engine.Engine`; the update stages compose losses from
the same pieces, so that what is scored and what is trained cannot differ.
"""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.ops import TokenStatistics, token_statistics
from gipo_mc.parallel.engine import LastStage, Outputs
from gipo_mc.training.batching import MicroBatch


def response_statistics(model: Any, hidden_LBH: Tensor, batch: MicroBatch, temperature: float) -> TokenStatistics:
    """Log-prob and entropy of each packed response token, [N] each, at `temperature`."""
    logits_NV = model.lm_logits(hidden_LBH.flatten(0, 1)[batch.state_N])
    tensor_parallel = parallel_state.get_tensor_model_parallel_world_size() > 1
    return token_statistics(
        logits_NV,
        batch.target_N,
        vocab_start=model.vocab_start,
        vocab_size=model.vocab_size,
        temperature=temperature,
        group=parallel_state.get_tensor_model_parallel_group() if tensor_parallel else None,
        # The logits are made here and used by nobody else: their gradient may take their place.
        inplace_backward=True,
    )


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


def token_log_probs(temperature: float) -> LastStage:
    """Outputs "logp" and "entropy", [b, T]."""

    def last_stage(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Outputs:
        statistics = response_statistics(model, hidden_LBH, batch, temperature)
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


def sequence_rewards() -> LastStage:
    """Output "reward" [b], read at the last token of prompt + response."""

    def last_stage(model: Any, hidden_LBH: Tensor, batch: MicroBatch) -> Outputs:
        return {"reward": model.reward(hidden_LBH.flatten(0, 1)[batch.last_B])}

    return last_stage
