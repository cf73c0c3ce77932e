"""A rollout batch after scoring and after shaping, identical on every rank: what the later stages are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

from gipo_mc.ops import ObjectiveInputs, SignalForm
from gipo_mc.types import Rollout


@dataclass(frozen=True)
class ModelOutputs:
    """What the models say of a rollout, float32.

    behaviour_logp_BT: policy that generated (training forward, at temperature).
    entropy_BT: entropy of that policy in nats.
    reference_logp_BT: frozen SFT policy.
    values_BT: critic's value of the state before response token t; 0 without a critic.
    reward_B: raw reward of the whole response, in reward-model units.
    group_probs_BM: p_phi(g|x,y) of the classifier, rows sum to 1; [B, 1] of ones without a classifier.
    level_B: mean reward of the reference's responses to the prompt; None without algorithm.reference_samples.
    disagreement_B: standard deviation of the reward models (`learned.ensemble`); None where there is one reward.
    reward_parts: what the reward is made of, [B] each by name; empty where it is one reward.
    """

    behaviour_logp_BT: Tensor
    entropy_BT: Tensor
    reference_logp_BT: Tensor
    values_BT: Tensor
    reward_B: Tensor
    group_probs_BM: Tensor
    level_B: Tensor | None = None
    disagreement_B: Tensor | None = None
    reward_parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def gain_B(self) -> Tensor:
        """Reward less the level of its prompt."""
        assert self.level_B is not None, "the configuration asks for reference samples where it asks for gains"
        return self.reward_B - self.level_B

    def rows(self, rows_B: Tensor) -> ModelOutputs:
        """The same of the rows `rows_B` (int64 [b])."""
        columns = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "reward_parts"}
        tensors = {name: None if column is None else column[rows_B] for name, column in columns.items()}
        parts = {name: part_B[rows_B] for name, part_B in self.reward_parts.items()}
        return ModelOutputs(**tensors, reward_parts=parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Experience:
    """The rollout batch that the updates train on, float32.

    inputs: op B's, beside log-probs. group_probs_BM are those that the policy side uses: the classifier's, their hard
        assignment, or a control in their place (`algorithms.group_source`); the classifier itself is trained with those
        of `outputs`. advantage_BT multiplies the ratio (whitened GAE, group-DRO's weights included), behaviour_signal_B
        is S_i, kl_weight_B is eta_i (adaptive: kl_coef p_i,high).
    return_BT: targets of the critic.
    kl_B: sum over the response of the KL estimate to the reference, unweighted.
    signal_form: how S_i depends on the policy (`ops.group_objective`): by the ratio, or as sum or mean of log pi X.
    signal_weight_BT: X_it where it is not the advantage of `inputs`; None: it is, or the form is "ratio".
    """

    rollout: Rollout
    outputs: ModelOutputs
    inputs: ObjectiveInputs
    return_BT: Tensor
    kl_B: Tensor
    signal_form: SignalForm = "ratio"
    signal_weight_BT: Tensor | None = None

    def __len__(self) -> int:
        return len(self.kl_B)

    def rows(self, rows_B: Tensor) -> Experience:
        """A mini-batch: the rows `rows_B` (int64 [b]), T unchanged."""
        weight_BT = self.signal_weight_BT
        return Experience(
            rollout=self.rollout.rows(rows_B),
            outputs=self.outputs.rows(rows_B),
            inputs=self.inputs.rows(rows_B),
            return_BT=self.return_BT[rows_B],
            kl_B=self.kl_B[rows_B],
            signal_form=self.signal_form,
            signal_weight_BT=None if weight_BT is None else weight_BT[rows_B],
        )
