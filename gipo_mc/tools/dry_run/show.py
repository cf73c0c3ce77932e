"""A rehearsal as text for a terminal, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from gipo_mc.parallel.megatron.pretend import Exchange
from gipo_mc.tools.dry_run.exchanges import problems
from gipo_mc.tools.dry_run.groups import short
from gipo_mc.tools.dry_run.rehearsal import Course, Rehearsal, Stage
from gipo_mc.tools.dry_run.rollout import TOKENS

_GIB = 2**30


def as_text(found: Rehearsal) -> str:
    """Kinds of rank, process groups, schedules, the checkpoint and what was not looked at."""
    parts = [_head(found), _stages(found), _groups(found), _courses(found)]
    if found.frozen:
        head = f"frozen models: {found.frozen.plan.grid.describe()}"
        parts += [f"{head}\n\n{_stages(found.frozen)}", _groups(found.frozen), _courses(found.frozen)]
    parts.append(_checkpoint(found))
    if found.notes:
        parts.append("\n".join(f"note: {text}" for text in found.notes))
    return "\n\n".join(part for part in parts if part)


def as_json(found: Rehearsal) -> dict[str, Any]:
    """The same, bytes and counts."""
    return {
        "command": found.plan.run.command,
        "gpus": found.plan.grid.world,
        **_layout_json(found),
        "rollout": [len(stage) for stage in found.rollout],
        "frozen": _layout_json(found.frozen) if found.frozen else None,
        "checkpoint": {"tensors": len(found.shards), "bytes": found.plan.checkpoint},
        "problems": found.problems,
        "notes": found.notes,
        "seconds": found.seconds,
    }


def _layout_json(found: Rehearsal) -> dict[str, Any]:
    grid = found.plan.grid
    return {
        "layout": {"tensor": grid.tensor, "pipeline": grid.pipeline, "data": grid.data, "sequence": grid.sequence},
        "stages": [
            {
                "stage": stage.number, "ranks": list(stage.ranks),
                "layers": [[chunk.start, chunk.stop] for chunk in stage.layers],
                "stepped": stage.stepped, "kv_cache_bytes": stage.kv_cache, "peak_bytes": _peak(found, stage),
                "models": {role: vars(one) for role, one in stage.built.items()},
            }
            for stage in found.stages
        ],
        "groups": {kind.name: [list(ranks) for ranks in kind.members] for kind in found.groups},
        "passes": [
            {
                "phases": list(course.phases), "micro_batches": course.micro_batches, "rows": course.rows,
                "length": course.length, "backward": course.backward,
                "stages": [
                    {"warm_up": step.warm_up, "steady": step.steady, "exchanges": len(step.exchanges)}
                    for step in course.steps
                ],
            }
            for course in found.courses
        ],
    }  # fmt: skip


def _head(found: Rehearsal) -> str:
    plan, grid = found.plan, found.plan.grid
    return (
        f"{plan.run.command} on {grid.world} x {plan.device.name}: {grid.describe()}\n"
        "one process stood in for one rank of each stage; the others differ in nothing but the shards that they hold"
    )


def _stages(found: Rehearsal) -> str:
    roles = [role.name for role in found.plan.run.roles]
    width = max(9, *(2 + len(" ".join(map(short, stage.layers))) for stage in found.stages))
    head = f"parameters of {', '.join(roles)}"
    trained = any(role.trained for role in found.plan.run.roles)
    more = f"{'buckets':>8}{'KV GiB':>8}{'peak GiB':>10}" if trained else ""
    lines = [f"{'stage':<7}{'ranks':<12}{'layers':<{width}}{head:<62}{more}".rstrip()]
    for stage in found.stages:
        numbers = ", ".join(f"{stage.built[role].parameters:,}" for role in roles)
        buckets = sum(one.buckets for one in stage.built.values())
        layers = " ".join(map(short, stage.layers))
        more = f"{buckets:>8}{stage.kv_cache / _GIB:>8.2f}{_peak(found, stage) / _GIB:>10.2f}" if trained else ""
        lines.append(f"{stage.number:<7}{short(stage.ranks):<12}{layers:<{width}}{numbers:<62}{more}".rstrip())
    if alike := [str(stage.number) for stage in found.stages if not stage.stepped]:
        lines.append(f"built but not run, as stage 1 was: {', '.join(alike)}")
    return "\n".join(lines)


def _peak(found: Rehearsal, stage: Stage) -> int:
    """0 where the plan has none: frozen models in a layout of their own are in the peaks of the others' stages."""
    return max((peak.total for peak in found.plan.memory.peaks if peak.stage == stage.number), default=0)


def _groups(found: Rehearsal) -> str:
    return "process groups\n" + "\n".join(f"  {kind.describe()}" for kind in found.groups)


def _courses(found: Rehearsal) -> str:
    lines = ["passes of a replica: micro-batches, and of each stage those of warm-up + steady state (+ cool-down)"]
    if found.rollout:
        lines.append(f"  rollout, responses of up to {TOKENS} tokens: {_passed(found.rollout)}")
    for course in found.courses:
        ways = "forward and backward" if course.backward else "forward"
        lines.append(f"  {', '.join(course.phases)}: {course.micro_batches} of {course.rows} x {course.length}, {ways}")
        if course.steps:
            lines += textwrap.wrap(_stage_steps(course), 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _stage_steps(course: Course) -> str:
    told: list[str] = []
    for step in course.steps:
        cool = f" + {step.warm_up}" if course.backward else ""
        told.append(f"{step.warm_up} + {step.steady}{cool}")
    named = (
        f"each stage {told[0]}"
        if len(set(told)) == 1
        else "; ".join(f"stage {stage}: {one}" for stage, one in enumerate(told))
    )
    return f"{named}; {_passed([step.exchanges for step in course.steps])}"


def _passed(stages: Sequence[Sequence[Exchange]]) -> str:
    sent = sum(message.sent for exchanges in stages for exchange in exchanges for message in exchange)
    if problems(stages):
        return f"{sent} tensors are sent, and do not all arrive"
    return f"{sent} tensors are sent and received, and no stage waits for ever"


def _checkpoint(found: Rehearsal) -> str:
    numbers = sum(one.numel for one in found.shards.values())
    return (
        f"checkpoint: {len(found.shards)} tensors of {numbers:,} parameters, each part on one rank; "
        f"{found.plan.checkpoint / _GIB:,.1f} GiB with the optimizers"
    )
