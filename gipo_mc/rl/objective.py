"""Op B as the policy's update asks for it: from log-probs, or from the last stage's hidden states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gipo_mc.config import Config
from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.models.readout import holds_the_vocabulary, response_states, response_statistics
from gipo_mc.ops import (
    GroupObjective,
    KlEstimator,
    ObjectiveInputs,
    SignalForm,
    TokenObjective,
    group_objective,
    token_objective,
)
from gipo_mc.rl.experience import Experience


@dataclass(frozen=True)
class Objective:
    """The group objective of rows of the experience, as a function of the policy's log-probs of their tokens.

    form: of the signal S_i. signal_weight_BT: X_it of log pi X_it in the signal, where that is not the advantage.
    """

    inputs: ObjectiveInputs
    form: SignalForm
    signal_weight_BT: Tensor | None
    clip: float
    kl_estimator: KlEstimator

    @classmethod
    def of(cls, experience: Experience, config: Config) -> Objective:
        """That of the experience's own rows."""
        settings = config.algorithm
        return cls(
            experience.inputs,
            experience.signal_form,
            experience.signal_weight_BT,
            settings.clip,
            settings.kl_estimator,
        )

    def rows(self, rows_B: Tensor) -> Objective:
        """That of the rows `rows_B` (int64 [b])."""
        signal_weight_BT = None if self.signal_weight_BT is None else self.signal_weight_BT[rows_B]
        return replace(self, inputs=self.inputs.rows(rows_B), signal_weight_BT=signal_weight_BT)

    def of_log_probs(self, logp_BT: Tensor) -> GroupObjective:
        """From log-probs [B, T]. A signal whose log-probs have a weight of their own takes a second pass of the op, for
        its value and its sums by group."""
        if self.signal_weight_BT is None:
            return self._group_objective(logp_BT, self.inputs, self.form)
        objective = self._group_objective(logp_BT, self.inputs, "ratio")
        signal = self._group_objective(logp_BT, self.inputs._replace(advantage_BT=self.signal_weight_BT), self.form)
        return objective._replace(signal_B=signal.signal_B, mass_M=signal.mass_M, weighted_M=signal.weighted_M)

    def of_hidden(
        self, model: Any, hidden_LBH: Tensor, part: MicroBatch, temperature: float, logit_rows: int
    ) -> TokenObjective:
        """From hidden states, with the sum of the entropies of each sequence; the rows are those of `part`.

        Where this rank holds the whole vocabulary and all logits exist at a time, one op goes from the logits to the
        objective; otherwise the log-probs stand between. The numbers are the same.
        """
        at_once = not logit_rows or len(part.state_N) <= logit_rows
        if holds_the_vocabulary() and at_once and self.signal_weight_BT is None:
            return token_objective(
                model.lm_logits(response_states(hidden_LBH, part)),
                part.target_N,
                *self.inputs,
                clip=self.clip,
                kl_estimator=self.kl_estimator,
                signal_form=self.form,
                vocab_size=model.vocab_size,
                temperature=temperature,
                inplace_backward=True,
                check_values=False,  # as below
            )
        statistics = response_statistics(model, hidden_LBH, part, temperature, logit_rows)
        objective = self.of_log_probs(part.to_response_BT(statistics.logp_N))
        return TokenObjective(objective, part.to_response_BT(statistics.entropy_N).sum(dim=1))

    def _group_objective(self, logp_BT: Tensor, inputs: ObjectiveInputs, form: SignalForm) -> GroupObjective:
        return group_objective(
            logp_BT,
            *inputs,
            clip=self.clip,
            kl_estimator=self.kl_estimator,
            signal_form=form,
            check_values=False,  # `kl_weights` looked at them
        )
