"""A run between its start and its end: ranks, run folder, console, log files, models and checkpoints.

Everything a training loop shares with every other one; the loops themselves only say what happens in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config, OptimizerConfig, changes, save_config
from gipo_mc.data.tokenizer import check_vocabulary, load_tokenizer, same_tokens
from gipo_mc.errors import EXIT_INTERRUPTED, CheckpointError, ConfigError, GipoError
from gipo_mc.models.stage import HeadKind, StageModel
from gipo_mc.ops import describe_build
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.news import first_error, record_error
from gipo_mc.parallel.runtime import lost_peer
from gipo_mc.run import checkpoint
from gipo_mc.run.console import Console
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.metrics import MetricsLogger
from gipo_mc.run.model_sources import ModelSource, load_model, resolve


@dataclass
class Session:
    """One run on this rank. Made by `open_session`.

    logger: on the main rank only; `log` and friends do nothing elsewhere.
    start: iterations that the checkpoint this run continues from had finished.
    """

    config: Config
    layout: Layout
    folder: RunFolder
    console: Console
    logger: MetricsLogger | None
    dtype: torch.dtype
    start: int = 0
    step: int = 0
    #: Frozen models by name -> what they are made of: a run continues with the same ones or not at all.
    frozen: dict[str, str] = field(default_factory=dict)
    _resume_from: Path | None = None
    _resume_warnings: list[str] = field(default_factory=list)
    _sources: dict[str, ModelSource] = field(default_factory=dict)

    # ------------------------------------------------------------------ models
    def source(self, name: str, key: str) -> ModelSource:
        """The source that configuration key `key` names; found (and downloaded) by one rank, then known to all."""
        if name in self._sources:
            return self._sources[name]  # found and verified before
        found: ModelSource = on_main(lambda: resolve(name, key))
        if not found.folder.exists():
            found = resolve(name, key)  # a hub name, on a node that does not share the first one's cache
        found.shape.check(self.layout.tensor, self.layout.pipeline)
        self._sources[name] = found
        return found

    def tokenizer(self, source: ModelSource, override: str = "") -> PreTrainedTokenizerBase:
        """The tokenizer of a model, checked against its vocabulary."""
        tokenizer = load_tokenizer(override or str(source.folder))
        own = source.folder / "tokenizer.json"
        if override and own.is_file() and not same_tokens(tokenizer, load_tokenizer(str(source.folder))):
            self.warn(f"{source.name} has a tokenizer of its own, which gives the ids of {override} other meanings.")
        if warning := check_vocabulary(tokenizer, source.shape.vocab_size, source.name):
            self.warn(warning)
        return tokenizer

    def load(
        self,
        source: ModelSource,
        head: HeadKind,
        optimizer: OptimizerConfig | None = None,
        *,
        total_steps: int = 1,
        groups: int = 0,
        group_head: Literal["mlp", "linear"] | None = None,
    ) -> Engine:
        """Engine of a model, trainable where an optimizer is given. group_head: None: algorithm.group_head."""
        algorithm = self.config.algorithm
        model = load_model(
            source,
            self.layout,
            head=head,
            dtype=self.dtype,
            trainable=optimizer is not None,
            seed=self.config.run.seed,
            groups=groups,
            group_head=group_head or algorithm.group_head,
            empty=optimizer is not None and self._resume_from is not None,  # `resume` is going to fill it
        )
        if optimizer is None:
            self.frozen[f"{source.name} ({head})"] = on_main(source.fingerprint)
        return self.engine(model, optimizer, total_steps=total_steps)

    def engine(self, model: StageModel, optimizer: OptimizerConfig | None, *, total_steps: int = 1) -> Engine:
        """Engine of a model that exists already."""
        return Engine(
            model, self.layout, optimizer, total_steps=total_steps, distributed_optimizer=self.shards_optimizer
        )

    @property
    def shards_optimizer(self) -> bool:
        """Is optimizer state sharded over data-parallel ranks (parallel.distributed_optimizer)?"""
        choice = self.config.parallel.distributed_optimizer
        return choice == "on" or (choice == "auto" and self.layout.device.type == "cuda")

    # ------------------------------------------------------------- checkpoints
    def save(
        self, engines: Mapping[str, Engine], tokenizers: Mapping[str, PreTrainedTokenizerBase], state: dict[str, Any]
    ) -> None:
        """Checkpoint after `self.step` iterations. state: what else the next iteration depends on, JSON-able."""
        sharded: dict[str, Any] = {}
        for role, engine in engines.items():
            sharded |= engine.sharded_state(role)

        def extras(path: Path) -> None:
            for role, engine in engines.items():
                config = engine.model.shape.to_hf(architectures=["LlamaForCausalLM"])  # type: ignore[union-attr,operator]
                config.save_pretrained(path / role)
                tokenizers[role].save_pretrained(path / role)

        if self.logger:
            self.logger.flush()
        state = {
            **state,
            "heads": {role: engine.model.head for role, engine in engines.items()},
            "settings": self._fixed_settings(),
            "frozen": self.frozen,
        }
        checkpoint.save(self.folder.checkpoints, self.step, sharded, state, self.config.checkpoint.keep, extras)

    def checkpoint_due(self) -> bool:
        """Is a checkpoint to be written after the iteration that just ended?"""
        return self._due(self.step, self.config.checkpoint.every)

    def evaluation_due(self, step: int) -> bool:
        """Is the model to be evaluated in the iteration that brings the number of finished ones to `step`?"""
        return self._due(step, self.config.eval.every)

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.run.iterations or (every > 0 and step % every == 0)

    def resume(self, engines: Mapping[str, Engine]) -> dict[str, Any] | None:
        """Continue from the run folder's newest usable checkpoint: its state, or None for a fresh run."""
        for warning in self._resume_warnings:
            self.warn(warning)
        path = self._resume_from
        if path is None:
            return None
        state = checkpoint.load_state(path)
        self._check_unchanged(path, state)
        sharded: dict[str, Any] = {}
        for role, engine in engines.items():
            sharded |= engine.sharded_state(role, is_loading=True)
        loaded = checkpoint.load_shards(path, sharded)
        for role, engine in engines.items():
            engine.load_sharded_state(role, loaded)
        self.start = self.step = state["step"]
        if self.start >= self.config.run.iterations:
            self.warn(f"Nothing to do: the run has finished {self.start} iterations; raise run.iterations to go on.")
        return state

    def _fixed_settings(self) -> dict[str, Any]:
        """Options that decide which data a step takes and what is trained: a run keeps them from start to end."""
        config = self.config
        return {
            "run.seed": config.run.seed,
            "algorithm.name": config.algorithm.name,
            "algorithm.groups": config.algorithm.group_count,
            "algorithm.groups_from": config.algorithm.groups_from,
            "algorithm.group_trunk": config.algorithm.group_trunk,
            "algorithm.group_head": config.algorithm.group_head,
            "algorithm.advantage": config.algorithm.advantage,
            "rollout.batch_size": config.rollout.batch_size,
            "rollout.samples_per_prompt": config.rollout.samples_per_prompt,
            "train.batch_size": config.train.batch_size,
            "dpo.loss": config.dpo.loss,
            "parallel.distributed_optimizer": "on" if self.shards_optimizer else "off",
        }

    def _check_unchanged(self, path: Path, state: dict[str, Any]) -> None:
        now = self._fixed_settings()
        changed = [f"{key} was {old}, now {now[key]}" for key, old in state["settings"].items() if now[key] != old]
        changed += [
            f"{name} is no longer what it was ({self.frozen.get(name, 'absent')})"
            for name, old in state["frozen"].items()
            if self.frozen.get(name) != old
        ]
        if changed:
            raise ConfigError(
                f"The run cannot continue from {path}, because something changed that it depends on:\n"
                + "\n".join(f"  - {line}" for line in changed)
                + "\nPut it back (a checkpoint may be named by its own folder), or use another run.name."
            )

    # ---------------------------------------------------------------- showing
    def header(self, lines: Sequence[tuple[str, str]]) -> None:
        """What runs, and where; also kept for the report."""
        algorithm = [("resumed from", str(self._resume_from))] if self._resume_from else []
        rows = [
            *((label, part) for label, text in lines for part in text.splitlines()),
            ("layout", self.layout.describe()),
            ("numbers", f"{str(self.dtype).removeprefix('torch.')}, ops: {describe_build()}"),
            ("run folder", str(self.folder.path)),
            *algorithm,
        ]
        self.console.header(rows)
        if self.logger:
            self.folder.write_about(rows)

    def log(self, step: int, metrics: Mapping[str, float], *, show: bool = True) -> None:
        """Metrics of finished iteration `step` (1, 2, ...), or of the state before the first one (0).

        show: print its line, too; a supervised run has too many steps to read them all.
        """
        self.step = step
        if self.logger:
            self.logger.log(step, metrics)
            self.folder.write_status("running", step=step)
        if show:
            self.console.iteration(step, metrics)

    def distribution(self, name: str, values_B: Tensor, domains: Sequence[str]) -> None:
        """The distribution of `values_B` [B] in this iteration, whole and by domain."""
        if self.logger:
            self.logger.histogram(self.step, name, values_B)
            for domain in sorted(set(domains)):
                rows = [row for row, own in enumerate(domains) if own == domain]
                self.logger.histogram(self.step, f"{name}/domain/{domain}", values_B[rows])

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """A progress bar over `total` units; yields f(done, total), to be called as units are done."""
        with self.console.progress(description, total) as task:
            shown = 0

            def tell(done: int, of: int) -> None:
                # Reported by one replica, in units of its own share: scaled to the whole.
                nonlocal shown
                now = done * total // max(of, 1)
                task.advance(now - shown)
                shown = now

            yield tell

    def warn(self, text: str) -> None:
        """A warning on the console and in the report."""
        if self.logger:
            self.logger.warn(self.step, text)
        self.console.warn(text)


