"""Around Megatron's optimizers: moments from the start, counts of steps, loading, the learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from gipo_mc.config import OptimizerConfig


def megatron_options(
    config: OptimizerConfig, dtype: torch.dtype, sharing: DistributedDataParallelConfig
) -> MegatronOptimizerConfig:
    """Adam of parameters of `dtype`, sharded and gathered as `sharing` says."""
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=sharing.use_distributed_optimizer,
        overlap_param_gather=sharing.overlap_param_gather,
    )


def parts_of(optimizer: Any) -> list[Any]:
    """Megatron's optimizers that this one consists of, but for those that have no parameters on this rank. The
    `optimizer` of each is torch's, or a fused one like it."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if getattr(part, "optimizer", None) is not None]


def initialize_moments(optimizer: MegatronOptimizer) -> None:
    """Make Adam's moments now, and not at its first step: a checkpoint may come before that (critic warm-up)."""
    for part in parts_of(optimizer):
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            for state in part.optimizer.state.values():
                state.setdefault("step", torch.zeros((), dtype=torch.float32))


def steps_taken(optimizer: MegatronOptimizer) -> int:
    """As Adam counts them: torch's with each weight's moments, fused ones for a group of weights."""
    counts = [0]
    for part in parts_of(optimizer):
        counts += [int(own["step"]) for own in part.optimizer.state.values() if "step" in own]
        counts += [int(group["step"]) for group in part.optimizer.param_groups if "step" in group]
    return max(counts)


def step_with_norm(optimizer: Any, grad_norm: float) -> None:
    """Megatron's `step`, with a norm of the gradients that is known: it would add it up once more, over all ranks."""
    optimizer.get_grad_norm = lambda: grad_norm
    try:
        optimizer.step()
    finally:
        del optimizer.get_grad_norm


def load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """`load_state_dict`, and two of Megatron's gaps around the step count of torch's Adam."""
    part = getattr(optimizer, "chained_optimizers", [optimizer])[0]
    inner: Any = getattr(part, "optimizer", None)
    _keep_rates(optimizer, state.get("optimizer", state))
    if not (isinstance(part, DistributedOptimizer) and isinstance(inner, (torch.optim.Adam, torch.optim.AdamW))):
        moments = state.get("optimizer", state).get("state")
        if moments and inner is not None and any("step" in own for own in inner.state.values()):
            # A step count of 0 is left out of checkpoints. Fused optimizers count in their groups, and take none here.
            moments.setdefault("common_step", torch.zeros(()))
        optimizer.load_state_dict(state)
        return
    # The distributed optimizer gives all parameters one tensor as their count, which each of them then advances, and
    # looks for the count among the moments.
    moments = state.pop("param_state")
    optimizer.load_state_dict(state)
    counts = [float(own.pop("step")) for own in inner.state.values()]
    part.load_parameter_state_from_fully_reshardable(moments)
    for own, count in zip(inner.state.values(), counts, strict=True):
        own["step"] = torch.tensor(count, dtype=torch.float32)


def _keep_rates(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Give loaded groups of parameters the limits of the learning rate that the configuration has now.

    Megatron's schedule takes them from the groups, before its own. So up to 0.18 a run went on with the limits of its
    checkpoint, and since 0.19, where groups are found by them, a checkpoint with others is refused.
    """
    for own in optimizer.param_groups[:1]:  # all groups have the same; a rank without parameters has none
        for group in loaded.get("param_groups", []):
            group.update({name: own[name] for name in ("max_lr", "min_lr")})


def make_scheduler(optimizer: MegatronOptimizer, config: OptimizerConfig, total_steps: int) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        optimizer,
        # Megatron counts warm-up from 0, which would waste the first step at a learning rate of 0.
        init_lr=config.lr / (config.warmup + 1),
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.warmup,
        lr_decay_steps=max(total_steps, config.warmup + 1),
        lr_decay_style=config.schedule,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=max(total_steps, 1),
        wd_incr_style="constant",
        # A resumed run takes its position from the checkpoint and its schedule from the configuration, so that more
        # iterations may be asked for than at first.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
