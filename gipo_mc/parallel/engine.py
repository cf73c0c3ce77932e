"""One model on this rank's pipeline stage: forward and backward over micro-batches, and the optimizer step.

Megatron's schedules (1F1B for pipelines), DistributedDataParallel and optimizers do the work; this module gives them
one shape. A caller hands in micro-batches and a function of the last stage's hidden states; losses are normalised by
the caller over the whole mini-batch, so gradients are plain sums over micro-batches and data-parallel ranks, and the
result does not depend on how the mini-batch was split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from gipo_mc.config import OptimizerConfig
from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron.overlap import Overlap
from gipo_mc.parallel.memory.offload import Offloader, Resident
from gipo_mc.parallel.memory.snapshot import optimizer_tensors, to_host
from gipo_mc.parallel.optimizer import (
    initialize_moments,
    load_optimizer,
    make_scheduler,
    megatron_options,
    step_with_norm,
    steps_taken,
)
from gipo_mc.parallel.pipeline.interleaved import Filler, filled_up
from gipo_mc.parallel.pipeline.known_shapes import messages
from gipo_mc.parallel.saving.optimizer_shards import FORMAT, distributed_part, sharded_pieces
from gipo_mc.parallel.saving.size import saved_bytes
from gipo_mc.parallel.step_checks import StepProbe, StepResult


class ModelInput(Protocol):
    """What a micro-batch must have; everything else in it is between the caller and its last-stage function."""

    @property
    def tokens_BL(self) -> Tensor:
        """int64 [b, L] model input, L a multiple of `Layout.length_multiple`."""
        ...


#: Whole moments under the names of their parameters, as without a distributed optimizer: any layout can read them.
#: Megatron's own default is a format that its checkpoints no longer take.
_OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": FORMAT}

Outputs = dict[str, Tensor]
#: (model, hidden_LBH, micro-batch) -> outputs; the loss to back-propagate, if any, under the key "loss" (a scalar).
LastStage = Callable[[Any, Tensor, Any], Outputs]


class Engine:
    """A stage of a model, trainable when an optimizer configuration is given, frozen otherwise.

    model: the bare module of this stage (what generation and checkpoints use): a chunk of layers, or with an
        interleaved pipeline a module whose `chunks` are several.
    total_steps: optimizer steps of the whole run, for the learning-rate schedule.
    overlap: sum gradients and, with the distributed optimizer, gather weights while passes run. Then whoever reads
        weights of the model itself calls `gather_weights` before.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layout: Layout,
        optimizer: OptimizerConfig | None = None,
        *,
        total_steps: int = 1,
        distributed_optimizer: bool = False,
        overlap: bool = False,
    ) -> None:
        self.model = model
        self.layout = layout
        self.optimizer: MegatronOptimizer | None = None
        self.scheduler: OptimizerParamScheduler | None = None
        #: What the first optimizer step did, once there was one.
        self.first_step: StepResult | None = None
        #: What of this model may leave the device; None: nothing does.
        self.resident: Resident | None = None
        #: The chunks of this stage, as the schedules take them.
        self._wrapped: list[torch.nn.Module] = list(getattr(model, "chunks", [model]))
        #: Megatron's, of weights and gradients.
        self._buffers: list[Any] = []
        self._overlap: Overlap | None = None
        self._distributed = distributed_optimizer
        if optimizer is None:
            model.requires_grad_(False)
            return
        config: Any = model.config
        gather = overlap and distributed_optimizer
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=overlap,
            overlap_param_gather=gather,
            use_distributed_optimizer=distributed_optimizer,
        )
        self._wrap(ddp)
        # The caller's losses are sums that are already normalised: no division by a token count.
        config.calculate_per_token_loss = True
        config.finalize_model_grads_func = self._finalize
        options = megatron_options(optimizer, config.params_dtype, ddp)
        self.optimizer = get_megatron_optimizer(options, self._wrapped)
        initialize_moments(self.optimizer)
        self.scheduler = make_scheduler(self.optimizer, optimizer, total_steps)

    def _finalize(self, chunks: Any, num_tokens: Any, **kwargs: Any) -> None:
        if self._overlap is not None:
            self._overlap.finish_gradients()
        finalize_model_grads(chunks, None, **kwargs)

    def gather_weights(self) -> None:
        """Before anything but a pass reads the weights. A collective, where passes gather them (`overlap`)."""
        if self._overlap is not None:
            self._overlap.gather_weights()

    def offload(self, offloader: Offloader, name: str) -> None:
        """Let the offloader have this model, which leaves at once what may leave. name: in messages."""
        self.resident = offloader.take(
            name,
            self._gathered,
            lambda: (buffer.grad_data for buffer in self._buffers),
            lambda: optimizer_tensors(self.optimizer) if self.optimizer else (),
        )

    def _gathered(self) -> Iterator[torch.nn.Parameter]:
        """The weights as they leave: whole, where the passes would gather them."""
        self.gather_weights()
        return self.model.parameters()

    @contextmanager
    def whole(self, *, changes: bool = False) -> Iterator[None]:
        """Weights and optimizer state are on the device, for `sharded_state` and, with `changes`, for
        `load_sharded_state`."""
        if self.resident is None:
            yield
            return
        with self.resident.whole(changes=changes):
            yield

    def _wrap(self, ddp: DistributedDataParallelConfig) -> None:
        """Put each chunk into Megatron's DistributedDataParallel, and tell the schedules of it."""
        config: Any = self.model.config
        wrapped = [
            DistributedDataParallel(config, ddp, chunk, disable_bucketing=number > 0)
            for number, chunk in enumerate(self._wrapped)
        ]
        self._wrapped = [*wrapped]
        self._buffers = [buffer for chunk in wrapped for buffer in chunk.buffers]
        several = self.layout.virtual > 1
        config.no_sync_func = [chunk.no_sync for chunk in wrapped] if several else wrapped[0].no_sync
        if ddp.overlap_grad_reduce:
            self._overlap = Overlap(wrapped)
            # Stages behind the first sum their gradients in the bubble at the end.
            starts = [chunk.start_grad_sync for chunk in wrapped]
            config.grad_sync_func = starts if several else starts[0]
            self.model.gather_weights = self.gather_weights  # type: ignore[assignment]

    def forward(self, micro_batches: Sequence[ModelInput], last_stage: LastStage) -> list[Outputs]:
        """Outputs of each micro-batch on the last stage, an empty list on the others. No gradients."""
        if self.resident is not None:
            self.resident.score()
        self._set_training(False)
        with torch.no_grad():
            return self._run(micro_batches, last_stage, forward_only=True)

    def forward_backward(self, micro_batches: Sequence[ModelInput], last_stage: LastStage) -> list[Outputs]:
        """Like `forward`, and back-propagates each "loss"; gradients are then those of the sum over all ranks."""
        assert self.optimizer is not None, "a frozen model has no gradients"
        if self.resident is not None:
            self.resident.train()
        self._set_training(True)
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()  # type: ignore[operator]
        self.optimizer.zero_grad()
        return self._run(micro_batches, last_stage, forward_only=False)

    def _set_training(self, training: bool) -> None:
        if self.model.training != training:  # or it would walk through all modules for nothing
            self.model.train(training)

    def _run(self, micro_batches: Sequence[ModelInput], last_stage: LastStage, forward_only: bool) -> list[Outputs]:
        def forward_step(iterator: Any, model: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            micro_batch = next(iterator)
            return model(micro_batch.tokens_BL), partial(finish, micro_batch)

        def finish(micro_batch: ModelInput, hidden_LBH: Tensor, non_loss_data: bool = False) -> Any:
            if isinstance(micro_batch, Filler):
                outputs = {"loss": micro_batch.loss(hidden_LBH)}
            else:
                self.gather_weights()  # heads are not read through a module's forward alone
                outputs = last_stage(self.model, hidden_LBH, micro_batch)
            if non_loss_data:
                return outputs
            detached = {name: value.detach() for name, value in outputs.items()}
            return outputs["loss"], torch.zeros((), dtype=torch.int, device=hidden_LBH.device), detached

        # Micro-batches have shapes of their own (variable_seq_lengths), so the sizes named here only have to be
        # consistent.
        rows, length = micro_batches[0].tokens_BL.shape
        layout, fed, model = self.layout, filled_up(micro_batches, self.layout), cast(Any, self.model)
        with layout.active():
            between: dict[str, Any] = {}
            if layout.pipeline > 1 and layout.virtual == 1:
                between = messages(model.config, [model.passed_on(part.tokens_BL) for part in fed])
            schedule = get_forward_backward_func(layout.pipeline, layout.virtual if layout.virtual > 1 else None)
            outputs = schedule(
                forward_step_func=forward_step,
                data_iterator=[iter(fed) for _ in self._wrapped],
                model=self._wrapped,
                num_microbatches=len(fed),
                seq_length=length,
                micro_batch_size=rows,
                forward_only=forward_only,
                collect_non_loss_data=forward_only,
                **between,
            )
        return outputs[len(fed) - len(micro_batches) :]

    def step(self) -> StepResult:
        """Clip, check and apply the gradients of the last `forward_backward`, then advance the learning rate.

        A gradient norm that is not finite changes no parameter on any rank (the norm is global, so all ranks agree).
        """
        assert self.optimizer is not None and self.scheduler is not None, "a frozen model cannot step"
        if self.resident is not None:
            self.resident.step()
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        updated = math.isfinite(grad_norm)
        lr, change = self.lr, None
        if updated:
            probe = StepProbe(self.optimizer)
            step_with_norm(self.optimizer, grad_norm)
            if self._overlap is not None:
                self._overlap.weights_changed()
            change = probe.change(self.layout.device)
        self.scheduler.step(increment=1)
        result = StepResult(grad_norm, updated, lr, change)
        self.first_step = self.first_step or result
        return result

    def updates(self) -> int:
        """Optimizer steps that changed the model, those before a restart included; 0: it is the one that was loaded. A
        collective."""
        assert self.optimizer is not None, "a frozen model has no steps"
        taken = torch.tensor(steps_taken(self.optimizer), device=self.layout.device)
        return int(gather_in_rank_order(taken).max())

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        assert self.optimizer is not None, "a frozen model has no learning rate"
        return max(group["lr"] for group in self.optimizer.param_groups)

    def sharded_state(self, prefix: str, *, is_loading: bool = False) -> dict[str, Any]:
        """Model, optimizer and schedule as Megatron's sharded state, for dist_checkpointing in any layout."""
        self.gather_weights()
        model_state = self.model.sharded_state_dict(prefix=f"{prefix}.model.")  # type: ignore[operator]
        state: dict[str, Any] = {f"{prefix}.model": model_state}
        if self.optimizer is not None and self.scheduler is not None:
            own = None if is_loading else distributed_part(self.optimizer)
            state[f"{prefix}.optimizer"] = (
                sharded_pieces(own, model_state)
                if own
                else self.optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=_OPTIMIZER_FORMAT)
            )
            state[f"{prefix}.scheduler"] = self.scheduler.state_dict()
        return state

    def saved_bytes(self) -> int:
        """About the bytes of a checkpoint of this model. A collective."""
        return saved_bytes(self.model, self.layout, distributed_optimizer=self._distributed)

    def snapshot(self, prefix: str) -> dict[str, Any]:
        """`sharded_state` for a save. Where parts of this model leave the device it is made of copies on the host, so
        that a save needs the room of one model after the other."""
        with self.whole():
            state = self.sharded_state(prefix)
            return to_host(state) if self.resident is not None and self.resident.parts else state

    def load_sharded_state(self, prefix: str, state: dict[str, Any]) -> None:
        """Take over what dist_checkpointing loaded into the structure of `sharded_state(is_loading=True)`."""
        own = f"{prefix}.model."
        weights = {name.removeprefix(own): value for name, value in state[f"{prefix}.model"].items()}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        # Megatron's modules list empty "_extra_state" entries that only TransformerEngine fills.
        lost = [name for name in [*missing, *unexpected] if not name.endswith("_extra_state")]
        if lost:
            raise CheckpointError(
                f"The checkpoint of {prefix} does not fit the model: {', '.join(lost[:5])}"
                f"{' and more' if len(lost) > 5 else ''} are in only one of the two. It was made for another model."
            )
        if self.optimizer is not None and self.scheduler is not None:
            load_optimizer(self.optimizer, state[f"{prefix}.optimizer"])
            self.scheduler.load_state_dict(state[f"{prefix}.scheduler"])
