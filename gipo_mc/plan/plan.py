"""The plan of one configuration on one layout, whether it fits, and the nearest change that does; layouts ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from gipo_mc.config import Config, check_layout, options
from gipo_mc.errors import ConfigError
from gipo_mc.plan.cost import Cost, costs
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.hardware import OURS, UTILISATION, Hardware, Program
from gipo_mc.plan.memory import Memory, copies_of_a_save, memory
from gipo_mc.plan.parameters import Parameter, stage_parameters, whole_model
from gipo_mc.plan.run import Run
from gipo_mc.plan.state import checkpoint_bytes


@dataclass(frozen=True)
class Plan:
    """What a run needs on `grid`. width: bytes of a weight. cost: None on a CPU, whose rates nobody stated. relief: the
    options that the search changed to make it fit, as they are written."""

    run: Run
    grid: Grid
    device: Hardware
    width: int
    memory: Memory
    cost: dict[str, Cost] | None
    checkpoint: int
    host: int
    problems: tuple[str, ...]
    utilisation: float
    relief: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.fits and not self.problems

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that are kept, and of the one that is being written."""
        return self.checkpoint * (self.run.config.checkpoint.keep + 1)

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
    cost = costs(run, grid, device, width, utilisation, program) if device.flops else None
    host = sum(copies_of_a_save(run, role, grid, width, device) for role in run.roles if role.trained)
    return Plan(run, grid, device, width, found, cost, saved, host, _problems(run, found), utilisation)


def _problems(run: Run, found: Memory) -> tuple[str, ...]:
    """What would stop a start though the sums fit."""
    problems = []
    given = run.config.rollout.kv_cache_gib
    # Half of the memory that models leave is not worth a word where they do not fit themselves.
    if (found.fits or given) and found.cache_least > found.cache_limit:
        limit = f"rollout.kv_cache_gib={given:g}" if given else "half of the memory that the models leave"
        problems.append(
            f"The KV cache cannot hold one sequence of {run.lengths.longest} tokens in {limit}: it takes "
            f"{found.cache_least / 2**30:.2f} GiB on each rank."
        )
    return tuple(problems)


@dataclass(frozen=True)
class Change:
    """Other values of some options, on `gpus` GPUs in place of `before`, and the plan with them."""

    options: dict[str, Any]
    gpus: int
    before: int
    plan: Plan

    def describe(self) -> str:
        return " ".join([*words(self.options), *([f"on {self.gpus} GPUs"] if self.gpus != self.before else [])])


def words(options: dict[str, Any]) -> list[str]:
    """Options as they are written on a command line."""
    return [f"{key}={_word(value)}" for key, value in options.items()]


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


#: What makes room on a GPU, the least loss of time first. The search asks for it where a layout does not fit; options
#: that the configuration does not have are passed over.
RELIEF: tuple[dict[str, Any], ...] = (
    {"memory.recompute": "selective"},
    {"memory.offload": ["frozen"]},
    {"memory.recompute": "selective", "memory.offload": ["frozen"]},
    {"memory.recompute": "full"},
    {"memory.recompute": "full", "memory.offload": ["frozen"]},
    {"memory.recompute": "full", "memory.offload": ["frozen", "optimizer"]},
    {"memory.recompute": "full", "memory.offload": ["frozen", "optimizer", "idle"]},
)
#: Chunks of layers on a rank of a pipeline that the search tries.
CHUNKS = ("parallel.virtual_pipeline", (1, 2, 4))