@contextmanager
def open_session(config: Config, command: str) -> Iterator[Session]:
    """Join the ranks, take the run folder, write the resolved configuration, and leave a status behind whatever
    happens. Raises the errors of config, layout and folder on every rank."""
    layout = runtime.initialize(config.parallel, config.device)
    name = config.run.name or command
    path = Path(config.run.dir) / name
    folder = RunFolder(path, command)

    logger: MetricsLogger | None = None
    changed: list[str] = []

    def take() -> None:
        nonlocal folder, logger
        folder = RunFolder.open(config.run.dir, name, command, config.run.resume)
        changed.extend(changes(folder.config, config) if folder.config.exists() else [])
        save_config(config, folder.config)
        logger = MetricsLogger(folder)

    on_main(take)
    dtype = runtime.resolve_dtype(config.dtype, layout.device)
    console = Console(name, config.run.iterations, enabled=layout.is_main)
    session = Session(config, layout, folder, console, logger, dtype)
    try:
        newest, reasons = on_main(lambda: checkpoint.latest(folder.checkpoints))
        if newest is None and reasons:
            raise CheckpointError(
                "No checkpoint of this run can be used:\n" + "\n".join(f"  - {reason}" for reason in reasons)
            )
        session._resume_from, session._resume_warnings = newest, [f"Passed over a checkpoint: {r}" for r in reasons]
        if newest and changed:
            session._resume_warnings.append(f"The run continues with changed options: {'; '.join(changed)}")
        if logger:  # before anything is logged, warnings included
            logger.truncate_after(checkpoint.load_state(newest)["step"] if newest else -1)
        _status(session, "running")
        yield session
        _status(session, "done", 0)
    except GipoError as error:
        record_error(error.exit_code, str(error))
        _status(session, "failed", error.exit_code, str(error))
        raise
    except KeyboardInterrupt:
        _status(session, "failed", EXIT_INTERRUPTED, "interrupted by the user")
        raise
    except BaseException as error:
        code, message = 1, f"{type(error).__name__}: {error}"
        lost = lost_peer(error) if isinstance(error, RuntimeError) else None
        if lost:
            # What another rank failed of says more than that it is gone.
            cause = first_error()
            code, message = (cause.exit_code, cause.message) if cause else (lost.exit_code, str(lost))
        else:
            record_error(code, message)
        _status(session, "failed", code, message)
        raise
    finally:
        if logger:
            logger.close()
        folder.close()


def _status(session: Session, state: Any, exit_code: int | None = None, message: str = "") -> None:
    if session.logger:
        session.folder.write_status(state, exit_code, message, session.step)
