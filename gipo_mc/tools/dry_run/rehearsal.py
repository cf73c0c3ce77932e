"""A start of a planned run, on every kind of rank one after the other, in one process without a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gipo_mc.errors import ConfigError
from gipo_mc.models.kv_cache import KVCache, page_bytes, pages_for
from gipo_mc.models.stage import StageModel
from gipo_mc.parallel.megatron.pretend import Exchange, Pretence, pretended
from gipo_mc.plan.layouts.search import CHUNKS
from gipo_mc.plan.parameters import Role
from gipo_mc.plan.plan import Plan
from gipo_mc.plan.run import Pass
from gipo_mc.tools.dry_run import exchanges
from gipo_mc.tools.dry_run.groups import Kind, named
from gipo_mc.tools.dry_run.ranks import (
    Built,
    Shards,
    add_shards,
    build,
    differences,
    dtype_of,
    kv_cache_bytes,
    measured,
    run_once,
)
from gipo_mc.tools.dry_run.rollout import ticks_of
from gipo_mc.tools.dry_run.schedule import Steps, steps_of


@dataclass(frozen=True)
class Stage:
    """The ranks of one pipeline stage, which differ in nothing but which shards they hold.

    number, ranks; layers: those of each chunk. built: role -> its sizes on the first of these ranks.
    stepped: were the models run, or are they those of the stage before with other layers? kv_cache: bytes.
    """

    number: int
    ranks: range
    layers: tuple[range, ...]
    built: dict[str, Built]
    stepped: bool
    kv_cache: int


@dataclass(frozen=True)
class Course:
    """A pass as the schedule runs it. phase: those of an iteration that have it. micro_batches: of a replica; tokens:
    of the largest. steps: what each stage does; empty without a pipeline, where forward and backward alternate."""

    phases: tuple[str, ...]
    micro_batches: int
    rows: int
    length: int
    backward: bool
    steps: tuple[Steps, ...]


@dataclass
class Rehearsal:
    """What was seen. plan: of the models of one layout. problems: what a real start would fail on, a sentence each.
    notes: what was not looked at. frozen: the same of frozen models that have a layout of their own."""

    plan: Plan
    stages: list[Stage] = field(default_factory=list)
    groups: list[Kind] = field(default_factory=list)
    courses: list[Course] = field(default_factory=list)
    #: What each stage posts while it generates; empty without a pipeline.
    rollout: list[tuple[Exchange, ...]] = field(default_factory=list)
    shards: dict[str, Shards] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    frozen: Rehearsal | None = None
    seconds: float = 0.0


def rehearse(plan: Plan, tell: Callable[[int, int], None] = lambda done, of: None) -> Rehearsal:
    """Build and step everything. tell: how many stages are done, of how many. Raises ConfigError as a start would."""
    began, phases = time.perf_counter(), plan.run.phases(plan.grid, longest=True)
    if plan.grid.of(False) is plan.grid:
        found = _rehearsed(plan, phases, tell)
    else:
        trained, frozen = _alone(plan, True), _alone(plan, False)
        of = trained.grid.pipeline + (frozen.grid.pipeline if frozen.run.roles else 0)
        found = _rehearsed(trained, phases, lambda done, _: tell(done, of))
        if frozen.run.roles:
            found.frozen = _rehearsed(frozen, phases, lambda done, _: tell(trained.grid.pipeline + done, of))
            found.problems += found.frozen.problems
    found.seconds = time.perf_counter() - began
    return found


def _alone(plan: Plan, trained: bool) -> Plan:
    """The trained or the frozen models of a plan, in their layout and as if there were no other. Peaks of memory are
    those of the stages of the trained ones, all models counted."""
    grid = replace(plan.grid.of(trained), frozen=(0, 0))
    run = plan.run.changed({
        "parallel.tensor": grid.tensor, "parallel.pipeline": grid.pipeline, "parallel.sequence": grid.sequence,
        "parallel.virtual_pipeline": grid.virtual, "parallel.frozen_tensor": 0, "parallel.frozen_pipeline": 0,
    })  # fmt: skip
    roles = tuple(role for role in plan.run.roles if role.trained is trained)
    memory = plan.memory if trained else replace(plan.memory, peaks=[])
    return replace(plan, grid=grid, run=replace(run, roles=roles), memory=memory)


def _rehearsed(plan: Plan, phases: dict[str, list[Pass]], tell: Callable[[int, int], None]) -> Rehearsal:
    """The models of this plan, in the layout that all of them have. phases: those of other models are passed over."""
    found, roles = Rehearsal(plan), set(plan.run.roles)
    phases = {name: own for name, passes in phases.items() if (own := [one for one in passes if one.role in roles])}
    courses, generates = _courses(phases), plan.run.role("policy") is not None
    steps: dict[tuple[int, bool], list[Steps]] = {key: [] for key in courses}
    for stage in range(plan.grid.pipeline):
        with pretended(
            plan.run.config.parallel, plan.grid.world, stage * plan.grid.tensor * plan.grid.data
        ) as pretence:
            if not stage:
                found.groups, problems = named(pretence.groups, plan.grid)
                found.problems += problems
            found.stages.append(_stage(stage, pretence, phases, found))
            if plan.grid.pipeline > 1 and generates:
                found.rollout.append(ticks_of(pretence, plan))
            if plan.grid.pipeline > 1:
                for key, (_, one) in courses.items():
                    steps[key].append(steps_of(pretence, one, dtype_of(plan), chunks_of(plan)))
        tell(stage + 1, plan.grid.pipeline)
    for key, (names, one) in courses.items():
        rows, length, _ = max(one.parts, key=lambda part: part[0] * part[1])
        found.courses.append(Course(names, len(one.parts), rows, length, one.backward, tuple(steps[key])))
        found.problems += exchanges.problems([each.exchanges for each in steps[key]])
    found.problems += exchanges.problems(found.rollout)
    found.problems += _lost_shards(found.shards)
    return found


def _courses(phases: dict[str, list[Pass]]) -> dict[tuple[int, bool], tuple[tuple[str, ...], Pass]]:
    """(micro-batches, backward) -> the phases that have such a pass, and one of these."""
    found: dict[tuple[int, bool], tuple[tuple[str, ...], Pass]] = {}
    for name, passes in phases.items():
        for one in dict.fromkeys(passes):
            names, first = found.get((len(one.parts), one.backward), ((), one))
            if name not in names:
                found[len(one.parts), one.backward] = ((*names, name), first)
    return found


def _stage(number: int, pretence: Pretence, phases: dict[str, list[Pass]], found: Rehearsal) -> Stage:
    """Build this stage's models; the first two stages and the last also run, and others are the second again."""
    plan, grid = found.plan, found.plan.grid
    stepped = number in (0, 1, grid.pipeline - 1)
    built: dict[str, Built] = {}
    kv_cache = 0
    for role in plan.run.roles:
        engine = build(role, plan.run.config, pretence, plan)
        built[role.name] = measured(engine)
        found.problems += differences(role, engine, built[role.name], number, plan)
        model = engine.model
        assert isinstance(model, StageModel)
        if role.trained:
            add_shards(found.shards, model, role.name, grid.tensor)
        if role.name == "policy":
            kv_cache = _kv_cache(model, plan)
        if stepped:
            _run(role, pretence, phases, found)
    each, parts = grid.tensor * grid.data, grid.pipeline * chunks_of(plan)
    layers = plan.run.roles[0].shape.layers // parts
    firsts = [layers * part for part in range(number, parts, grid.pipeline)]
    chunks = tuple(range(first, first + layers) for first in firsts)
    return Stage(number, range(number * each, (number + 1) * each), chunks, built, stepped, kv_cache)


