"""What op B (`group_objective`, and `token_objective`, which joins op A to it) takes of a batch beside log-probs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ObjectiveInputs(NamedTuple):
    """Built once for a rollout batch, sliced by rows, unpacked at the op: `group_objective(logp_BT, *inputs, ...)`.

    behaviour_logp_BT, reference_logp_BT, advantage_BT: [B, T], the dtype of the log-probs.
    length_B: int64 [B], tokens. group_probs_BM [B, M], behaviour_signal_B [B] and kl_weight_B [B]: float32
        (float64 for float64 log-probs). The fields stand in the order of the ops' parameters.
    """

    behaviour_logp_BT: Tensor
    reference_logp_BT: Tensor
    advantage_BT: Tensor
    length_B: Tensor
    group_probs_BM: Tensor
    behaviour_signal_B: Tensor
    kl_weight_B: Tensor

    def rows(self, rows_B: Tensor) -> ObjectiveInputs:
        """The same of the rows `rows_B` (int64 [b]) of the batch."""
        return ObjectiveInputs(*(tensor[rows_B] for tensor in self))
