"""The loop that SFT, reward model and DPO share: batch -> forward and backward -> step -> log, evaluate, checkpoint.

What differs between them is a `Task`: which sequences a step takes, the loss of a micro-batch, and what is counted.
Losses are sums divided by what the whole batch holds (tokens or pairs), so no split of the batch changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config
from gipo_mc.data.batches import batch_indices
from gipo_mc.errors import NumericsError
from gipo_mc.models.micro_batch import MicroBatch, micro_batches, run_backward, run_forward
from gipo_mc.models.stage import HeadKind
from gipo_mc.parallel.engine import Engine, LastStage, Outputs
from gipo_mc.parallel.step_checks import check_step, still_sentence
from gipo_mc.parallel.timing import Phases
from gipo_mc.run.session import Session, open_session
from gipo_mc.types import Sequences

#: Lines on the console in a whole run, about.
LINES = 50
#: Skipped steps in a row after which a run stops.
PATIENCE = 10
#: A run stops whose loss is over that of a model that knows nothing, and over `LOST` times the first, in so many steps
#: in a row that hold so many units: the model is lost, though its numbers are finite. A healthy one does not forget
#: more than it knew; but the loss of a few pairs is often that high by chance.
LOST, LOST_PATIENCE, LOST_UNITS = 2.0, 3, 256


class Task(Protocol):
    """What is learned. Made by a `TaskMaker`, once the tokenizer is known.

    unit: rows of a batch that belong together: 1 for demonstrations, 2 for pairs.
    outputs: names of the last stage's outputs, one number a unit.
    guess: the loss of a model that knows nothing.
    train_size, held_out_size: units of training and of held-out data; 0: none.
    """

    unit: int
    outputs: tuple[str, ...]
    guess: float
    train_size: int
    held_out_size: int

    def prepare(self, session: Session, model: Engine) -> None:
        """What is done once before the first step, when the model is loaded and `session.start` known."""

    def batch(self, rows: Sequence[int], *, held_out: bool = False) -> tuple[Sequences, LastStage]:
        """Sequences of the given rows of the training (or held-out) data, `unit` for each, and what the last stage
        makes of a micro-batch of them: the sum "loss_sum", a scalar with gradient, and `outputs`, [units] each."""
        ...

    def normaliser(self, batch: Sequences) -> float:
        """What the summed loss of a batch is divided by: response tokens or pairs."""
        ...

    def metrics(self, outputs: dict[str, Tensor], normaliser: float) -> dict[str, float]:
        """Metrics of a batch from the outputs of all its units."""
        ...

    def describe(self) -> list[tuple[str, str]]:
        """(label, value) lines on the data."""
        ...

    def after_step(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        """Adapt to the outputs of the whole batch of a step that changed the model; metrics of that."""
        return {}

    def state(self) -> dict[str, Any]:
        """What later steps need beside the model, JSON-able and equal on every rank: saved in checkpoints."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state in a checkpoint; called before `prepare`."""
        return None


