"""How many ranks were started, and with which environment. Those that `srun` started without torchrun find in Slurm's
variables what torchrun would have told them. Nothing here needs torch, which reads some of them when it is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from gipo_mc.config import Config
from gipo_mc.errors import ConfigError


def world_size() -> int:
    """Ranks of this job: torchrun's WORLD_SIZE, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def several_hosts() -> bool:
    """Do the ranks of this job run on more than one host? Whoever sets RANK without LOCAL_WORLD_SIZE has one."""
    return world_size() > int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def suit_cuda(config: Config, environment: MutableMapping[str, str] | None = None) -> None:
    """Set what CUDA and torch's allocator read when they begin, where the user has not; the CPU heeds none of it.

    One connection to the device lets the collectives of tensor parallelism start before the matrix products they
    overlap with, as Megatron's schedules assume. Expandable segments keep the memory of rollouts of ever other lengths
    from falling to pieces; vLLM's memory pool refuses them.
    """
    env = os.environ if environment is None else environment
    if config.parallel.tensor > 1:
        env.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if config.rollout.engine != "vllm" and "PYTORCH_ALLOC_CONF" not in env:
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def adopt_slurm(environment: MutableMapping[str, str] | None = None) -> None:
    """Set RANK and its like for the tasks of one `srun` (without RANK, with more than one task).

    A batch script's own shell has SLURM_NTASKS too, but is no task of a step: one process there is one rank. On several
    nodes nobody but the user knows an address that all reach: raises ConfigError with the line to write.
    """
    env = os.environ if environment is None else environment
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in env or tasks == 1:
        return
    nodes = int(env.get("SLURM_STEP_NUM_NODES", "1"))
    if nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        raise ConfigError(
            f"srun started {tasks} tasks on {nodes} nodes, and MASTER_ADDR and MASTER_PORT, where they meet, are not "
            'set. Before srun write: export MASTER_PORT=29500 MASTER_ADDR=$(scontrol show hostnames "$SLURM_NODELIST" '
            "| head -n 1). Or start torchrun, one task a node, as scripts/slurm/train.sbatch does."
        )
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env.get("SLURM_STEP_ID", "0"))
    env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=str(tasks), LOCAL_RANK=env["SLURM_LOCALID"])
    # "4(x2)": so many tasks on each node.
    env.setdefault("LOCAL_WORLD_SIZE", env.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)).split("(")[0].split(",")[0])
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", str(20000 + (31 * job + step) % 10000))
