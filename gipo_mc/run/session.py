"""A run between its start and its end: ranks, run folder, console, log files, models and checkpoints.

Everything a training loop shares with every other one; the loops themselves only say what happens in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config, OptimizerConfig, as_yaml, read_by, values
from gipo_mc.data.sets import DataSet
from gipo_mc.data.tokenizer import check_vocabulary, load_tokenizer, same_tokens, tokens_hash
from gipo_mc.errors import DataError
from gipo_mc.models.execution import Execution
from gipo_mc.models.stage import HeadKind, StageModel
from gipo_mc.ops import describe_build
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import any_rank, on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron import transformer_engine
from gipo_mc.parallel.megatron.overlap import sharing
from gipo_mc.parallel.memory.offload import Offloader
from gipo_mc.parallel.nodes.shared_folder import check_shared
from gipo_mc.run import checkpoint
from gipo_mc.run.console import Console
from gipo_mc.run.folder import RunFolder, State, without_a_word
from gipo_mc.run.jsonl import write_atomically
from gipo_mc.run.metrics import MetricsLogger
from gipo_mc.run.model_files import save_model_files
from gipo_mc.run.model_sources import FROZEN, ModelSource, load_model, read_as_saved, resolve
from gipo_mc.run.outcome import outcome_kept, refusal_noted
from gipo_mc.run.resume import Fixed, changed_options, check_shape, fixed_settings, names_of, shape_hash
from gipo_mc.run.saves.series import Saves
from gipo_mc.run.watch import Watch, listening


@dataclass
class Session:
    """One run on this rank. Made by `open_session`.

    logger: on the main rank only; `log` and friends do nothing elsewhere.
    start: iterations that the checkpoint this run continues from had finished.
    step: iterations finished so far, for run_status.json and warnings.
    fixed: what the run must keep to be continued.
    """

    config: Config
    layout: Layout
    folder: RunFolder
    console: Console
    logger: MetricsLogger | None
    dtype: torch.dtype
    start: int = 0
    step: int = 0
    fixed: Fixed = field(init=False)
    watch: Watch = field(init=False)
    saves: Saves = field(init=False)
    #: Moves models that are loaded; by itself none.
    offloader: Offloader = field(default_factory=Offloader)
    _resume_from: Path | None = None
    _passed_over: list[str] = field(default_factory=list)
    _sources: dict[str, ModelSource] = field(default_factory=dict)
    _about: list[tuple[str, str]] = field(default_factory=list)
    #: Warnings of a start that may still be refused: it leaves the files of the run as they are then.
    _held: list[str] | None = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = Watch(self.folder, self.write_status, self.config.run.grace_seconds)
        self.saves = Saves(self.folder, self.config.checkpoint, self.watch.saving, self.console.share)
        shards = sharing(self.config.parallel, self.layout.device)["distributed_optimizer"]
        self.fixed = Fixed(fixed_settings(self.config, self.folder.command, self.dtype, distributed_optimizer=shards))

    # ------------------------------------------------------------------ models
    def source(self, name: str, key: str) -> ModelSource:
        """The source that configuration key `key` names; found (and downloaded) by one rank, then known to all."""
        if name in self._sources:
            return self._sources[name]  # found and verified before
        found = resolve(name, key, together=True, warn=self.warn)
        if not found.folder.exists():
            found = resolve(name, key)  # a hub name, on a node that does not share the first one's cache
        if key not in FROZEN:  # the others are checked where they are loaded, in a layout that may be another
            found.shape.check(*self.layout.model_sizes)
        self._sources[name] = found
        return found

    def tokenizer(self, source: ModelSource, override: str = "") -> PreTrainedTokenizerBase:
        """The tokenizer of a model, checked against its vocabulary."""
        named, template = override or str(source.folder), self.config.data.chat_template
        tokenizer = load_tokenizer(named, self.warn, chat_template=template)
        own = source.folder / "tokenizer.json"
        if (
            override
            and own.is_file()
            and not same_tokens(tokenizer, load_tokenizer(str(source.folder), chat_template=template))
        ):
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
        key: str = "",
    ) -> Engine:
        """Engine of a model, trainable where an optimizer is given.

        group_head: kind of the classifier's head; None: algorithm.group_head.
        key: the option that names a frozen model; its weights are to be the same when the run continues.
        """
        algorithm = self.config.algorithm
        if sentence := transformer_engine.warning(self.layout.device):
            self.warn(sentence)
        model = load_model(
            source,
            self.layout if optimizer is not None else self.layout.of_frozen,
            head=head,
            dtype=self.dtype,
            trainable=optimizer is not None,
            seed=self.config.run.seed,
            groups=groups,
            group_head=group_head or algorithm.group_head,
            empty=optimizer is not None and self._resume_from is not None,  # `resume` is going to fill it
            execution=Execution.of(self.config),
        )
        if optimizer is None:
            self.fixed.frozen[key or source.name] = on_main(source.fingerprint)
            self.fixed.earlier[key or source.name] = source.earlier_fingerprint
            self.fixed.frozen[f"{key or source.name} (config.json)"] = shape_hash(source.shape)
        engine = self.engine(model, optimizer, total_steps=total_steps)
        engine.offload(self.offloader, f"{source.name} ({head})")
        return engine

    def engine(self, model: StageModel, optimizer: OptimizerConfig | None, *, total_steps: int = 1) -> Engine:
        """Engine of a model that exists already."""
        ways = sharing(self.config.parallel, self.layout.device)
        return Engine(model, model.layout, optimizer, total_steps=total_steps, **ways)

    # -------------------------------------------------------------------- data
    def trains_on(
        self, key: str, rows: DataSet[Any], tokenizer: PreTrainedTokenizerBase, *, named_domains: bool = False
    ) -> None:
        """Remember the training data that option `key` names, and who reads it: a run continues with the same rows.

        named_domains: the names of the domains matter, too (a reward function is told them). Raises DataError where the
        ranks have read different rows.
        """
        read = (tokens_hash(tokenizer), rows.sources(named_domains=named_domains))
        main = on_main(lambda: read)
        if any_rank(main != read):
            raise DataError(
                f"The ranks have read different rows of {key}, or with different tokenizers: a file was replaced while "
                "the job started, or its machines have different copies. Give all the same files and start again."
            )
        self.fixed.frozen["model.tokenizer"], self.fixed.data[key] = main
        for text in rows.warnings():
            self.warn(text)

    # ------------------------------------------------------------- checkpoints
    def save(
        self,
        step: int,
        engines: Mapping[str, Engine],
        tokenizers: Mapping[str, PreTrainedTokenizerBase],
        state: dict[str, Any],
    ) -> None:
        """Checkpoint after `step` iterations. state: what else the next iteration depends on, JSON-able."""
        self.saves.finish()  # before copies are made: the host need not hold those of two checkpoints
        with self.watch.saving():
            sharded = {key: part for role, engine in engines.items() for key, part in engine.snapshot(role).items()}

        def extras(path: Path) -> None:
            for role, engine in engines.items():
                save_model_files(engine.model, tokenizers[role], path / role)  # type: ignore[arg-type]

        if self.logger:
            self.logger.flush()
        heads = {role: engine.model.head for role, engine in engines.items()}
        self.saves.save(step, sharded, {**state, "heads": heads, **self.fixed.stored()}, extras)
        if step == self.config.run.iterations:
            self.saves.finish()  # before the run is said to be done

    def checkpoint_due(self, step: int) -> bool:
        """Is a checkpoint to be written after `step` iterations?"""
        return self._due(step, self.config.checkpoint.every)

    def evaluation_due(self, step: int) -> bool:
        """Is the model to be evaluated in the iteration that brings the number of finished ones to `step`?"""
        return self._due(step, self.config.eval.every)

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.run.iterations or (every > 0 and step % every == 0)

    def stop_point(self, step: int, save: Callable[[], None]) -> None:
        """End here if a signal asked any rank to. All ranks come by, where their state is that after `step` iterations.

        save: writes the checkpoint of `step`; called unless there is one. Raises Requeue.
        """
        self.saves.look()
        if not any_rank(bool(self.watch.asked)):
            return
        if step > self.start and not self.checkpoint_due(step):
            save()
        self.saves.finish()
        self.watch.stop()

    def resume(self, engines: Mapping[str, Engine]) -> dict[str, Any] | None:
        """Continue from the run folder's newest usable checkpoint: its state, or None for a fresh run.

        Everything that the run depends on is loaded before. Raises ConfigError where something of it changed; the run
        folder then holds what it held before.
        """
        for reason in self._passed_over:
            self.warn(f"Passed over a checkpoint: {reason}")
        state = self._load_checkpoint(self._resume_from, engines) if self._resume_from else None
        self.saves.check_room(engines.values(), self.start, self.config.run.iterations, self.warn)
        if state is not None and self.start >= self.config.run.iterations:
            self.warn(f"Nothing to do: the run has finished {self.start} iterations; raise run.iterations to go on.")
        on_main(self._take_over)
        self.watch.begun = True
        return state

    def _load_checkpoint(self, path: Path, engines: Mapping[str, Engine]) -> dict[str, Any]:
        state = checkpoint.load_state(path)
        on_main(lambda: self.fixed.check(path, state, names_of(self.folder.config, self.config)))
        for role, engine in engines.items():
            check_shape(engine.model.shape, path / role)  # type: ignore[arg-type]
            read_as_saved(engine.model, path, role)  # type: ignore[arg-type]
            with engine.whole(changes=True):
                loaded = checkpoint.load_shards(path, engine.sharded_state(role, is_loading=True))
                engine.load_sharded_state(role, loaded)
        self.start = self.step = state["step"]
        return state

    def _take_over(self) -> None:
        """The files of the run are those of this start from here on: nothing refuses it any more. On rank 0."""
        assert self.logger is not None
        self.logger.truncate_after(self.start if self._resume_from else -1)
        held, self._held = self._held or [], None
        for text in held:
            self.logger.warn(self.step, text)
        if self._resume_from and (changed := changed_options(self.folder.config, self.config)):
            self.warn(changed)
        write_atomically(self.folder.config, as_yaml(self.config))
        self.folder.write_about(self._about)

    # ---------------------------------------------------------------- showing
    def write_status(self, state: State, exit_code: int | None = None, message: str = "") -> None:
        """run_status.json, with the iterations that have finished."""
        if self.layout.is_main:
            self.folder.write_status(state, exit_code, message, self.step)

    def header(self, lines: Sequence[tuple[str, str]]) -> None:
        """What runs, and where; also kept for the report."""
        self._about = [
            *((label, part) for label, text in lines for part in text.splitlines()),
            ("layout", self.layout.describe()),
            ("numbers", f"{str(self.dtype).removeprefix('torch.')}, ops: {describe_build(self.layout.device.type)}"),
            ("run folder", str(self.folder.path)),
            *([("resumed from", str(self._resume_from))] if self._resume_from else []),
        ]
        self.console.header(self._about)

    def log(self, step: int, metrics: Mapping[str, float], *, show: bool = True) -> None:
        """Metrics of finished iteration `step` (1, 2, ...), or of the state before the first one (0).

        show: print its line, too; a supervised run has too many steps to read them all.
        """
        self.step = step
        for text in self.logger.log(step, metrics) if self.logger else ():
            self.warn(text)
        self.write_status("running")
        if show:
            self.console.iteration(step, metrics)

    def distribution(self, step: int, name: str, values_B: Tensor, domains: Sequence[str]) -> None:
        """The distribution of `values_B` [B] in iteration `step`, whole and by domain."""
        if self.logger:
            self.logger.histograms(step, name, values_B, domains)

    def close_log(self) -> None:
        """Write what the logger still holds."""
        if self.logger:
            self.logger.close()

    def warn(self, text: str) -> None:
        """A warning on the console and in the report."""
        if self._held is not None:
            if text in self._held:
                return  # of a tokenizer that several models share
            self._held.append(text)
        elif self.logger:
            self.logger.warn(self.step, text)
        self.console.warn(text)


@contextmanager
def open_session(config: Config, command: str) -> Iterator[Session]:
    """Join the ranks, take the run folder, watch for signals and hangs, and leave a status behind whatever happens.
    Raises the errors of config, layout and folder on every rank."""
    name = config.run.name or command
    folder = RunFolder(Path(config.run.dir) / name, command)
    earlier: dict[str, Any] = {}

    def take() -> None:
        nonlocal folder, earlier
        folder = RunFolder.open(config.run.dir, name, command, config.run.resume)
        earlier = folder.read_status()
        folder.write_status("running", step=max(checkpoint.steps(folder.checkpoints), default=0))

    with listening(), ExitStack() as at_the_end:
        at_the_end.callback(lambda: folder.close())  # of the folder that `take` opens
        with refusal_noted(lambda: folder):
            same = values(config) | {"kernels": describe_build()}
            frozen = "parallel.frozen_tensor" in read_by(command)
            layout = runtime.initialize(config.parallel, config.device, same, frozen=frozen)
            on_main(take)
            check_shared(folder.path)
        dtype = runtime.resolve_dtype(config.dtype, layout.device)
        console = Console(name, config.run.iterations, enabled=layout.is_main)
        session = Session(config, layout, folder, console, None, dtype)
        at_the_end.callback(session.close_log)
        at_the_end.callback(lambda: session.offloader.close())
        at_the_end.callback(session.saves.abandon)
        with outcome_kept(session.watch):
            on_main(lambda: setattr(session, "logger", MetricsLogger(folder, config)))  # DataError: a damaged file
            session._resume_from, session._passed_over = session.saves.newest()
            if newest := session._resume_from:  # checked before models are loaded, which may take minutes
                state = checkpoint.load_state(newest)
                session.step = state["step"]
                session.fixed.check_settings(newest, state, names_of(folder.config, config))
            if earlier.get("state") == "running":
                session.warn(without_a_word(earlier))
            yield session
            session.saves.finish()
