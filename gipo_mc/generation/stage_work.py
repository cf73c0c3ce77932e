"""What one rank does for a job: its stage's forward pass, and with everyone else, the draw of the next tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.generation.graphs import CapturedStep
from gipo_mc.generation.rows import Rows
from gipo_mc.generation.schedule import Decode, Job, Prefill
from gipo_mc.models.cached_forward import CachedForward, Tokens
from gipo_mc.models.kv_cache import KVCache
from gipo_mc.models.stage import StageModel
from gipo_mc.ops.sampling import sample
from gipo_mc.parallel.collectives import gather_in_rank_order


class StageWork:
    """One rank's part of a batch. Every rank of the replica is given the same jobs.

    capture: run decoding steps as CUDA graphs, one for each number of rows that was met (rounded up); for a model of
        one stage.
    """

    def __init__(self, model: StageModel, rows: Rows, cache: KVCache, longest: int, *, capture: bool = False) -> None:
        self.model, self.layout, self.rows, self.cache = model, model.layout, rows, cache
        self.chunks: list[CachedForward] = []
        for _, chunk in model.named_chunks():
            first = self.chunks[-1].layers.stop if self.chunks else 0
            self.chunks.append(CachedForward(chunk, longest, first))
        self._captured = CapturedStep(self._decode, cache.slots, rows.nobody) if capture else None

    def admit(self, job: Job) -> None:
        """Before the first stage sees a job: new sequences get their pages."""
        if isinstance(job, Prefill):
            self.cache.give(list(job.pages), list(job.pages.values()))

    def run(self, job: Job, prompts: Sequence[Sequence[int]], received_NH: Tensor | None, number: int = 0) -> Tensor:
        """The states of chunk `number` of this stage for a job, [N, H]; of the last chunk of the model [n, H], of the
        prompts' or rows' newest tokens."""
        chunk = self.chunks[number]
        if isinstance(job, Decode):
            row_n, slot_n = self._index(job.rows), self._index(job.slots)
            return chunk(self._newest(row_n, slot_n), received_NH, self.cache)
        states_NH = chunk(self._whole_prompts(job, prompts), received_NH, self.cache)
        if job.copies:
            sources, targets = zip(*job.copies, strict=True)
            self.cache.copy(sources, targets, chunk.layers)
        return states_NH

    def finish(self, job: Job, states_nH: Tensor | None) -> None:
        """Draw the next token of every row of a job that has passed all stages. states_nH: on the last stage."""
        shared_n = None
        if isinstance(job, Prefill) and any(len(rows) > 1 for rows in job.rows):
            shared_n = self._index([prompt for prompt, rows in enumerate(job.rows) for _ in rows])
        self._draw(self._index(job.all_rows), states_nH, shared_n)

    def run_alone(self, job: Job, prompts: Sequence[Sequence[int]]) -> None:
        """`run` and `finish` of the only stage, as a captured step where there is one."""
        if self._captured is not None and isinstance(job, Decode):
            self._captured(job.rows, job.slots)
        else:
            self.finish(job, self.run(job, prompts, None))

    def _decode(self, row_n: Tensor, slot_n: Tensor) -> None:
        """One step on one stage, without a word to the host."""
        self._draw(row_n, self.chunks[0](self._newest(row_n, slot_n), None, self.cache), None)

    def _newest(self, row_n: Tensor, slot_n: Tensor) -> Tokens:
        return Tokens(self.rows.token_B[row_n], slot_n, self.rows.position_n(row_n))

    def _whole_prompts(self, job: Prefill, prompts: Sequence[Sequence[int]]) -> Tokens:
        lengths = [len(prompts[rows[0]]) for rows in job.rows]
        slots, stops = [slots[0] for slots in job.slots], np.cumsum(lengths)
        tokens = np.concatenate([np.asarray(prompts[rows[0]], dtype=np.int64) for rows in job.rows])
        positions = np.concatenate([np.arange(length) for length in lengths])
        return Tokens(
            token_N=self._index(tokens),
            slot_N=self._index(np.repeat(slots, lengths)),
            position_N=self._index(positions),
            prompts=[(stop - length, stop, slot) for stop, length, slot in zip(stops.tolist(), lengths, slots)],
            last_n=self._index(stops - 1),
        )

    def _draw(self, row_n: Tensor, states_nH: Tensor | None, shared_n: Tensor | None) -> None:
        """One rank draws, the first of the last stage, and tells the others: ranks that drew for themselves could fall
        apart for ever over one rounding difference.

        shared_n: which row of the states belongs to each row; None: its own.
        """
        layout, sampling = self.layout, self.rows.sampling
        drawn_2n = torch.empty(2, len(row_n), dtype=torch.float64, device=layout.device)
        if states_nH is not None:
            logits_nV = self.model.lm_logits(states_nH)
            if layout.tensor > 1:
                shards = gather_in_rank_order(logits_nV, parallel_state.get_tensor_model_parallel_group())
                logits_nV = shards.permute(1, 0, 2).flatten(1)
            if layout.tensor_rank == 0:
                token_n, logp_n = sample(
                    logits_nV if shared_n is None else logits_nV[shared_n],
                    self.rows.uniform_n(row_n),
                    vocab_size=self.model.vocab_size,
                    known_ids=sampling.known_ids,
                    temperature=sampling.temperature,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    greedy=sampling.greedy,
                )
                drawn_2n = torch.stack([token_n.double(), logp_n])  # float64 holds every token id exactly
        if layout.tensor * layout.pipeline > 1:
            group = parallel_state.get_model_parallel_group()
            # The group's ranks are ordered by stage, then by tensor rank.
            dist.broadcast(drawn_2n, src=dist.get_process_group_ranks(group)[-layout.tensor], group=group)
        self.rows.append(row_n, drawn_2n[0].long(), drawn_2n[1])

    def _index(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.int64, device=self.layout.device)