def known(changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose options a configuration has."""
    return [change for change in changes if change.keys() <= options().keys()]


def nearest_change(plan: Plan) -> Change | None:
    """What makes a plan fit on the fewest GPUs, with the fewest changes: none, one or two of these, in this order:
    sharing the sequence and the optimizer, smaller parts of a batch, options of `RELIEF`, more tensor and pipeline
    ranks. None where up to 16 times the GPUs do not."""
    gpus, changes = plan.grid.world, _changes(plan.run.config)
    for factor in (1, 2, 4, 8, 16):
        for number in (0, 1, 2):
            for chosen in combinations(changes, number):
                both = {key: value for change in chosen for key, value in change.items()}
                if len(both) < sum(map(len, chosen)):
                    continue  # one option twice
                try:
                    other = make_plan(plan.run.changed(both), gpus * factor, plan.device, node=plan.grid.node)
                except ConfigError:
                    continue
                if other.fits:
                    return Change(both, gpus * factor, gpus, other)
    return None


def _changes(config: Config) -> list[dict[str, Any]]:
    """Options and other values of theirs, the least change first."""
    parallel = config.parallel
    found: list[dict[str, Any]] = []
    if parallel.tensor > 1 and not parallel.sequence:
        found.append({"parallel.sequence": True})
    if parallel.distributed_optimizer == "off":
        found.append({"parallel.distributed_optimizer": "on"})
    for part in (2, 4, 8, 16):
        if parallel.tokens_per_micro_batch >= part * 256:
            found.append({"parallel.tokens_per_micro_batch": parallel.tokens_per_micro_batch // part})
        if parallel.micro_batch_size >= part:
            found.append({"parallel.micro_batch_size": parallel.micro_batch_size // part})
    if parallel.logit_rows == 0 or parallel.logit_rows > 1024:
        found.append({"parallel.logit_rows": 1024})
    for change in known(RELIEF):
        found += [one for key, value in change.items() if (one := {key: value}) not in found]
    for factor in (2, 4, 8):
        found += [{"parallel.tensor": parallel.tensor * factor}, {"parallel.pipeline": parallel.pipeline * factor}]
    return found


def search(
    run: Run,
    gpus: int,
    device: Hardware,
    *,
    node: int = 8,
    utilisation: float = UTILISATION,
    program: Program = OURS,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Plan]:
    """Every layout of the ranks that works, those that fit first and then by time: tensor (within a node), pipeline,
    data, with and without sequence parallelism, in several chunks; with what of `RELIEF` makes it fit. tell: how many
    layouts were tried, of how many."""
    plans, layouts = [], list(_layouts(gpus, node))
    for number, layout in enumerate(layouts):
        tell(number, len(layouts))
        tried: list[Plan] = []
        for relief in ({}, *known(RELIEF)):
            try:
                plan = make_plan(
                    run.changed(layout | relief), gpus, device, node=node, utilisation=utilisation, program=program
                )
            except ConfigError:
                break
            tried.append(replace(plan, relief=tuple(words(relief))))
            if plan.fits:
                break
        if tried:
            plans.append(tried[-1] if tried[-1].fits else tried[0])
    return sorted(plans, key=lambda plan: (not plan.fits, plan.seconds if plan.fits else plan.memory.worst.total))


def check_alone(run: Run, device: Hardware) -> None:
    """Raises ConfigError for what no layout can change: one rank divides all heads, layers and batches."""
    whole: dict[str, Any] = {"parallel.tensor": 1, "parallel.pipeline": 1, "parallel.sequence": False, CHUNKS[0]: 1}
    frozen = {"parallel.frozen_tensor": 0, "parallel.frozen_pipeline": 0}
    make_plan(run.changed(whole | frozen), 1, device)


def _layouts(gpus: int, node: int) -> Iterator[dict[str, Any]]:
    chunked = known([{CHUNKS[0]: number} for number in CHUNKS[1]])
    for tensor in range(1, min(gpus, node) + 1):
        for pipeline in range(1, gpus // tensor + 1):
            if gpus % (tensor * pipeline) == 0:
                for sequence in (False, True)[: min(tensor, 2)]:
                    sizes = {"parallel.tensor": tensor, "parallel.pipeline": pipeline, "parallel.sequence": sequence}
                    for chunks in (chunked if pipeline > 1 else chunked[:1]) or [{}]:
                        yield sizes | chunks
