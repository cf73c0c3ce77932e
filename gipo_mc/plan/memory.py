"""Memory of each stage at its peak, by phase and kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gipo_mc.plan.activations import Activations
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.hardware import FRAGMENTED, RESERVED, Hardware
from gipo_mc.plan.offload import copied_by_saves, host_bytes, kinds_of, state_on_device
from gipo_mc.plan.parameters import Role, count, stage_parameters
from gipo_mc.plan.run import Pass, Run
from gipo_mc.plan.state import FLOAT, ModelState, model_state

KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "kv_cache", "communication", "temporaries")
#: Positions of a page of the KV cache, `gipo_mc.models.kv_cache.PAGE`; prompt tokens of a prefill pass and the share
#: of free memory that the cache may take, `gipo_mc.generation.memory`. Those modules import torch; a test compares.
PAGE, PREFILL, CACHE_SHARE = 16, {True: 8192, False: 256}, 0.5
#: Share by which planned peaks were off measured ones at most (docs/planning.md, a test compares).
UNCERTAIN = 0.042
#: Phases of the plan, and the phases of an iteration in each.
SCORING = ("behaviour_logprob", "reference_logprob", "values", "rewards")


@dataclass(frozen=True)
class Peak:
    """Bytes that lie together on a rank of one stage at the worst moment of a phase, by kind (`KINDS`)."""

    phase: str
    stage: int
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Memory:
    """All peaks. capacity: bytes that a device offers to tensors; 0: not judged."""

    peaks: list[Peak]
    capacity: float
    #: Bytes that the KV cache may take on a rank, and the least it can do with: one sequence.
    cache_limit: float = math.inf
    cache_least: int = 0
    #: Pages of the KV cache that a rank has room for, those of one sequence at least.
    cache_pages: float = math.inf
    #: Bytes on the host that memory.offload keeps for a rank, of the stage with the most.
    offloaded: int = 0

    @property
    def worst(self) -> Peak:
        return max(self.peaks, key=lambda peak: peak.total)

    @property
    def fits(self) -> bool:
        return not self.capacity or self.worst.total <= self.capacity

    @property
    def tight(self) -> bool:
        """Does it fit, but by less than a planned peak may be wrong?"""
        return self.fits and 0 < self.capacity < self.worst.total * (1 + UNCERTAIN)

    def of(self, phase: str) -> Peak:
        """The largest peak of a phase over the stages."""
        return max((peak for peak in self.peaks if peak.phase == phase), key=lambda peak: peak.total)

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(peak.phase for peak in self.peaks))


def capacity(device: Hardware) -> float:
    """Bytes that tensors may take."""
    return (device.memory - RESERVED) * (1 - FRAGMENTED) if device.memory else 0.0


def memory(run: Run, grid: Grid, device: Hardware, width: int) -> Memory:
    """Peaks of all stages."""
    phases, room = run.phases(grid, longest=True), capacity(device)
    stages = [_Stage(run, grid, device, width, stage, room) for stage in range(grid.pipeline)]
    peaks = [peak for stage in stages for peak in stage.peaks(phases)]
    limit, least = min(stage.cache_limit for stage in stages), stages[0].cache_least
    page = least // max(stages[0].pages_of_a_sequence, 1)
    pages = max(limit // page, stages[0].pages_of_a_sequence) if page and limit < math.inf else math.inf
    return Memory(peaks, room, limit, least, pages, max(stage.offloaded for stage in stages))


def rows_at_a_time(run: Run, grid: Grid, pages: float) -> float:
    """Rows that a replica generates at a time on average, in a KV cache of so many pages. A row waits for a slot and
    for the pages of its longest response; samples of a prompt share its full pages (`gipo_mc.generation.schedule`)."""
    _, slots = run.generated(grid)
    prompt, samples = run.lengths.prompt, run.config.rollout.samples_per_prompt
    each = -(-(prompt + run.lengths.longest_response) // PAGE) - prompt // PAGE * (samples - 1) / samples
    return min(slots, max(pages / each, 1.0))


class _Stage:
    """One stage of all models."""

    def __init__(self, run: Run, grid: Grid, device: Hardware, width: int, stage: int, room: float) -> None:
        self._run, self._grid, self._width, self._number = run, grid, width, stage
        self._cuda, self._last = device.cuda, stage == grid.pipeline - 1
        self._states = {role.name: self._state(role) for role in run.roles}
        self.offloaded = host_bytes(run, self._states)
        self.pages_of_a_sequence = -(-run.lengths.longest // PAGE)
        held = sum(state_on_device(run, self._states, "rollout").values())
        _, self._slots = run.generated(grid)
        self.cache_least = self._cache = 0
        self.cache_limit = math.inf
        if run.command == "train_gi_ppo":
            self.cache_least = self._bytes_of_rows(1)
            free = CACHE_SHARE * max(room - held, 0.0) if room else math.inf
            self.cache_limit = run.config.rollout.kv_cache_gib * 2**30 or free
            self._cache = int(max(min(self._bytes_of_rows(self._slots), self.cache_limit), self.cache_least))

    def _state(self, role: Role) -> ModelState:
        """Of a frozen model in a layout of its own: the largest stage's, wherever this rank stands there."""
        own = self._grid.of(role.trained)
        if own is self._grid:
            return model_state(role, own, self._number, 0, self._width)
        stages = (model_state(role, own, stage, 0, self._width) for stage in range(own.pipeline))
        return max(stages, key=lambda state: state.weights)

    def _bytes_of_rows(self, rows: int) -> int:
        shape, grid = self._run.roles[0].shape, self._grid
        page = 2 * (shape.layers // grid.pipeline) * shape.kv_heads_on(grid.tensor) * PAGE * shape.head_dim
        return rows * self.pages_of_a_sequence * page * self._width

    def peaks(self, phases: dict[str, list[Pass]]) -> list[Peak]:
        """Of every phase, in the order of an iteration."""
        if self._run.command != "train_gi_ppo":
            found = []
            if "reference_logprob" in phases:
                found.append(self._peak("reference scoring", self._passes(phases["reference_logprob"])))
            gone = ("reference",)  # DPO frees it once it has scored the pairs
            return [*found, self._peak("update", self._passes(phases["update"]), gone), self._save(gone)]
        scoring = [one for name in SCORING for one in phases.get(name, [])]
        return [
            self._peak("rollout", self._rollout()),
            self._peak("scoring", self._passes(scoring)),
            *(
                [self._peak("critic update", self._passes(phases["update_critic"]))]
                if "update_critic" in phases
                else []
            ),
            self._peak("policy update", self._passes(phases["update_policy"])),
            self._save(()),
        ]

    def _peak(self, phase: str, extra: dict[str, int], gone: tuple[str, ...] = ()) -> Peak:
        kinds = dict.fromkeys(KINDS, 0)
        kinds |= state_on_device(self._run, {n: s for n, s in self._states.items() if n not in gone}, phase)
        if self._cuda and "idle" not in kinds_of(self._run):
            kinds["kv_cache"] = self._cache  # kept between iterations there
        for kind, value in extra.items():
            kinds[kind] = value
        return Peak(phase, self._number, kinds)

    def _rollout(self) -> dict[str, int]:
        policy, settings = self._run.roles[0], self._run.config.rollout
        act = self._activations(policy)
        prefill = settings.prefill_tokens or PREFILL[self._cuda]
        rows = -(-self._slots // self._grid.pipeline)
        tokens = min(max(prefill, self._run.lengths.longest_prompt), rows * self._run.lengths.longest_prompt)
        found = act.generation(tokens, rows)
        if not self._last:
            found["logits"] = 0
        hops = 2 * max(tokens, rows) * policy.shape.hidden_size * self._width if self._grid.pipeline > 1 else 0
        return {**found, "kv_cache": self._cache, "communication": hops}

    def _passes(self, passes: list[Pass]) -> dict[str, int]:
        """The worst of these passes, and the optimizer step behind them."""
        candidates = [self._pass(one) for one in dict.fromkeys(passes)]
        candidates += [self._step(self._states[one.role.name]) for one in passes if one.backward]
        return max(candidates, key=lambda found: sum(found.values()))

    def _pass(self, one: Pass) -> dict[str, int]:
        act, grid = self._activations(one.role), self._grid.of(one.role.trained)
        last = self._last or grid is not self._grid
        tokens = max(rows * length for rows, length, _ in one.parts)
        responses = max(rows * response for rows, _, response in one.parts)
        logit_rows = self._run.config.parallel.logit_rows
        head = {"activations": 0, "logits": 0}
        if last:
            head = act.head(responses, logit_rows, logits=one.logits, backward=one.backward)
        hops = 2 * act.states(tokens) if grid.pipeline > 1 else 0
        if not one.backward:
            hidden = tokens * one.role.shape.hidden_size * self._width if last else 0
            layer, top = act.forward_of_layer(tokens), hidden + sum(head.values())
            if layer >= top:
                return {"activations": layer, "communication": hops}
            return {"activations": hidden + head["activations"], "logits": head["logits"], "communication": hops}
        kept = self._kept(act, tokens, len(one.parts))
        layer = act.backward_of_layer(tokens)
        if sum(head.values()) > layer:
            return {"activations": kept + head["activations"], "logits": head["logits"], "communication": hops}
        # The head's own are gone by then, and there is the gradient of the hidden states.
        hidden = act.states(tokens) if last else 0
        return {"activations": kept + hidden, "temporaries": layer, "communication": hops}

    def _kept(self, act: Activations, tokens: int, parts: int) -> int:
        """By the micro-batches that have passed this rank and wait for their backward pass."""
        grid = self._grid
        if grid.virtual == 1:
            return min(grid.pipeline - self._number, parts) * act.kept_by_stage(tokens, last=self._last)
        # Passes through a chunk, in Megatron's interleaved schedule, of as many real ones as there are. Nothing that
        # was sent is freed before.
        waiting = 2 * (grid.pipeline - self._number - 1) + (grid.virtual - 1) * grid.pipeline + 1
        chunk = act.kept_by_stage(tokens, last=False) // grid.virtual + act.states(tokens)
        ends = (act.kept_by_stage(tokens, last=True) - act.kept_by_stage(tokens, last=False)) if self._last else 0
        return min(waiting, parts * grid.virtual) * chunk + min(grid.pipeline, parts) * ends

    def _step(self, state: ModelState) -> dict[str, int]:
        """torch's AdamW: on CUDA for all parameters at once, on a CPU one by one."""
        return {"temporaries": state.owned * FLOAT if self._cuda else 2 * state.largest * FLOAT}

    def _save(self, gone: tuple[str, ...]) -> Peak:
        """Each rank writes its state from where it lies (`gipo_mc.parallel.saving`); where parts of trained models
        leave, from copies on the host, which on a CPU device lie in the same memory."""
        extra = 0
        if not self._cuda and copied_by_saves(self._run):
            trained = [role for role in self._run.roles if role.trained]
            extra = sum(self._states[role.name].weights + self._states[role.name].optimizer for role in trained)
        return self._peak("save", {"temporaries": extra}, gone)

    def _activations(self, role: Role) -> Activations:
        config = self._run.config
        return Activations(
            role.shape,
            self._grid.of(role.trained),
            self._width,
            self._cuda,
            self._run.lengths.longest,
            config.memory.recompute,
            config.precision.fp32_logits,
        )


def copies_of_a_save(run: Run, role: Role, grid: Grid, width: int, device: Hardware) -> int:
    """Bytes of host memory that a save of one model takes on a rank of the first stage, at most.

    A rank writes two files at once, each from a copy of one tensor where that is on a GPU. With checkpoint.async it has
    copied all that it writes; on a CPU device the system copies what training changes. Where parts of trained models
    leave the device, all that the rank has of the model is copied, until it is written.
    """
    parameters = stage_parameters(role, grid, 0)
    if copied_by_saves(run):
        state = model_state(role, grid, 0, 0, width)
        return state.weights + state.optimizer
    if not run.config.checkpoint.asynchronous:
        return 2 * FLOAT * max(one.numel for one in parameters) if device.cuda else 0
    if not device.cuda:
        optimizer = count(parameters) * FLOAT * (3 if width == 2 else 2)
        return count(parameters) * (width + FLOAT) + optimizer // (grid.data if grid.distributed_optimizer else 1)
    masters = grid.distributed_optimizer or width == 2
    return count(parameters) * (width + FLOAT * (3 if masters else 2)) // grid.data
