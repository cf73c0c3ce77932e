"""A plan as text for a terminal, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from gipo_mc.plan import hardware as rates
from gipo_mc.plan.cost import Cost
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.layouts.nearest import Change
from gipo_mc.plan.memory import KINDS, UNCERTAIN
from gipo_mc.plan.offload import kinds_of
from gipo_mc.plan.parameters import count
from gipo_mc.plan.plan import Plan
from gipo_mc.plan.show.numbers import duration, number, size
from gipo_mc.plan.show.search import host_of
from gipo_mc.plan.total import Total, total

_GIB = 2**30
_WIDTH = 112


def _ways(plan: Plan) -> str:
    """How the code goes about it, as far as that changes memory or time."""
    config, grid = plan.run.config, plan.grid
    apart = grid.of(False) is not grid and not all(role.trained for role in plan.run.roles)
    summed = "gradients are summed" + (" and weights gathered" if grid.distributed_optimizer else "")
    told = [
        "activations are kept" if config.memory.recompute == "none" else f"recomputation: {config.memory.recompute}",
        f"{summed} {'during' if grid.overlap else 'after'} the passes" if grid.data > 1 else "",
        "float32 logits" if config.precision.fp32_logits and plan.width == 2 else "",
        f"off the device while idle: {', '.join(sorted(kinds_of(plan.run)))}" if kinds_of(plan.run) else "",
        f"frozen models on {grid.of(False).describe()}" if apart else "",
        "checkpoints are written during training" if config.checkpoint.asynchronous else "",
        "FP8 is not counted" if config.precision.fp8 != "off" else "",
        "without TransformerEngine",
    ]
    return f"{'; '.join(filter(None, told))}."


def as_text(plan: Plan, change: Change | None) -> str:
    """Everything that a plan says; `change`: the nearest one that fits, of a plan that does not."""
    parts = [_wrapped(_head(plan)), _parameters(plan), _memory(plan)]
    parts += map(_wrapped, (_verdict(plan, change), _room_elsewhere(plan)))
    if plan.cost is not None:
        parts.append(_cost(plan, plan.cost))
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    """Sentences at a width that a terminal has."""
    return "\n".join(textwrap.fill(line, _WIDTH) if len(line) > _WIDTH else line for line in text.split("\n"))


def as_json(plan: Plan, change: Change | None = None) -> dict[str, Any]:
    """The same numbers: bytes, seconds, operations."""
    run, grid = plan.run, plan.grid
    return {
        "command": run.command,
        "device": plan.device.name,
        "layout": {name: getattr(grid, name) for name in ("tensor", "pipeline", "virtual", "data", "sequence")}
        | {"distributed_optimizer": grid.distributed_optimizer},
        "parameters": {
            role.name: {
                "model": plan.parameters(role.name)[0],
                "by_stage": [count(stage) for stage in plan.parameters(role.name)[1]],
            }
            for role in run.roles
        },
        "memory": {
            "capacity": plan.memory.capacity,
            "peaks": [
                {"phase": peak.phase, "stage": peak.stage, "total": peak.total, **peak.kinds}
                for peak in plan.memory.peaks
            ],
        },
        "fits": plan.fits,
        "tight": plan.memory.tight,
        "notes": list(plan.notes),
        "options": plan.options,
        "relief": list(plan.relief),
        "problems": list(plan.problems),
        "nearest_change": change.describe() if change else None,
        "checkpoint_bytes": plan.checkpoint,
        "disk_bytes": plan.disk,
        "host_bytes_of_a_save": plan.host,
        "host_bytes_of_offload": plan.offloaded,
        "host_bytes_of_a_node": plan.host_of_a_node,
        "phases": {name: _cost_json(cost) for name, cost in (plan.cost or {}).items()},
        "seconds_of_an_iteration": plan.seconds if plan.cost else None,
        "bubble": plan.bubble if plan.cost else None,
        "run": _total_json(plan, whole) if (whole := total(plan)) else None,
    }


def _head(plan: Plan) -> str:
    run, lengths = plan.run, plan.run.lengths
    tokens = f"{lengths.prompt} + {lengths.response} tokens" if lengths.prompt else f"{lengths.response} tokens"
    longest = f", {lengths.longest} at most" if lengths.longest != lengths.usual else ""
    sharded = plan.grid.distributed_optimizer and plan.grid.data > 1
    return (
        f"{run.command} on {plan.grid.world} x {plan.device.name}: {plan.grid.describe()}, "
        f"{'bfloat16' if plan.width == 2 else 'float32'}, optimizer "
        f"{'sharded over data-parallel ranks' if sharded else 'whole on each rank'}\n"
        f"sequences of {tokens}{longest}\n" + "\n".join([_ways(plan), *plan.notes])
    )


def _parameters(plan: Plan) -> str:
    lines = [f"{'parameters':<14}{'model':>16}  on a rank, by stage"]
    for role in plan.run.roles:
        whole, stages = plan.parameters(role.name)
        by_stage = ", ".join(f"{count(stage):,}" for stage in _ends(stages))
        frozen = "" if role.trained else "  (frozen)"
        lines.append(f"{role.name:<14}{whole:>16,}  {by_stage}{frozen}")
    return "\n".join(lines)


def _ends(stages: list[Any]) -> list[Any]:
    """Stages between the first and the last are alike."""
    return stages if len(stages) < 4 else [*stages[:2], stages[-1]]


#: What the columns of the memory table are called, where it is not the name of the kind.
HEADS = {"kv_cache": "kv cache", "communication": "sent on", "temporaries": "scratch"}


def _memory(plan: Plan) -> str:
    kinds = [kind for kind in KINDS if any(peak.kinds[kind] for peak in plan.memory.peaks)]
    heads = "".join(f"  {HEADS.get(kind, kind)}" for kind in kinds)
    lines = [f"{'GiB at the peak':<18}{'stage':>6}{heads}{'total':>9}"]
    for phase in plan.memory.phases:
        peak = plan.memory.of(phase)
        numbers = "".join(f"{peak.kinds[kind] / _GIB:>{len(HEADS.get(kind, kind)) + 2}.2f}" for kind in kinds)
        lines.append(f"{phase:<18}{peak.stage:>6}{numbers}{peak.total / _GIB:>9.2f}")
    return "\n".join(lines)


def _room(plan: Plan) -> str:
    return (
        f"{size(plan.memory.capacity)} of a GPU's {size(plan.device.memory)} ({rates.RESERVED / _GIB:.0f} GiB for "
        f"CUDA and NCCL and {rates.FRAGMENTED:.0%} for fragmentation are set aside)"
    )


def reasons(plan: Plan) -> list[str]:
    """Why a plan does not fit, a sentence each; none where it does."""
    said, worst = list(plan.problems), plan.memory.worst
    if not plan.memory.fits:
        said.append(f"It does not fit: {size(worst.total)} in the {worst.phase}, and there are {_room(plan)}.")
    return said


def _verdict(plan: Plan, change: Change | None) -> str:
    worst = plan.memory.worst
    if not plan.memory.capacity:
        return f"The most that lies together is {size(worst.total)}, in the {worst.phase}."
    if plan.fits:
        fits = f"{size(worst.total)} at most, in the {worst.phase}, and there are {_room(plan)}."
        if not plan.memory.tight:
            return f"It fits: {fits}"
        return (
            f"It fits tightly: {fits} Planned peaks were up to {UNCERTAIN:.1%} off measured ones, and what is set "
            "aside is assumed: leave more room."
        )
    said = reasons(plan)
    if change:
        said.append(
            f"The nearest change that fits: {change.describe()}, {size(change.plan.memory.worst.total)} at most"
            f"{host_of(change.plan)}."
        )
    else:
        said.append(
            "No two changes of parallel sizes, parts of a batch, recomputation and offload make it fit, on up to 16 "
            "times the GPUs."
        )
    return "\n".join(said)


def _room_elsewhere(plan: Plan) -> str:
    """On the disk, and in the host's memory."""
    keep, ranks = plan.run.config.checkpoint.keep, min(plan.grid.world, plan.grid.node)
    said = [
        f"checkpoint {size(plan.checkpoint)}; disk for checkpoint.keep={keep} and the one being written "
        f"{size(plan.disk)}"
    ]
    if plan.memory.offloaded:
        place = "page-locked memory of the host" if plan.device.cuda else "files in the run folder"
        said.append(f"memory.offload keeps {size(plan.memory.offloaded)} for each rank in {place}, all the time")
    if plan.host:  # On a CPU a save that is waited for copies nothing.
        said.append(f"host memory of a save, each rank, up to {size(plan.host)}")
    if plan.host_of_a_node:
        said.append(f"host memory of a node with {ranks} ranks, up to {size(plan.host_of_a_node)}")
    return "\n".join(said)


