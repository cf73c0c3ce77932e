"""Group-DPO: the losses of preference pairs weighted by group, known domains or groups that a GI-PPO run inferred.

A step uses the weights that the steps before it led to: the losses of its own batch are known only in the forward pass
that its backward pass belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.group_dpo import next_weights, pair_weights
from gipo_mc.algorithms.group_source import domain_probabilities
from gipo_mc.config import AlgorithmConfig
from gipo_mc.data.tokenizer import same_tokens
from gipo_mc.errors import CheckpointError, ConfigError
from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.models.readout import group_probabilities
from gipo_mc.parallel.engine import Engine, LastStage, Outputs
from gipo_mc.run.model_sources import check_fits, classifier_of
from gipo_mc.run.session import Session
from gipo_mc.supervised.loop import Task, forward
from gipo_mc.supervised.pairs import Pairs
from gipo_mc.types import Sequences

#: Share of the training pairs under which a group's loss is mostly noise.
_SMALL = 0.02


@dataclass(frozen=True)
class WeightedLoss:
    """The loss of a micro-batch of pairs: that of `unweighted`, each pair's times its weight [P] of the whole batch.

    values_PK: what the batch's pairs are, a column for each of the names `columns`: these are outputs, too.
    """

    unweighted: LastStage
    weight_P: Tensor
    values_PK: Tensor
    columns: Sequence[str]

    def __call__(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        outputs, pairs = self.unweighted(model, hidden_LBH, part), part.units_U
        columns = dict(zip(self.columns, self.values_PK[pairs].unbind(dim=1), strict=True))
        return outputs | columns | {"loss_sum": (self.weight_P[pairs] * outputs["pair_loss"]).sum()}


class GroupDPOTask(Task):
    """A task on pairs with "pair_loss" and "margin" among its outputs, its loss weighted by group.

    Metrics: the task's own, unweighted; "{loss,accuracy}/domain/<name>" and "worst/domain_accuracy"; for each group
    "group/<g>/{mass,loss}" and, of a step, the "group/<g>/weight" that it used.
    """

    def __init__(self, session: Session, tokenizer: PreTrainedTokenizerBase, task: Task, pairs: Pairs) -> None:
        self._task, self._pairs, self._settings = task, pairs, session.config.dpo
        self.guess = task.guess
        self.unit, self.train_size, self.held_out_size = task.unit, task.train_size, task.held_out_size
        self._domains = sorted({*pairs.domain_of(), *pairs.domain_of(held_out=True)})
        self._groups = sorted(set(pairs.domain_of()))
        self._classifier: tuple[Engine, str] | None = None
        if self._settings.groups_from == "classifier":
            engine, trained_with = _load_classifier(session, tokenizer)
            self._classifier = engine, trained_with.group_input
            self._groups = [str(group) for group in range(trained_with.groups)]
        # What pair i is, beside its tokens: 1 for its domain, then p_ig.
        self._columns = [f"domain {name}" for name in self._domains] + [f"group {name}" for name in self._groups]
        self.outputs = (*task.outputs, *self._columns)
        self._weight_M: list[float] = []

    def prepare(self, session: Session, model: Engine) -> None:
        """Find the groups of the pairs. A new run begins with alpha = pi, where the loss is the task's own."""
        self._task.prepare(session, model)
        self._values = {part: self._values_of(session, part).to(session.layout.device) for part in (False, True)}
        self._classifier = None
        torch.cuda.empty_cache()  # training asks for memory in other sizes
        share_M = self._values[False][:, len(self._domains) :].cpu().double().mean(dim=0)
        self._share_M: list[float] = (share_M / share_M.sum()).tolist()
        self._weight_M = self._weight_M or self._share_M
        for name, share in zip(self._groups, self._share_M, strict=True):
            if not _SMALL <= share < 1:
                session.warn(f"Group {name} holds {share:.1%} of the training pairs: weights by group do little here.")

    def batch(self, rows: Sequence[int], *, held_out: bool = False) -> tuple[Sequences, LastStage]:
        sequences, unweighted = self._task.batch(rows, held_out=held_out)
        values_PK = self._values[held_out][list(rows)]
        weight_P = pair_weights(self._weight_M, self._share_M, values_PK[:, len(self._domains) :])
        return sequences, WeightedLoss(unweighted, weight_P, values_PK, self._columns)

    def normaliser(self, batch: Sequences) -> float:
        return self._task.normaliser(batch)

    def metrics(self, outputs: dict[str, Tensor], normaliser: float) -> dict[str, float]:
        metrics, loss_P = self._task.metrics(outputs, normaliser), outputs["pair_loss"]
        accuracy = self._means(outputs, "domain", 0.5 * (outputs["margin"].sign() + 1.0))  # a tie is chance
        if len(accuracy) > 1:
            metrics["worst/domain_accuracy"] = min(accuracy.values())
        metrics |= {f"accuracy/domain/{name}": value for name, value in accuracy.items()}
        metrics |= {f"loss/domain/{name}": value for name, value in self._means(outputs, "domain", loss_P).items()}
        metrics |= {f"group/{name}/loss": value for name, value in self._means(outputs, "group", loss_P).items()}
        return metrics | {f"group/{name}/mass": float(outputs[f"group {name}"].mean()) for name in self._groups}

    def after_step(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        probs_PM = torch.stack([outputs[f"group {name}"] for name in self._groups], dim=1)
        used_M = self._weight_M
        self._weight_M = next_weights(used_M, outputs["pair_loss"], probs_PM, self._settings.group_step)
        return {f"group/{name}/weight": weight for name, weight in zip(self._groups, used_M, strict=True)}

    def state(self) -> dict[str, Any]:
        return {"group_weights": dict(zip(self._groups, self._weight_M, strict=True))}

    def restore(self, state: dict[str, Any]) -> None:
        saved = state.get("group_weights", {})
        if list(saved) != self._groups:
            raise CheckpointError(
                f"The checkpoint holds weights of {', '.join(saved) or 'no groups'}, but the pairs have the groups "
                f"{', '.join(self._groups)}: keep dpo.groups_from and the data, or use another run.name."
            )
        self._weight_M = list(saved.values())

    def describe(self) -> list[tuple[str, str]]:
        groups, settings = ", ".join(self._groups), self._settings
        source = f"inferred by {settings.group_model}" if settings.group_model else "known domains"
        return [*self._task.describe(), ("groups", f"{groups} ({source}), step {settings.group_step:g}")]

    def _means(self, outputs: dict[str, Tensor], kind: str, value_P: Tensor) -> dict[str, float]:
        """Mean of `value_P` [P] in each domain or group that has a pair."""
        columns = {name.split(" ", 1)[1]: outputs[name].double() for name in self._columns if name.startswith(kind)}
        return {name: float((p_P * value_P).sum() / p_P.sum()) for name, p_P in columns.items() if bool(p_P.sum() > 0)}

    def _values_of(self, session: Session, held_out: bool) -> Tensor:
        """float32 [pairs, domains + M]: 1 for the domain, then p_ig; a domain without training pairs is in no group."""
        domain_PD = domain_probabilities(self._pairs.domain_of(held_out=held_out), self._domains)
        if self._classifier is None:
            return torch.cat([domain_PD, domain_PD[:, [self._domains.index(name) for name in self._groups]]], dim=1)
        found, batch = [domain_PD.new_zeros(0, len(self._groups))], session.config.train.batch_size
        # Of all pairs, so that pi does not depend on the length of the run.
        for start in range(0, len(domain_PD), batch):
            pairs = self._pairs.sequences(range(start, min(start + batch, len(domain_PD))), held_out=held_out)
            chosen = pairs.rows(torch.arange(0, len(pairs), self.unit))
            columns = forward(session, self._classifier[0], chosen, self._infer, self._groups, unit=1)
            found.append(torch.stack(list(columns.values()), dim=1).cpu())
        return torch.cat([domain_PD, torch.cat(found)], dim=1)

    def _infer(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        """p_phi(g | prompt, chosen response), a column for each group."""
        assert self._classifier is not None
        probs_BM = group_probabilities(model, hidden_LBH, part, reads=self._classifier[1], detach=True)
        return dict(zip(self._groups, probs_BM.unbind(dim=1), strict=True))


def _load_classifier(session: Session, tokenizer: PreTrainedTokenizerBase) -> tuple[Engine, AlgorithmConfig]:
    """The group classifier of the run `dpo.group_model`, and the settings that it was trained with."""
    config, name = session.config, session.config.dpo.group_model
    source = session.source(name, "dpo.group_model")
    found = classifier_of(source)
    if found is None:
        raise ConfigError(
            f"dpo.group_model={name} has no group classifier: give the folder of a run of train_gi_ppo.py that infers "
            "its groups."
        )
    source, settings = found
    if not same_tokens(session.tokenizer(source, config.model.tokenizer), tokenizer):
        raise ConfigError(f"dpo.group_model={name} has another tokenizer than the policy: it cannot read the pairs.")
    check_fits(source, session.layout.of_frozen, sequence_length=config.data.sequence_length)
    head = {"groups": settings.groups, "group_head": settings.group_head}
    return session.load(source, "critic", key="dpo.group_model", **head), settings  # type: ignore[arg-type]
