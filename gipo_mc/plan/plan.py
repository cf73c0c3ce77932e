"""The plan of one configuration on one layout, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gipo_mc.config import Config, check_layout
from gipo_mc.errors import ConfigError
from gipo_mc.plan.cost import Cost, costs
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.hardware import OURS, UTILISATION, Hardware, Program
from gipo_mc.plan.memory import Memory, copies_of_a_save, memory
from gipo_mc.plan.parameters import Parameter, stage_parameters, whole_model
from gipo_mc.plan.run import Run
from gipo_mc.plan.state import checkpoint_bytes

#: The options that are a layout.
LAYOUT = ("parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline", "parallel.sequence")


@dataclass(frozen=True)
class Plan:
    """What a run needs on `grid`. width: bytes of a weight. cost: None on a CPU, whose rates nobody stated. relief: the
    options that the search changed to make it fit, as they are written. program: whose times these are."""

    run: Run
    grid: Grid
    device: Hardware
    width: int
    memory: Memory
    cost: dict[str, Cost] | None
    checkpoint: int
    host: int
    utilisation: float
    relief: tuple[str, ...] = ()
    program: Program = OURS

    @property
    def problems(self) -> tuple[str, ...]:
        """What would stop a start though the sums of the GPUs fit, a sentence each."""
        return (*_short_of_cache(self), *_short_of_host(self))

    @property
    def fits(self) -> bool:
        return self.memory.fits and not self.problems

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that are kept, and of the one that is being written."""
        return self.checkpoint * (self.run.config.checkpoint.keep + 1)

    @property
    def offloaded(self) -> int:
        """Bytes of page-locked memory of the host that memory.offload keeps for a rank; on a CPU they are files."""
        return self.memory.offloaded if self.device.cuda else 0

    @property
    def host_of_a_node(self) -> int:
        """Bytes of host memory that the ranks of one node take at the most, while they save."""
        return (self.offloaded + self.host) * min(self.grid.world, self.grid.node)

    @property
    def options(self) -> dict[str, Any]:
        """The layout, and what the search changed, under the names that the configuration has."""
        keys = [*LAYOUT, *(word.partition("=")[0] for word in self.relief)]
        parts = [(key, *key.split(".")) for key in keys]
        return {key: getattr(getattr(self.run.config, section), name) for key, section, name in parts}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the configuration asks for that is planned as something else."""
        if self.run.command != "train_gi_ppo" or self.run.config.rollout.engine == "megatron":
            return ()
        return (
            "rollout.engine=vllm is planned as megatron: vLLM's own copy of the weights, what it sets aside and its "
            "times are left out.",
        )

    @property
    def seconds(self) -> float:
        """Of an iteration, checkpoints aside."""
        return sum(one.seconds for name, one in (self.cost or {}).items() if name not in ("save", *self._once))

    @property
    def rate(self) -> float:
        """Tokens a second and GPU, prompts counted, while an iteration takes `seconds`."""
        return self.run.batch * self.run.lengths.usual / self.seconds / self.grid.world

    @property
    def _once(self) -> tuple[str, ...]:
        return () if self.run.command == "train_gi_ppo" else ("reference_logprob",)

    @property
    def bubble(self) -> float:
        """Share of an update's time in which a stage waits."""
        updates = [one for name, one in (self.cost or {}).items() if name.startswith("update")]
        whole = sum(one.seconds for one in updates)
        return sum(one.bubble for one in updates) / whole if whole else 0.0

    def parameters(self, role: str) -> tuple[int, list[tuple[Parameter, ...]]]:
        """(numbers of the whole model, those of each stage on one rank)."""
        own = self.run.role(role)
        assert own is not None, role
        grid = self.grid.of(own.trained)
        return whole_model(own, grid.tensor), [stage_parameters(own, grid, stage) for stage in range(grid.pipeline)]


def grid_of(config: Config, gpus: int, device: Hardware, node: int = 8, command: str = "") -> Grid:
    """The layout of a configuration on so many ranks. Raises ConfigError with every problem of it for this command."""
    data = check_layout(config, gpus, command)
    parallel = config.parallel
    if command == "train_gi_ppo" and config.rollout.engine == "vllm" and parallel.pipeline > 1:
        raise ConfigError("rollout.engine=vllm has no pipeline.")  # said better by a configuration that is read
    choice = parallel.distributed_optimizer
    sharded = choice == "on" or (choice == "auto" and device.cuda)
    overlap = parallel.overlap == "on" or (parallel.overlap == "auto" and device.cuda and sharded)
    return Grid(
        parallel.tensor, parallel.pipeline, data, parallel.sequence and parallel.tensor > 1, sharded, node,
        frozen=(parallel.frozen_tensor, parallel.frozen_pipeline), overlap=overlap, virtual=parallel.virtual_pipeline,
    )  # fmt: skip


def make_plan(
    run: Run, gpus: int, device: Hardware, *, node: int = 8, utilisation: float = UTILISATION, program: Program = OURS
) -> Plan:
    """Raises ConfigError where the layout or a model does not work on so many ranks."""
    config = run.config
    grid = grid_of(config, gpus, device, node, run.command)
    for role in run.roles:
        own = grid.of(role.trained)
        role.shape.check(own.tensor, own.pipeline, own.virtual, sequence_length=run.lengths.longest)
    width = 2 if config.dtype == "bfloat16" or (config.dtype == "auto" and device.cuda) else 4
    found = memory(run, grid, device, width)
    saved = sum(checkpoint_bytes(role, grid, width) for role in run.roles if role.trained)
    time = costs(run, grid, device, width, utilisation, program, pages=found.cache_pages) if device.flops else None
    host = sum(copies_of_a_save(run, role, grid, width, device) for role in run.roles if role.trained)
    return Plan(run, grid, device, width, found, time, saved, host, utilisation, program=program)


def _short_of_host(plan: Plan) -> Iterator[str]:
    """A sentence where a node has less memory than its ranks take of it."""
    has = plan.device.host_memory
    if has and plan.host_of_a_node > has:
        parts = {"what is offloaded": plan.offloaded, "a save": plan.host}
        kept = " and ".join(part for part, size in parts.items() if size)
        yield (
            f"The memory of a node's host is too small: {kept} of its ranks may take "
            f"{plan.host_of_a_node / 2**30:.1f} GiB of it, and --host-memory says {has / 2**30:.1f} GiB."
        )


def _short_of_cache(plan: Plan) -> Iterator[str]:
    """A sentence where the KV cache cannot hold one sequence."""
    found, given = plan.memory, plan.run.config.rollout.kv_cache_gib
    # Half of the memory that models leave is not worth a word where they do not fit themselves.
    if (found.fits or given) and found.cache_least > found.cache_limit:
        limit = f"rollout.kv_cache_gib={given:g}" if given else "half of the memory that the models leave"
        yield (
            f"The KV cache cannot hold one sequence of {plan.run.lengths.longest} tokens in {limit}: it takes "
            f"{found.cache_least / 2**30:.2f} GiB on each rank."
        )


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as they are written on a command line."""
    return [f"{key}={_word(value)}" for key, value in options.items()]


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
