"""The loop of a batch: in a tick each stage runs one job, and the job that leaves the last stage gets its tokens.

The stages of an interleaved pipeline are its chunks of layers, `layout.virtual` on each rank: stage s is on rank s
modulo the ranks of the pipeline. With no more groups of slots than ranks, a rank still runs one job in a tick.
"""

from __future__ import annotations

from collections import Counter, deque

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.errors import NumericsError
from gipo_mc.generation.engine import Progress
from gipo_mc.generation.schedule import Job, Prefill, Schedule
from gipo_mc.generation.stage_work import StageWork
from gipo_mc.models.kv_cache import page_bytes

#: What `Ticks.run` counts; a replica without prompts says that it took none of them.
COUNTS = ("positions", "prefill_passes", "prefill_tokens", "decode_tokens", "kv_cache_gib")


class Ticks:
    """One batch on one rank. Same course on every rank of the replica.

    look_every: positions that a group decodes before the host looks who has ended.
    """

    def __init__(self, work: StageWork, schedule: Schedule, look_every: int, on_step: Progress | None = None) -> None:
        self._work, self._schedule, self._look_every, self._on_step = work, schedule, look_every, on_step
        self._done = 0
        self._since_look: Counter[int] = Counter()
        self._read: dict[int, int] = {}  # tokens of each row that were searched for stop strings
        self._counts: Counter[str] = Counter()

    def run(self) -> dict[str, float]:
        """Until every row has ended. Returns what it took, see `Generated.counts`. Raises NumericsError."""
        work, schedule, layout = self._work, self._schedule, self._work.layout
        stages = layout.pipeline * layout.virtual
        in_flight: deque[Job | None] = deque([None] * stages, maxlen=stages)  # newest first
        received: dict[int, Tensor] = {}
        tick = 0
        while not schedule.is_over:
            group = tick % stages
            job = schedule.next_job(group) if group < schedule.groups else None
            if job is not None:
                work.admit(job)
                self._count(job)
            in_flight.appendleft(job)
            leaving = in_flight[-1]
            if layout.pipeline == 1:
                assert job is not None, "a batch that is not over has something to do"
                work.run_alone(job, schedule.prompts)
            else:
                states = {
                    stage: work.run(job, schedule.prompts, received.get(stage), stage // layout.pipeline)
                    for stage, job in enumerate(in_flight)
                    if job is not None and stage % layout.pipeline == layout.pipeline_rank
                }
                received = self._pass_on(states, list(in_flight))
                if leaving is not None:
                    work.finish(leaving, states.get(stages - 1))
            if leaving is not None:
                self._look(leaving)
            tick += 1
        return self._result()

    def _pass_on(self, states: dict[int, Tensor], in_flight: list[Job | None]) -> dict[int, Tensor]:
        """The states [N, H] of each stage to the next one: those of this rank's stages in, those for them out."""
        layout, config = self._work.layout, self._work.model.config
        group = parallel_state.get_pipeline_model_parallel_group()
        following = parallel_state.get_pipeline_model_parallel_next_rank()
        previous = parallel_state.get_pipeline_model_parallel_prev_rank()
        transfers, received = [], {}
        for stage, states_NH in states.items():
            if stage + 1 < len(in_flight):
                sent = states_NH.to(config.pipeline_dtype).contiguous()
                transfers.append(dist.P2POp(dist.isend, sent, following, group=group))
        for stage, job in enumerate(in_flight[:-1], 1):
            if job is not None and stage % layout.pipeline == layout.pipeline_rank:
                size = (self._schedule.tokens(job), config.hidden_size)
                received[stage] = torch.empty(size, dtype=config.pipeline_dtype, device=layout.device)
                transfers.append(dist.P2POp(dist.irecv, received[stage], previous, group=group))
        if transfers:
            for transfer in dist.batch_isend_irecv(transfers):
                transfer.wait()
        return received

    def _look(self, job: Job) -> None:
        """See who has ended, every few positions; at the latest when a row is as long as allowed."""
        self._since_look[job.group] += 1
        if self._since_look[job.group] < self._look_every and not self._schedule.is_due(job):
            return
        self._since_look[job.group] = 0
        rows, state = job.all_rows, self._work.rows
        index = torch.tensor(rows, device=state.length_B.device)
        if state.sampling.stop is not None:
            self._stop_on_strings(rows, index)
        finished, broken = torch.stack([state.finished_B[index], state.broken_B[index]]).tolist()
        if any(broken):
            position = int((state.prompt_length_B + state.length_B)[index[broken.index(True)]])
            raise NumericsError(
                f"The model's logits are not finite after {position} tokens, in {sum(broken)} of {len(rows)} "
                "responses: its weights have diverged or are damaged. Go back to an earlier checkpoint, and train "
                "with a lower learning rate."
            )
        ended = [row for row, is_finished in zip(rows, finished, strict=True) if is_finished]
        self._schedule.end(ended)
        self._done += len(ended)
        if self._on_step is not None:
            self._on_step(self._done, len(self._schedule.prompts))

    def _stop_on_strings(self, rows: list[int], index: Tensor) -> None:
        """End rows whose text completes a stop string: at the first token that does, whatever came after it."""
        state = self._work.rows
        stop = state.sampling.stop
        assert stop is not None
        lengths, responses = state.length_B[index].tolist(), state.response_BT[index].tolist()
        for row, length, ids in zip(rows, lengths, responses, strict=True):
            seen = self._read.get(row, 0)
            for count in range(seen + 1, length + 1):
                if stop(ids[:count]):
                    state.stop(row, count)
                    break
            self._read[row] = length

    def _count(self, job: Job) -> None:
        kind = "prefill" if isinstance(job, Prefill) else "decode"
        self._counts[f"{kind}_passes"] += 1
        self._counts[f"{kind}_tokens"] += self._schedule.tokens(job)

    def _result(self) -> dict[str, float]:
        work, counts = self._work, self._counts
        each = page_bytes(work.model.shape, work.layout, work.model.config.params_dtype)
        found = (
            counts["decode_passes"] / self._schedule.groups,
            counts["prefill_passes"] / self._schedule.groups,
            float(counts["prefill_tokens"]),
            float(counts["decode_tokens"]),
            self._schedule.pages.most_held * each / 2**30,
        )
        return dict(zip(COUNTS, found, strict=True))