@dataclass(frozen=True)
class ShareOfLoss:
    """A micro-batch's share of the batch's loss: its sum over the batch's tokens or pairs."""

    sums: LastStage
    normaliser: float

    def __call__(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        outputs = self.sums(model, hidden_LBH, part)
        return outputs | {"loss": outputs["loss_sum"] / self.normaliser}


#: Loads the data of a task with a tokenizer, and the frozen models it needs.
TaskMaker = Callable[[Session, PreTrainedTokenizerBase], Task]


def train_supervised(config: Config, command: str, head: HeadKind, make_task: TaskMaker) -> None:
    """Train `model.policy` with `head` on a task, from the start or from the run folder's last checkpoint.

    `run.iterations` optimizer steps of `train.batch_size` units with the `policy` section's optimizer.
    """
    with open_session(config, command) as session:
        with session.console.share("loading model and data"):
            source = session.source(config.model.policy, "model.policy")
            tokenizer = session.tokenizer(source, config.model.tokenizer)
            source.shape.check(*session.layout.model_sizes, sequence_length=config.data.sequence_length)
            task = make_task(session, tokenizer)
            engine = session.load(source, head, config.policy, total_steps=config.run.iterations)
            session.header([("model", source.name), *task.describe()])
            saved = session.resume({"model": engine})
        if saved is not None:
            task.restore(saved)
        task.prepare(session, engine)
        checks = StepChecks(source.name)

        def save(step: int) -> None:
            session.save(step, {"model": engine}, {"model": tokenizer}, task.state())

        left = range(session.start, config.run.iterations)
        # A log has the lines of some steps, which say how long the others will take.
        with session.console.share("training", logged=False) as tell:
            for step in left:
                session.stop_point(step, partial(save, step))
                checks.check(session, engine, task, step, _step(session, engine, task, step))
                if session.checkpoint_due(step + 1):
                    save(step + 1)
                tell(step + 1 - session.start, len(left))
        session.console.done(session.folder.results())


class StepChecks:
    """Notices numbers that no training survives. model: the name of what is trained."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._skipped = self._lost = 0
        self._first: float | None = None

    def check(self, session: Session, engine: Engine, task: Task, step: int, metrics: dict[str, float]) -> None:
        """After step `step` with these metrics. Raises NumericsError with the cause."""
        result, loss, lr = engine.first_step, metrics["loss"], session.config.policy.lr
        if step == session.start and (text := still_sentence(result, "policy")):
            if step == 0 and result is not None and result.grad_norm == 0.0:
                raise NumericsError(text)
            session.warn(text)
        if step == 0 and not math.isfinite(loss):
            raise NumericsError(
                f"The first loss, before any step, is {loss:g}: model.policy={self._model} holds weights that are not "
                "finite, or overflows in this dtype. Nothing was changed. Check the model with "
                "gipo-mc convert --check, or use dtype=float32."
            )
        self._skipped = self._skipped + 1 if metrics["skipped"] else 0
        if self._skipped >= PATIENCE:
            raise NumericsError(
                f"The gradients of the last {PATIENCE} steps were not finite: lower policy.lr, or check the data."
            )
        if metrics["skipped"] and step + 1 == session.config.run.iterations and not engine.updates():
            raise NumericsError(
                f"None of the {step + 1} steps of this run changed the model, because their gradients were not finite: "
                "it has learned nothing. Lower policy.lr, or check the data."
            )
        self._first = loss if self._first is None else self._first
        self._lost = self._lost + 1 if loss > max(task.guess, LOST * self._first) else 0
        if self._lost >= max(LOST_PATIENCE, LOST_UNITS / session.config.train.batch_size):
            raise NumericsError(
                f"The loss of the last {self._lost} steps ({loss:.3g} now) is over that of a model that knows "
                f"nothing ({task.guess:.3g}) and over {LOST:g} times the first ({self._first:.3g}): policy.lr={lr:g} "
                "is too large, and the model is lost. Lower it, and begin again."
            )


def _step(session: Session, engine: Engine, task: Task, step: int) -> dict[str, float]:
    config = session.config
    phases = Phases(session.layout)
    batch, sums_of = task.batch(training_rows(config, task.train_size, step).tolist())
    batch = _to_device(batch, session.layout.device)
    normaliser = task.normaliser(batch)
    loss = ShareOfLoss(sums_of, normaliser)
    with phases("update"):
        packed = micro_batches(batch, config.parallel, session.layout, unit=task.unit)
        phases.padding["update"] = packed.padding
        outputs = run_backward(engine, packed, loss, dict.fromkeys(task.outputs, 0))
        result = engine.step()
    check_step(result, "policy")
    metrics = task.metrics(outputs, normaliser)
    metrics |= {"lr": result.lr, "skipped": float(not result.updated)}
    if result.updated:
        metrics["grad_norm"] = result.grad_norm
        metrics |= task.after_step(outputs)
    if task.held_out_size and config.eval.prompts and session.evaluation_due(step + 1):
        with phases("evaluation"), session.console.share("evaluation") as tell:
            held_out = evaluate(session, engine, task, tell)
        metrics |= {f"eval/{name}": value for name, value in held_out.items()}
    metrics |= phases.metrics()
    metrics["throughput/tokens_per_second"] = float(batch.response_length_B.sum()) / metrics["time/update"]
    every = max(1, config.run.iterations // LINES)
    session.log(step + 1, metrics, show=step == 0 or (step + 1) % every == 0 or "eval/loss" in metrics)
    return metrics


def evaluate(session: Session, engine: Engine, task: Task, tell: Callable[[int, int], None]) -> dict[str, float]:
    """Metrics over the first `eval.prompts` held-out units, spread evenly over the held-out data. tell: how many
    batches are done, of how many."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in task.outputs}
    normaliser = 0.0
    batches = held_out_rows(session, task.held_out_size)
    for number, rows in enumerate(batches, start=1):
        batch, last_stage = task.batch(rows.tolist(), held_out=True)
        normaliser += task.normaliser(batch)
        found = forward(session, engine, batch, last_stage, task.outputs, unit=task.unit)
        for name in task.outputs:
            outputs[name].append(found[name])
        tell(number, len(batches))
    return task.metrics({name: torch.cat(values) for name, values in outputs.items()}, normaliser)


def training_rows(config: Config, size: int, step: int) -> np.ndarray:
    """int64 [train.batch_size], the units of training data, out of `size`, that `step` takes."""
    return batch_indices(config.run.seed, "train", step, config.train.batch_size, size)


def held_out_rows(session: Session, size: int) -> list[np.ndarray]:
    """The batches of an evaluation: int64 [units] each, out of `size`."""
    config = session.config
    count = min(config.eval.prompts, size)
    rows = np.linspace(0, size - 1, count).round().astype(int)
    return np.array_split(rows, max(1, count // max(config.train.batch_size, session.layout.data)))


def forward(
    session: Session, engine: Engine, batch: Sequences, last_stage: LastStage, outputs: Sequence[str], *, unit: int
) -> dict[str, Tensor]:
    """The last stage's `outputs`, [units] each, of a batch that is not trained on; on every rank."""
    batch = _to_device(batch, session.layout.device)
    packed = micro_batches(batch, session.config.parallel, engine.layout, unit=unit)
    return run_forward(engine, packed, last_stage, dict.fromkeys(outputs, 0))


def _to_device(batch: Sequences, device: torch.device) -> Sequences:
    return Sequences(batch.tokens_BL.to(device), batch.prompt_length_B.to(device), batch.response_length_B.to(device))