def chunks_of(plan: Plan) -> int:
    """Chunks of layers on a rank, where the configuration has an option for them."""
    return getattr(plan.run.config.parallel, CHUNKS[0].removeprefix("parallel."), 1)


def _run(role: Role, pretence: Pretence, phases: dict[str, list[Pass]], found: Rehearsal) -> None:
    """One micro-batch of the phase that asks most of this model, through two of the stage's layers, which are alike,
    and its ends; what it sends has the shape that is expected."""
    passes = [one for each in phases.values() for one in each if one.role.name == role.name]
    if not passes:
        return
    plan = found.plan
    thin = replace(role, shape=replace(role.shape, layers=2 * plan.grid.pipeline * chunks_of(plan)))
    one = max(passes, key=lambda one: (one.backward, max(rows * length for rows, length, _ in one.parts)))
    engine = build(thin, plan.run.config, pretence, plan)
    run_once(engine, one, pretence, plan.run.config.parallel.logit_rows, chunks_of(plan))
    if odd := _odd_shapes(pretence.exchanges, pretence.incoming):
        found.problems.append(
            f"{role.name} on stage {pretence.layout.pipeline_rank} sends a tensor of shape {odd[0]}, where its "
            f"neighbours expect {pretence.incoming}. Please report this with the configuration."
        )


def _odd_shapes(posted: list[Exchange], expected: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [message.shape for exchange in posted for message in exchange if message.shape != expected]


def _kv_cache(model: StageModel, plan: Plan) -> int:
    """Bytes of the cache that generation makes on this rank, in the room that the plan leaves it on the GPU. At least
    one sequence's: where there is less room, or none, the plan's reasons say so."""
    if plan.run.config.rollout.engine != "megatron":
        return 0
    longest = plan.run.lengths.longest
    _, slots = plan.run.generated(plan.grid)
    pages = slots * pages_for(longest)
    if plan.memory.cache_limit != float("inf"):
        each = page_bytes(model.shape, model.layout, model.config.params_dtype)
        pages = max(min(pages, int(plan.memory.cache_limit // each)), pages_for(longest))
    dtype = model.config.params_dtype
    return kv_cache_bytes(KVCache(model.shape, model.layout, pages=pages, slots=slots, longest=longest, dtype=dtype))


def _lost_shards(shards: dict[str, Shards]) -> list[str]:
    """Tensors of a checkpoint that the ranks would not write whole, each part once."""
    wrong = [(key, one) for key, one in shards.items() if one.there != one.expected]
    return [
        f"{key} of a checkpoint would have {one.there} of its {one.expected} parts. Please report this with the "
        "configuration."
        for key, one in wrong[:3]
    ]


def refused(problems: list[str]) -> ConfigError | None:
    """All problems as one error; None where there are none."""
    if not problems:
        return None
    return ConfigError("A start would fail:\n" + "\n".join(f"  - {text}" for text in problems))
