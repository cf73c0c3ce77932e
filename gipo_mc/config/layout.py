"""Does a configuration fit the ranks there are? Pure arithmetic, before any process group."""

from __future__ import annotations

from gipo_mc.config.commands import read_by
from gipo_mc.config.schema import Config
from gipo_mc.errors import ConfigError


def wide_tensor(config: Config, per_node: int, what: str) -> str:
    """A warning where tensor-parallel ranks lie on two nodes of `per_node` (`what` it has); "" where none do. A size
    that does not divide a node leaves a group that begins in one and ends in the next."""
    if per_node % config.parallel.tensor == 0:
        return ""
    return (
        f"parallel.tensor={config.parallel.tensor} reaches over nodes of {per_node} {what}, and its messages are the "
        f"most frequent: lower it to a divisor of {per_node}, and raise parallel.pipeline."
    )


def check_layout(config: Config, world_size: int, command: str = "") -> int:
    """Data-parallel size of this configuration on `world_size` ranks. Raises ConfigError with every problem of the
    options that `command` reads; "": of all."""
    problems, read = [], set(read_by(command))
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    if world_size % (tensor * pipeline):
        problems.append(
            f"parallel.tensor={tensor} x parallel.pipeline={pipeline} = {tensor * pipeline} does not divide the "
            f"{world_size} ranks: start a multiple of {tensor * pipeline} (torchrun --nproc-per-node), or lower one "
            "of the two"
        )
    frozen = config.parallel.frozen_sizes
    apart = "parallel.frozen_tensor" in read and frozen != (tensor, pipeline)
    if apart and world_size % (frozen[0] * frozen[1]):
        problems.append(
            f"frozen models on parallel.frozen_tensor={frozen[0]} x parallel.frozen_pipeline={frozen[1]} = "
            f"{frozen[0] * frozen[1]} ranks do not divide the {world_size} ranks: set both to 0, or to sizes that do"
        )
    data = max(1, world_size // (tensor * pipeline))
    for key, size in (
        ("rollout.batch_size", config.rollout.batch_size),
        ("algorithm.mini_batch_size", config.algorithm.mini_batch_size),
        ("train.batch_size", config.train.batch_size),
    ):
        if key in read and size < data:
            problems.append(f"{key}={size} is smaller than the {data} data-parallel ranks: raise it to {data} or more")
    batch, mini_batch = config.rollout.batch_size, config.algorithm.mini_batch_size
    smallest = batch // -(-batch // mini_batch)
    if "rollout.batch_size" in read and batch >= data > smallest:
        problems.append(
            f"rollout.batch_size={batch} in mini-batches of at most {mini_batch} leaves some with {smallest} sequences"
            f", fewer than the {data} data-parallel ranks: raise algorithm.mini_batch_size"
        )
    if problems:
        raise ConfigError("The layout does not work:\n" + "\n".join(f"  - {p}" for p in problems))
    return data
