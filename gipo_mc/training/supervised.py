"""The loop that SFT and the reward model share: batch -> forward and backward -> step -> log, evaluate, checkpoint.

What differs between them is a `Task`: which sequences a step takes, the loss of a micro-batch, and what is counted.
Losses are sums divided by what the whole batch holds (tokens or pairs), so no split of the batch changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config
from gipo_mc.data.batches import batch_indices
from gipo_mc.errors import NumericsError
from gipo_mc.models.llama import HeadKind
from gipo_mc.parallel.engine import Engine, Outputs
from gipo_mc.training.batching import MicroBatch, micro_batches, run_backward, run_forward
from gipo_mc.training.session import Session, open_session
from gipo_mc.training.timing import Phases
from gipo_mc.types import Sequences

#: Lines on the console in a whole run, about.
LINES = 50
#: Skipped steps in a row after which a run stops.
PATIENCE = 10


class Task(Protocol):
    """What is learned. Made by `set_up`, once the tokenizer is known."""

    @property
    def unit(self) -> int:
        """Rows of a batch that belong together: 1 for demonstrations, 2 for pairs."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the last stage's outputs, one number a unit."""
        ...

    @property
    def train_size(self) -> int:
        """Units of training data."""
        ...

    @property
    def held_out_size(self) -> int:
        """Units of held-out data; 0: none."""
        ...

    def batch(self, rows: Sequence[int], *, held_out: bool = False) -> Sequences:
        """Sequences of the given rows of the training (or held-out) data, `unit` for each."""
        ...

    def last_stage(self, model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        """Sums of a micro-batch: "loss_sum", a scalar with gradient, and `outputs`, [units] each."""
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


#: Loads the data of a task with a tokenizer.
TaskMaker = Callable[[Config, PreTrainedTokenizerBase], Task]


def train_supervised(config: Config, command: str, head: HeadKind, make_task: TaskMaker) -> None:
    """Train `model.policy` with `head` on a task, from the start or from the run folder's last checkpoint.

    `run.iterations` optimizer steps of `train.batch_size` units with the `policy` section's optimizer.
    """
    with open_session(config, command) as session:
        source = session.source(config.model.policy, "model.policy")
        tokenizer = session.tokenizer(source, config.model.tokenizer)
        source.shape.check(session.layout.tensor, session.layout.pipeline, sequence_length=config.data.sequence_length)
        task = make_task(config, tokenizer)
        engine = session.load(source, head, config.policy, total_steps=config.run.iterations)
        session.header([("model", source.name), *task.describe()])
        session.resume({"model": engine})
        skipped = 0
        for step in range(session.start, config.run.iterations):
            metrics = _step(session, engine, task, step)
            skipped = skipped + 1 if metrics["skipped"] else 0
            if skipped >= PATIENCE:
                raise NumericsError(
                    f"The gradients of the last {PATIENCE} steps were not finite: lower policy.lr, or check the data."
                )
            if session.checkpoint_due():
                session.save({"model": engine}, {"model": tokenizer}, {})
        session.console.done(
            [("metrics", str(session.folder.metrics)), ("checkpoints", str(session.folder.checkpoints))]
        )


def _step(session: Session, engine: Engine, task: Task, step: int) -> dict[str, float]:
    config = session.config
    phases = Phases(session.layout)
    rows = batch_indices(config.run.seed, "train", step, config.train.batch_size, task.train_size)
    batch = _to_device(task.batch(rows.tolist()), session.layout.device)
    normaliser = task.normaliser(batch)

    def last_stage(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> Outputs:
        sums = task.last_stage(model, hidden_LBH, part)
        return sums | {"loss": sums["loss_sum"] / normaliser}

    with phases("update"):
        outputs = run_backward(
            engine, _parts(session, task, batch), len(batch) // task.unit, last_stage, dict.fromkeys(task.outputs, 0)
        )
        result = engine.step()
    metrics = task.metrics(outputs, normaliser)
    metrics |= {"lr": result.lr, "skipped": float(not result.updated)}
    if result.updated:
        metrics["grad_norm"] = result.grad_norm
    if task.held_out_size and config.eval.prompts and session.evaluation_due(step + 1):
        with phases("evaluation"):
            held_out = evaluate(session, engine, task)
        metrics |= {f"eval/{name}": value for name, value in held_out.items()}
    metrics |= phases.metrics()
    metrics["throughput/tokens_per_second"] = float(batch.response_length_B.sum()) / metrics["time/update"]
    every = max(1, config.run.iterations // LINES)
    session.log(step + 1, metrics, show=step == 0 or (step + 1) % every == 0 or "eval/loss" in metrics)
    return metrics


def evaluate(session: Session, engine: Engine, task: Task) -> dict[str, float]:
    """Metrics over the first `eval.prompts` held-out units, spread evenly over the held-out data."""
    config = session.config
    count = min(config.eval.prompts, task.held_out_size)
    rows = np.linspace(0, task.held_out_size - 1, count).round().astype(int)
    outputs: dict[str, list[Tensor]] = {name: [] for name in task.outputs}
    normaliser = 0.0
    size = max(config.train.batch_size, session.layout.data)
    for part in np.array_split(rows, max(1, count // size)):
        batch = _to_device(task.batch(part.tolist(), held_out=True), session.layout.device)
        normaliser += task.normaliser(batch)
        found = run_forward(
            engine,
            _parts(session, task, batch),
            len(batch) // task.unit,
            task.last_stage,
            dict.fromkeys(task.outputs, 0),
        )
        for name in task.outputs:
            outputs[name].append(found[name])
    return task.metrics({name: torch.cat(values) for name, values in outputs.items()}, normaliser)


def _parts(session: Session, task: Task, batch: Sequences) -> list[MicroBatch]:
    return micro_batches(batch, session.config.parallel.micro_batch_size, session.layout, unit=task.unit)


def _to_device(batch: Sequences, device: torch.device) -> Sequences:
    return Sequences(batch.tokens_BL.to(device), batch.prompt_length_B.to(device), batch.response_length_B.to(device))