def _cost(plan: Plan, cost: dict[str, Cost]) -> str:
    lines = [f"{'one iteration':<20}{'s':>9}{'PFLOP':>10}{'bubble s':>10}{'links s':>9}  GB a rank sends"]
    for name, one in cost.items():
        grid = plan.grid.of(name not in ("reference_logprob", "rewards"))
        sent = [_sent(grid, group, value) for group, value in one.sent.items() if value]
        numbers = f"{number(one.seconds):>9}{number(one.flops / 1e15):>10}{number(one.bubble):>10}"
        lines.append(f"{name:<20}{numbers}{number(one.exchange):>9}  {', '.join(sent)}".rstrip())
    said = f"{number(plan.seconds)} s, checkpoints aside"
    if rates_said := _throughput(plan):
        said += f": {rates_said}"
    ends = [f"an iteration takes {said}", *([_total(plan, whole)] if (whole := total(plan)) else []), *_assumed(plan)]
    return "\n".join([*lines, *map(_wrapped, ends)])


def _total(plan: Plan, whole: Total) -> str:
    parts = [f"{whole.iterations:,} iterations {duration(whole.training)}"]
    if whole.evaluations:
        parts.append(f"{whole.evaluations:,} evaluations {duration(whole.evaluating)}")
    parts.append(f"{whole.saves:,} checkpoint{'s' * (whole.saves > 1)} {duration(whole.saving)}")
    spent = whole.seconds / 3600 * plan.grid.world
    uncounted = "starts and failures" if whole.evaluations else "starts, evaluations and failures"
    return (
        f"the run takes {duration(whole.seconds)}, {spent:,.0f} GPU-hours: {', '.join(parts)}; {uncounted} are not "
        "counted"
    )


