"""Operations, bytes on the links and seconds of each phase.

Arithmetic takes its operations over `utilisation` of the device's bf16 peak; collectives take their bytes over a share
of the link's rate. Only the sums and gathers of the data-parallel ranks are hidden behind arithmetic, where
parallel.overlap says so: as far as one micro-batch takes, because they wait for the last. A pass takes
at least the time that the host needs to start its kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from gipo_mc.models.shape import ModelShape
from gipo_mc.plan import hardware as rates
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.hardware import OURS, Hardware, Program
from gipo_mc.plan.memory import rows_at_a_time
from gipo_mc.plan.offload import kinds_of, moved_bytes
from gipo_mc.plan.parameters import Role, count, embedding, stage_parameters
from gipo_mc.plan.run import Pass, Run
from gipo_mc.plan.state import FLOAT, checkpoint_bytes, model_state


@dataclass(frozen=True)
class Cost:
    """Of one phase. All by the busiest rank, but `flops`, which is of all ranks.

    flops: operations of matrix products and attention. compute: seconds of arithmetic, memory and host. bubble: seconds
    in which a stage waits for others. sent: bytes that a rank sends, by process group. exchange: seconds of that.
    """

    flops: float = 0.0
    compute: float = 0.0
    bubble: float = 0.0
    sent: dict[str, float] = field(default_factory=dict)
    exchange: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compute + self.bubble + self.exchange

    def __add__(self, other: Cost) -> Cost:
        names = {*self.sent, *other.sent}
        sent = {name: self.sent.get(name, 0.0) + other.sent.get(name, 0.0) for name in sorted(names)}
        return Cost(
            self.flops + other.flops, self.compute + other.compute, self.bubble + other.bubble, sent,
            self.exchange + other.exchange,
        )  # fmt: skip


def costs(
    run: Run,
    grid: Grid,
    device: Hardware,
    width: int,
    utilisation: float,
    program: Program = OURS,
    *,
    pages: float = math.inf,
) -> dict[str, Cost]:
    """Phase -> its cost in one iteration, under the names that a run logs as time/<phase>, and "save". pages: those of
    the KV cache on a rank."""
    counter = _Counter(run, grid, device, width, utilisation, program)
    found = {"rollout": counter.rollout(pages)} if run.command == "train_gi_ppo" else {}
    for name, passes in run.phases(grid, longest=False).items():
        total = Cost()
        for one in dict.fromkeys(passes):
            total = total + _times(counter.of_pass(one), passes.count(one))
        found[name] = total
    if kinds_of(run):
        found["offload"] = Cost(compute=moved_bytes(run, grid, width) / (rates.LINK_SHARE * device.host))
    found["save"] = counter.save()
    return found


def _times(cost: Cost, number: int) -> Cost:
    return replace(
        cost, flops=cost.flops * number, compute=cost.compute * number, bubble=cost.bubble * number,
        sent={name: sent * number for name, sent in cost.sent.items()}, exchange=cost.exchange * number,
    )  # fmt: skip


def flops_of_token(role: Role, seen: float, *, projected: float = 0.0) -> float:
    """Forward operations of one token that attends to `seen` others on average; `projected`: share of tokens whose
    logits are made."""
    shape = role.shape
    matrices = shape.layers * layer_weights(shape) + projected * shape.vocab_size * shape.hidden_size
    attention = 2 * shape.layers * shape.heads * shape.head_dim * seen  # queries on keys, and weights on values
    return 2.0 * (matrices + attention)


def layer_weights(shape: ModelShape) -> int:
    """Numbers in the matrices of a layer."""
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return shape.hidden_size * (heads + 3 * shape.intermediate_size)


@dataclass(frozen=True)
class _Counter:
    run: Run
    grid: Grid
    device: Hardware
    width: int
    utilisation: float
    program: Program

    def of_pass(self, one: Pass) -> Cost:
        """All micro-batches of one pass, and the optimizer step behind it."""
        own = self.grid.of(one.role.trained)
        if own is not self.grid:
            return replace(self, grid=own).of_pass(one)
        grid, shape, ways = self.grid, one.role.shape, 3 if one.backward else 1
        lengths = one.parts[0][1]
        share = sum(rows * response for rows, _, response in one.parts) / one.tokens if one.logits else 0.0
        each = flops_of_token(one.role, lengths / 2, projected=share)
        flops = ways * each * one.tokens * grid.data
        if one.backward and self.run.config.memory.recompute == "full":
            flops += flops_of_token(one.role, lengths / 2) * one.tokens * grid.data
        # The first and the last stage hold more than others; a stage's share is taken as equal.
        busy = flops / grid.world / (self.utilisation * self.device.flops)
        launches = rates.LAUNCHES_BOTH if one.backward else rates.LAUNCHES_FORWARD
        host = len(one.parts) * shape.layers / grid.pipeline * launches * rates.LAUNCH
        alone = len(one.parts) * shape.layers / grid.pipeline * (2 if one.backward else 1) * self.program.layer
        compute = max(busy, host) + alone
        layers = self._layers(one, ways)
        # With V chunks on a rank the first micro-batch passes all ranks in 1/V of the time (arXiv 2104.04473).
        bubble = (grid.pipeline - 1) / (grid.virtual * len(one.parts)) * (compute + layers.exchange)
        cost = Cost(flops, compute, bubble) + layers + self._hops(one)
        if not one.backward:
            return cost
        hidden = compute / len(one.parts) if grid.overlap and grid.data > 1 else 0.0
        step = self._step(one.role)
        return cost + replace(step, exchange=max(step.exchange - hidden, 0.0))

    def _layers(self, one: Pass, ways: int) -> Cost:
        """Tensor-parallel sums: two in a layer each way. With sequence parallelism a gather and a scatter each, as many
        bytes, and one gather more a sum in the backward pass, for the weights' gradients."""
        grid, shape = self.grid, one.role.shape
        if grid.tensor == 1:
            return Cost()
        states = one.tokens * shape.hidden_size * self.width
        ring = 2 * (grid.tensor - 1) / grid.tensor * states
        again = ways == 3 and self.run.config.memory.recompute == "full"
        sums = 2 * shape.layers / grid.pipeline * ((2 if ways == 3 else 1) + again)
        if grid.sequence and ways == 3:
            sums += shape.layers / grid.pipeline  # two gathers, half a sum each
        calls = sums * len(one.parts)
        found = self._exchange("tensor", ring * sums, calls * grid.tensor)
        if shape.kv_heads < grid.tensor:
            # The projections of all ranks are gathered, and their gradients scattered, in each layer.
            sent = self._gathered(shape, one.tokens)
            gathers = shape.layers / grid.pipeline * ((2 if ways == 3 else 1) + again)
            found = found + self._exchange("tensor", sent * gathers, gathers * len(one.parts) * grid.tensor)
        return found

    def _gathered(self, shape: ModelShape, tokens: float) -> float:
        """Bytes that a rank sends where the projected heads of so many tokens are gathered in a layer."""
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        return (self.grid.tensor - 1) / self.grid.tensor * tokens * width * self.width

    def _hops(self, one: Pass) -> Cost:
        grid = self.grid
        if grid.pipeline == 1:
            return Cost()
        states = one.tokens // grid.sharded_sequence * one.role.shape.hidden_size * self.width
        hops = (2 if one.backward else 1) * grid.virtual
        return self._exchange("pipeline", float(states * hops), hops * len(one.parts))

    def _step(self, role: Role) -> Cost:
        """Gradients summed over the data-parallel ranks in float32, Adam, weights gathered where they are sharded."""
        grid = self.grid
        state = model_state(role, grid, 0, 0, self.width)
        # Adam reads weight, gradient and both moments, and writes three of them; clipping reads gradients once more.
        moved = state.owned * FLOAT * 8 + state.numbers * self.width
        cost = Cost(compute=moved / (rates.MEMORY_SHARE * self.device.bandwidth))
        if role.shape.tied and role.head == "lm" and grid.pipeline > 1:
            # The first and the last stage add up their gradients of the embedding that both hold.
            shared = embedding(role.shape, grid.tensor) * FLOAT
            cost = cost + self._exchange("pipeline", float(shared), 2)
        if grid.data == 1:
            return cost
        ring = (grid.data - 1) / grid.data * state.buffer
        sent = ring * (FLOAT + self.width) if grid.distributed_optimizer else 2 * ring * FLOAT
        return cost + self._exchange("data", sent, 2 * grid.data)

    def rollout(self, pages: float) -> Cost:
        """Prompts first, then a token at a time: each step reads the stage's weights and the keys and values so far."""
        run, grid, device = self.run, self.grid, self.device
        role, lengths, settings = run.roles[0], run.lengths, run.config.rollout
        shape = role.shape
        rows, _ = run.generated(grid)
        slots = rows_at_a_time(run, grid, pages if self.program.reserves else math.inf)
        prompts = -(-rows // settings.samples_per_prompt)
        flops = flops_of_token(role, lengths.prompt / 2) * lengths.prompt * prompts
        prefill = flops / (grid.tensor * grid.pipeline) / (self.utilisation * device.flops)
        # Rows end one by one and others take their slots; the last ones of a batch are as long as allowed.
        steps = max(lengths.longest_response, rows * lengths.response / slots)
        active = rows * lengths.response / steps
        weights = count(stage_parameters(role, replace(grid, pipeline=1), 0))
        if not shape.tied:
            weights -= embedding(shape, grid.tensor)  # a step reads single rows of it
        keys = 2 * shape.layers * shape.kv_heads_on(grid.tensor) * shape.head_dim
        seen = lengths.prompt + lengths.response / 2
        read = (weights + keys / grid.pipeline * seen * active) * self.width / (rates.MEMORY_SHARE * device.bandwidth)
        decode = flops_of_token(role, seen, projected=1.0)
        work = decode * active / grid.tensor / (self.utilisation * device.flops)
        # Of one stage the steps are captured in CUDA graphs; stages of a pipeline start their kernels one by one.
        eager = grid.pipeline > 1 or not self.program.captured
        host = shape.layers * rates.LAUNCHES_CACHED * rates.LAUNCH if eager else 0.0
        # All groups pass all stages in a step, and every stage is busy; each group reads the weights anew.
        compute = prefill + steps * (max(read, work / grid.pipeline, host) + active * self.program.row)
        flops += decode * rows * lengths.response
        cost = Cost(flops * grid.data, compute)
        tokens = lengths.prompt * prompts + lengths.response * rows
        states = tokens * shape.hidden_size * self.width
        if grid.tensor > 1:
            ring = 2 * (grid.tensor - 1) / grid.tensor * states * 2 * shape.layers / grid.pipeline
            cost = cost + self._exchange("tensor", ring, steps * 2 * shape.layers * grid.tensor)
        if shape.kv_heads < grid.tensor:
            sent = self._gathered(shape, tokens) * shape.layers / grid.pipeline
            cost = cost + self._exchange("tensor", sent, steps * shape.layers * grid.tensor)
        if grid.pipeline > 1:
            hops = steps * grid.pipeline * grid.virtual
            cost = cost + self._exchange("pipeline", float(states * grid.virtual), hops)
        return cost

    def save(self) -> Cost:
        """All ranks write, about as much each, and training waits; with checkpoint.async for copies on the host."""
        written = sum(checkpoint_bytes(role, self.grid, self.width) for role in self.run.roles if role.trained)
        behind = self.run.config.checkpoint.asynchronous
        return Cost(compute=written / self.grid.world / (rates.LINK_SHARE * self.device.host if behind else rates.DISK))

    def _exchange(self, group: str, sent: float, hops: float) -> Cost:
        crosses = self.grid.crosses_nodes(group)
        rate = self.device.network if crosses else self.device.nvlink
        latency = rates.LATENCY_NETWORK if crosses else rates.LATENCY_NVLINK
        return Cost(sent={group: sent}, exchange=sent / (rates.LINK_SHARE * rate) + hops * latency)
