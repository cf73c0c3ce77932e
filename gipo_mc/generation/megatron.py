"""Generation with a KV cache on the training ranks themselves, tensor x pipeline.

    prompts --sorted by length--> micro-batches --prefill up to the shortest prompt--> one position at a time:
    forward through the stages -> logits of the last stage, gathered over TP -> one rank draws -> everyone is told

Rows of one micro-batch share their position: a row whose prompt is longer than the shortest one is given its own
prompt tokens until they end (no left padding, no mask). The uniforms that turn logits into tokens belong to the
prompt, not to the place in the batch, so a response depends on batch neighbours, data-parallel size and layout only
through the rounding of matrix products: tokens differ when a uniform falls within rounding of a boundary between two
tokens (about one token in a million in float32).

Megatron keeps the cache (`StaticInferenceContext`); the model's attention layers fill it, and the model switches
sequence parallelism off while there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from gipo_mc.errors import ConfigError, DataError, NumericsError
from gipo_mc.generation.engine import Generated, Progress, Sampling
from gipo_mc.models.stage import StageModel
from gipo_mc.ops.sampling import sample
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.layout import Layout


class MegatronEngine:
    """Generates with the model that is trained, where it is: `sync_weights` has nothing to do.

    model: this rank's stage of a `StageModel` with an LM head, not wrapped. Its train/eval mode is restored.
    micro_batch: rows that share a KV cache, sorted by prompt length; 0: all.
    """

    def __init__(self, model: StageModel, micro_batch: int = 0) -> None:
        if micro_batch < 0:
            raise ConfigError(f"rollout.micro_batch_size={micro_batch} must not be negative (0: all at once).")
        self.model, self.micro_batch = model, micro_batch

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.model.shape.end_ids

    def sync_weights(self) -> None:
        """The weights are the policy's own."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        uniforms_BT: np.ndarray | Tensor | None = None,
        on_step: Progress | None = None,
    ) -> Generated:
        """See `RolloutEngine.generate`. Raises DataError for an empty prompt, one that does not fit the context with
        max_new_tokens, or a foreign id."""
        model, device = self.model, self.layout.device
        sampling.check()
        if sampling.temperature == 0:
            sampling = replace(sampling, greedy=True, temperature=1.0)
        if not 0 <= sampling.eos_id < model.vocab_size:
            raise ConfigError(
                f"The EOS id {sampling.eos_id} is outside the model's vocabulary of {model.vocab_size} tokens: use the "
                "tokenizer that belongs to the model."
            )
        _check_prompts(prompts, sampling.max_new_tokens, model.max_sequence_length, model.vocab_size)
        noise_BT = None if sampling.greedy else _noise(uniforms_BT, len(prompts), sampling.max_new_tokens)

        by_length = np.argsort([len(prompt) for prompt in prompts], kind="stable").tolist()
        width = self.micro_batch or len(prompts)
        done = _unfilled(len(prompts), sampling, device)
        with _generating(model):
            for first in range(0, len(prompts), max(1, width)):
                rows = by_length[first : first + width]
                batch = _Batch([prompts[row] for row in rows], sampling, device)
                noise = None if noise_BT is None else noise_BT[rows].to(device)
                for finished in _generate_batch(model, batch, noise, self.layout):
                    if on_step is not None:
                        on_step(first + finished, len(prompts))
                batch.write_to(done, rows)
        return done


def _noise(uniforms_BT: np.ndarray | Tensor | None, rows: int, tokens: int) -> Tensor:
    if uniforms_BT is None:
        raise ConfigError("Sampling needs uniforms_BT (see sampling_uniforms); without them ask for greedy=True.")
    noise_BT = torch.as_tensor(uniforms_BT, dtype=torch.float64)
    if noise_BT.ndim != 2 or noise_BT.shape[0] != rows or noise_BT.shape[1] < tokens:
        raise ConfigError(
            f"uniforms_BT has shape {list(noise_BT.shape)}: {rows} prompts and max_new_tokens={tokens} need "
            f"[{rows}, {tokens}]."
        )
    return noise_BT


