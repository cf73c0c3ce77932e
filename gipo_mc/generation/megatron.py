"""Generation on the training ranks themselves, tensor x pipeline, with the weights that are trained.

    prompts -> Schedule: who runs when -> CachedForward on each stage -> logits of the last stage, gathered over TP
            -> one rank draws -> everyone is told -> Rows

Time goes in ticks. In a tick each stage runs one job, a prefill or one decoding step of a group of slots; what a stage
made goes to the next one, the job that left the last stage gets its tokens, and the next tick begins. With as many
groups as stages, a group's tokens are known when the first stage comes back to it, and no stage waits for another.

The uniforms that turn logits into tokens belong to the prompt, not to the place in the batch, so a response depends on
neighbours, slots, order, data-parallel size and layout only through the rounding of matrix products: tokens differ when
a uniform falls within rounding of a boundary between two tokens (about one token in a million in float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gipo_mc.generation.checks import checked
from gipo_mc.generation.engine import Generated, Progress, Sampling
from gipo_mc.generation.memory import Limits, page_budget
from gipo_mc.generation.rows import Rows
from gipo_mc.generation.schedule import Schedule
from gipo_mc.generation.stage_work import StageWork
from gipo_mc.generation.ticks import COUNTS, Ticks
from gipo_mc.models.kv_cache import KVCache, pages_for
from gipo_mc.models.stage import StageModel
from gipo_mc.parallel.layout import Layout


class MegatronEngine:
    """Generates with the model that is trained, where it is: `sync_weights` copies nothing.

    model: this rank's stage of a `StageModel` with an LM head, not wrapped.
    limits: slots, tokens of a prefill, memory of the cache.
    longest: tokens of prompt and response that must fit; asked for before anything is generated, so that a cache that
        is too small is found when the engine is made. Raises ConfigError.
    On a GPU the cache and the captured steps are kept between calls, if the limits say so.
    """

    def __init__(self, model: StageModel, limits: Limits | None = None, longest: int = 1) -> None:
        self.model, self.limits, self._longest = model, limits or Limits(), longest
        page_budget(self.limits, model, longest)
        self._on_device = self.layout.device.type == "cuda"
        #: Positions between two looks at who has ended: on a GPU each look waits for it.
        self.look_every = 8 if self._on_device else 1
        #: Groups of slots on a pipeline: one for each stage, so that none waits for another. Ranks that share the cores
        #: of a CPU wait anyway, and are faster with fewer and larger messages.
        self.groups = self.layout.pipeline if self._on_device else 1
        self._kept: dict[object, StageWork] = {}
        self._kept_cache: KVCache | None = None

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.model.shape.end_ids

    def sync_weights(self) -> None:
        """The weights are the policy's own; some may still be on their way from other replicas."""
        self.model.gather_weights()

    @torch.no_grad()  # and not inference_mode: what is generated goes into training
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        uniforms_BT: np.ndarray | Tensor | None = None,
        on_step: Progress | None = None,
    ) -> Generated:
        """See `RolloutEngine.generate`. Raises DataError for an empty prompt, one that does not fit the context with
        max_new_tokens, or a foreign id; ConfigError where the KV cache cannot hold one sequence."""
        vocab_size, context = self.model.vocab_size, self.model.max_sequence_length
        sampling, uniforms_BT = checked(prompts, sampling, uniforms_BT, vocab_size=vocab_size, context=context)
        if not prompts:
            return Rows(0, sampling, self.layout.device).generated(dict.fromkeys(COUNTS, 0.0))
        slots = self._slots(len(prompts))
        work = self._work(prompts, sampling, slots)
        work.rows.start(list(map(len, prompts)), uniforms_BT)
        schedule = Schedule(
            prompts,
            sampling.max_new_tokens,
            slots=slots,
            pages=work.cache.pages,
            prefill_tokens=self.limits.tokens_of_a_prefill(self.layout),
            groups=self.groups,
        )
        counts = Ticks(work, schedule, self.look_every, on_step).run()
        if not self.limits.keep:
            self._kept.clear()
            self._kept_cache = None
        return work.rows.generated(counts)

    def _slots(self, rows: int) -> int:
        """No group is without a slot."""
        return max(min(self.limits.slots or rows, rows), min(self.groups, rows))

    def _work(self, prompts: Sequence[Sequence[int]], sampling: Sampling, slots: int) -> StageWork:
        """Rows, cache and forward pass of this batch, new or kept."""
        lengths = [len(prompt) + sampling.max_new_tokens for prompt in prompts]
        longest = max(lengths)
        if not self._on_device:
            cache = self._new_cache(lengths, slots, longest)
            return StageWork(self.model, Rows(len(prompts), sampling, self.layout.device), cache, longest)
        longest = max(longest, self._longest)
        kept = self._kept_cache
        if kept is None or kept.slots < slots or kept.longest < longest:
            self._kept.clear()  # captured steps hold the addresses of the old cache
            self._kept_cache = kept = None  # its memory is free before the new one is made
            self._kept_cache = kept = self._new_cache([longest] * slots, slots, longest)
        key = (len(prompts), replace(sampling, stop=None))
        if key not in self._kept:
            rows = Rows(len(prompts), sampling, self.layout.device)
            self._kept[key] = StageWork(self.model, rows, kept, kept.longest, capture=self.layout.pipeline == 1)
        self._kept[key].rows.sampling = sampling
        return self._kept[key]

    def _new_cache(self, lengths: Sequence[int], slots: int, longest: int) -> KVCache:
        """As many pages as the slots can ever need for sequences of these lengths, or as the limits allow."""
        wanted = sorted(map(pages_for, lengths), reverse=True)
        pages = min(sum(wanted[:slots]), page_budget(self.limits, self.model, longest))
        dtype = self.model.config.params_dtype
        return KVCache(self.model.shape, self.layout, pages=pages, slots=slots, longest=longest, dtype=dtype)