def _total_json(plan: Plan, whole: Total) -> dict[str, Any]:
    return {
        "seconds": whole.seconds, "gpu_hours": whole.seconds / 3600 * plan.grid.world,
        "iterations": whole.iterations, "seconds_of_iterations": whole.training,
        "evaluations": whole.evaluations, "seconds_of_evaluations": whole.evaluating,
        "checkpoints": whole.saves, "seconds_of_checkpoints": whole.saving,
    }  # fmt: skip


def _sent(grid: Grid, group: str, value: float) -> str:
    return f"{group} {value / 1e9:,.1f} ({'network' if grid.crosses_nodes(group) else 'NVLink'})"


def _throughput(plan: Plan) -> str:
    if plan.run.command != "train_gi_ppo" or not plan.seconds:
        return ""
    return f"{plan.rate:,.0f} tokens/s/GPU, prompts counted; bubble {plan.bubble:.0%} of the updates"


def _assumed(plan: Plan) -> Iterator[str]:
    yield (
        f"assumed: {plan.utilisation:.0%} of {plan.device.flops / 1e12:,.0f} bf16 TFLOP/s, {rates.MEMORY_SHARE:.0%} of "
        f"{plan.device.bandwidth / 1e12:.2f} TB/s, {rates.LINK_SHARE:.0%} of NVLink's {plan.device.nvlink / 1e9:.0f} "
        f"and the network's {plan.device.network / 1e9:.0f} GB/s, {rates.LAUNCH * 1e6:.0f} us a kernel started by the "
        f"host, {rates.DISK / 1e9:.0f} GB/s of each writing rank; docs/planning.md has the sources"
    )


def _cost_json(cost: Cost) -> dict[str, Any]:
    return {
        "seconds": cost.seconds, "flops": cost.flops, "compute_seconds": cost.compute,
        "bubble_seconds": cost.bubble, "exchange_seconds": cost.exchange, "sent_bytes": cost.sent,
    }  # fmt: skip