def _unfilled(rows: int, sampling: Sampling, device: torch.device) -> Generated:
    shape = (rows, sampling.max_new_tokens)
    return Generated(
        torch.full(shape, sampling.eos_id, dtype=torch.int64, device=device),
        torch.zeros(rows, dtype=torch.int64, device=device),
        torch.zeros(shape, device=device),
        torch.zeros(rows, dtype=torch.bool, device=device),
    )


class _Batch:
    """The rows that share a cache: their tokens on the device, and who is finished, kept on the host of every rank."""

    def __init__(self, prompts: Sequence[Sequence[int]], settings: Sampling, device: torch.device) -> None:
        self.settings = settings
        self.end_ids = frozenset((settings.eos_id, *settings.stop_ids))
        self.prompt_length = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self.responses: list[list[int]] = [[] for _ in prompts]
        self.ended = np.zeros(len(prompts), dtype=bool)
        self.shortest = min(map(len, prompts), default=1)
        self.end = int(self.prompt_length.max(initial=0)) + settings.max_new_tokens
        tokens = np.full((len(prompts), self.end), settings.eos_id, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        self.tokens_BL = torch.from_numpy(tokens).to(device)
        self.logp_BT = torch.zeros(len(prompts), settings.max_new_tokens, device=device)

    @property
    def finished(self) -> np.ndarray:
        """bool [B]: ended by an end id or a stop, or as long as allowed."""
        return self.ended | (np.array([len(ids) for ids in self.responses]) >= self.settings.max_new_tokens)

    def rows_to_draw(self, position: int) -> np.ndarray:
        """Rows whose token at `position` is not known: past their prompt, and not finished."""
        return np.flatnonzero((self.prompt_length <= position) & ~self.finished)

    def append(self, rows: np.ndarray, position: int, token_n: Tensor, logp_n: Tensor) -> None:
        """The drawn tokens (int64 [n]) and their log-probs (float64 [n]) of `rows` at `position`."""
        index = torch.from_numpy(rows).to(token_n.device)
        self.tokens_BL[index, position] = token_n
        self.logp_BT[index, torch.from_numpy(position - self.prompt_length[rows]).to(token_n.device)] = logp_n.float()
        for row, token in zip(rows.tolist(), token_n.tolist(), strict=True):
            response = self.responses[row]
            response.append(token)
            stop = self.settings.stop
            self.ended[row] = token in self.end_ids or (stop is not None and stop(response))

    def write_to(self, done: Generated, rows: Sequence[int]) -> None:
        """Put the responses into the rows of `done` that they belong to."""
        device = self.tokens_BL.device
        place = torch.tensor(rows, device=device)
        response = np.full((len(rows), self.settings.max_new_tokens), self.settings.eos_id, dtype=np.int64)
        for row, ids in enumerate(self.responses):
            response[row, : len(ids)] = ids
        done.response_BT[place] = torch.from_numpy(response).to(device)
        done.response_length_B[place] = torch.tensor([len(ids) for ids in self.responses], device=device)
        done.sampler_logp_BT[place] = self.logp_BT
        done.truncated_B[place] = torch.from_numpy(~self.ended).to(device)


def _generate_batch(model: StageModel, batch: _Batch, noise_BT: Tensor | None, layout: Layout) -> Iterator[int]:
    """Fill the batch position by position; yields the number of finished rows. Same course on every rank."""
    context = StaticInferenceContext(len(batch.responses), batch.end - 1)  # the last token is never an input
    try:
        begin = 0
        for position in range(batch.shortest, batch.end):
            hidden_BH = _forward(model, batch.tokens_BL[:, begin:position], context, layout)
            begin = position
            rows = batch.rows_to_draw(position)
            if not len(rows):
                continue
            token_n, logp_n = _draw(model, hidden_BH, rows, position, batch, noise_BT, layout)
            broken = (token_n < 0).nonzero().flatten().tolist()
            if broken:
                raise NumericsError(
                    f"The model's logits are not finite after {position} tokens, in {len(broken)} of {len(rows)} "
                    "responses: its weights have diverged or are damaged. Go back to an earlier checkpoint, and train "
                    "with a lower learning rate."
                )
            batch.append(rows, position, token_n, logp_n)
            finished = int(batch.finished.sum())
            yield finished
            if finished == len(batch.responses):
                break
    finally:
        context.key_value_memory_dict.clear()
        model.set_input_tensor(None)


def _forward(model: StageModel, tokens_bL: Tensor, context: StaticInferenceContext, layout: Layout) -> Tensor | None:
    """Run the new positions through all stages. Returns the last position's hidden [b, H] on the last stage.

    The stages take turns; hidden states [L, b, H] travel in the pipeline's dtype.
    """
    batch, length = tokens_bL.shape
    group = parallel_state.get_pipeline_model_parallel_group()
    received = None
    if not layout.is_first_stage:
        received = torch.empty(
            length, batch, model.config.hidden_size, dtype=model.config.pipeline_dtype, device=layout.device
        )
        dist.recv(received, src=parallel_state.get_pipeline_model_parallel_prev_rank(), group=group)
    model.set_input_tensor(received)
    hidden_LBH = model(tokens_bL, inference_context=context)
    context.increment_sequence_len_offset(length)
    if layout.is_last_stage:
        return hidden_LBH[-1]
    hidden_LBH = hidden_LBH.to(model.config.pipeline_dtype).contiguous()
    dist.send(hidden_LBH, dst=parallel_state.get_pipeline_model_parallel_next_rank(), group=group)
    return None


def _draw(
    model: StageModel,
    hidden_BH: Tensor | None,
    rows: np.ndarray,
    position: int,
    batch: _Batch,
    noise_BT: Tensor | None,
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """Tokens (int64 [n], -1 where logits are broken) and log-probs (float64 [n]) of `rows`, on every rank.

    One rank draws, the first of the last stage, and tells the others: ranks that drew for themselves could fall
    apart for ever over one rounding difference.
    """
    settings = batch.settings
    drawn_2n = torch.empty(2, len(rows), dtype=torch.float64, device=layout.device)
    if hidden_BH is not None:
        # All rows, finished or not: the shape of the matrix product stays the same, and so does its rounding.
        logits_BV = model.lm_logits(hidden_BH)
        if layout.tensor > 1:
            shards = gather_in_rank_order(logits_BV, parallel_state.get_tensor_model_parallel_group())
            logits_BV = shards.permute(1, 0, 2).flatten(1)
        if layout.tensor_rank == 0:
            index = torch.from_numpy(rows).to(layout.device)
            noise_n = None
            if noise_BT is not None:
                noise_n = noise_BT[index, torch.from_numpy(position - batch.prompt_length[rows]).to(layout.device)]
            token_n, logp_n = sample(
                logits_BV[index],
                noise_n,
                vocab_size=model.vocab_size,
                known_ids=settings.known_ids,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                greedy=settings.greedy,
            )
            drawn_2n = torch.stack([token_n.double(), logp_n])  # float64 holds every token id exactly
    if layout.tensor * layout.pipeline > 1:
        group = parallel_state.get_model_parallel_group()
        # The group's ranks are ordered by stage, then by tensor rank.
        dist.broadcast(drawn_2n, src=dist.get_process_group_ranks(group)[-layout.tensor], group=group)
    return drawn_2n[0].long(), drawn_2n[1]


@contextmanager
def _generating(model: StageModel) -> Iterator[None]:
    """Eval mode and no autograd; the mode is restored.

    `no_grad` and not `inference_mode`: Megatron caches rotary embeddings between calls, and an inference tensor in
    that cache would break the next training step.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, context: int, vocab_size: int) -> None:
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"Prompt {row} of the batch has no tokens: a model needs at least one to continue from.")
        if len(prompt) + max_new_tokens > context:
            raise DataError(
                f"Prompt {row} of the batch has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} that is "
                f"more than the model's context of {context}: shorten the prompt, or lower rollout.max_new_tokens."
            )
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise DataError(
                f"Prompt {row} of the batch holds token id {max(prompt) if min(prompt) >= 0 else min(prompt)}, but the "
                f"model's vocabulary has {vocab_size} tokens: use the tokenizer that belongs to the model."
            )
