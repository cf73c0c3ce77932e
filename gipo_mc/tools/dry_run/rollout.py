"""The schedule of generation on one stage of a pipeline, stepped with a stand-in for its layers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from gipo_mc.generation.schedule import Decode, Job, Schedule
from gipo_mc.generation.ticks import Ticks
from gipo_mc.models.kv_cache import pages_for
from gipo_mc.parallel.megatron.pretend import META, Exchange, Pretence
from gipo_mc.plan.memory import PREFILL
from gipo_mc.plan.plan import Plan

#: Longest response that is stepped, and rows: what comes after is more of the same.
TOKENS, ROWS = 6, 32


class _Work:
    """In the place of `StageWork`: responses of known lengths, states of which only the shape is there."""

    def __init__(self, pretence: Pretence, plan: Plan, lengths: Sequence[int]) -> None:
        self.layout, shape = pretence.layout, plan.run.roles[0].shape
        dtype = torch.bfloat16 if plan.width == 2 else torch.float32
        config = SimpleNamespace(pipeline_dtype=dtype, params_dtype=dtype, hidden_size=shape.hidden_size)
        self.model = SimpleNamespace(config=config, shape=shape)
        self._lengths = torch.tensor(lengths, device="cpu")
        zeros = torch.zeros(len(lengths), dtype=torch.int64, device="cpu")
        self.rows = SimpleNamespace(
            length_B=zeros, prompt_length_B=zeros, broken_B=zeros > 0, finished_B=zeros > 0,
            sampling=SimpleNamespace(stop=None),
        )  # fmt: skip

    def admit(self, job: Job) -> None:
        """There is no cache."""

    def run(self, job: Job, prompts: Sequence[Sequence[int]], received_NH: Tensor | None, number: int = 0) -> Tensor:
        """States of every token of a job, of any chunk of layers."""
        tokens = len(job.rows) if isinstance(job, Decode) else sum(len(prompts[rows[0]]) for rows in job.rows)
        return torch.empty(tokens, self.model.config.hidden_size, dtype=self.model.config.pipeline_dtype, device=META)

    def finish(self, job: Job, states_nH: Tensor | None) -> None:
        """One token more for the rows of a job."""
        rows = torch.tensor(job.all_rows, device="cpu")
        self.rows.length_B = self.rows.length_B.index_add(0, rows, torch.ones_like(rows))
        self.rows.finished_B = self.rows.length_B >= self._lengths


def ticks_of(pretence: Pretence, plan: Plan) -> tuple[Exchange, ...]:
    """What this stage posts while a replica generates a batch of prompts and responses of many lengths."""
    settings, lengths = plan.run.config.rollout, plan.run.lengths
    rows = min(-(-settings.batch_size // plan.grid.data), ROWS)
    most = min(settings.max_new_tokens, TOKENS)
    prompts = [range(row, row + 1 + (row * 29) % lengths.longest_prompt) for row in range(rows)]
    work = _Work(pretence, plan, [1 + row * 5 % most for row in range(rows)])
    groups = pretence.layout.pipeline
    slots = max(min(settings.slots or rows, rows), min(groups, rows))
    schedule = Schedule(
        prompts, most, slots=slots, pages=slots * pages_for(lengths.longest),
        prefill_tokens=settings.prefill_tokens or PREFILL[True], groups=groups,
    )  # fmt: skip
    pretence.exchanges.clear()
    Ticks(work, schedule, 1).run()  # type: ignore[arg-type]
    return tuple(pretence.exchanges)
