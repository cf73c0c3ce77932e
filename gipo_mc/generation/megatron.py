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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from gipo_mc.errors import NumericsError
from gipo_mc.generation.checks import check_eos, check_options, check_prompts, checked_uniforms
from gipo_mc.generation.sampling import sample
from gipo_mc.generation.stopping import StopCondition
from gipo_mc.models.stage import LlamaModel
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.layout import Layout

#: Told (finished responses, all responses) after each position.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Generated:
    """Responses of this replica's prompts, in their order, identical on its TP x PP ranks, on the layout's device.

    response_BT: int64 [B, T], T = max_new_tokens; positions from the response's length on hold `eos_id`.
    response_length_B: int64 [B], >= 1, counts EOS and the tokens of a stop string.
    sampler_logp_BT: float32 [B, T], see `Rollout`; 0 in the padding.
    truncated_B: bool [B], True where max_new_tokens came before EOS or a stop.
    """

    response_BT: Tensor
    response_length_B: Tensor
    sampler_logp_BT: Tensor
    truncated_B: Tensor

    def responses(self) -> list[list[int]]:
        """Token ids without padding."""
        return [ids[:n] for ids, n in zip(self.response_BT.tolist(), self.response_length_B.tolist(), strict=True)]


def generate(
    model: LlamaModel,
    prompts: Sequence[Sequence[int]],
    *,
    layout: Layout,
    max_new_tokens: int,
    eos_id: int,
    uniforms_BT: np.ndarray | Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    greedy: bool = False,
    stop: StopCondition | None = None,
    micro_batch: int = 0,
    on_step: Progress | None = None,
) -> Generated:
    """Continue each prompt until EOS, a stop, or max_new_tokens.

    Called by every TP x PP rank of a replica with the same arguments; replicas work independently.

    model: this rank's stage of a `LlamaModel` with an LM head, not wrapped. Its train/eval mode is restored.
    prompts: token ids, at least one each.
    uniforms_BT: float64 [B, >= max_new_tokens] in [0, 1), of `rollouts.sampling_uniforms`; not read when greedy.
    temperature: divides the logits; 0 means greedy at temperature 1. top_p, top_k: see `filter_logits`.
    stop: see `stop_on_strings`.
    micro_batch: rows that share a KV cache, sorted by prompt length; 0: all.

    Raises DataError for an empty prompt, one that does not fit the context with max_new_tokens, or a foreign id, and
    ConfigError for impossible options, on all ranks before anything is computed; NumericsError on all ranks of the
    replica when logits are not finite.
    """
    if temperature == 0:
        greedy, temperature = True, 1.0
    check_options(max_new_tokens, temperature, top_p, top_k, micro_batch)
    check_eos(eos_id, model.vocab_size)
    check_prompts(prompts, max_new_tokens, model.max_sequence_length, model.vocab_size)
    noise_BT = None if greedy else checked_uniforms(uniforms_BT, len(prompts), max_new_tokens)
    settings = _Settings(max_new_tokens, eos_id, temperature, top_p, top_k, greedy, stop)

    by_length = np.argsort([len(prompt) for prompt in prompts], kind="stable").tolist()
    width = micro_batch or len(prompts)
    finished = 0
    parts = []
    with _generating(model):
        for first in range(0, len(prompts), max(1, width)):
            rows = by_length[first : first + width]
            batch = _Batch([prompts[row] for row in rows], settings, layout.device)
            noise = None if noise_BT is None else noise_BT[rows].to(layout.device)
            for done in _generate_batch(model, batch, noise, layout):
                if on_step is not None:
                    on_step(finished + done, len(prompts))
            finished += len(rows)
            parts.append(batch.result())
    if not parts:
        return _Batch([], settings, layout.device).result()
    return _joined(parts, torch.tensor(by_length, device=layout.device).argsort())


def _joined(parts: Sequence[Generated], place_B: Tensor) -> Generated:
    """The micro-batches' rows in one; row i is the parts' row place_B[i]."""
    return Generated(
        torch.cat([part.response_BT for part in parts])[place_B],
        torch.cat([part.response_length_B for part in parts])[place_B],
        torch.cat([part.sampler_logp_BT for part in parts])[place_B],
        torch.cat([part.truncated_B for part in parts])[place_B],
    )


@dataclass(frozen=True)
class _Settings:
    max_new_tokens: int
    eos_id: int
    temperature: float
    top_p: float
    top_k: int
    greedy: bool
    stop: StopCondition | None


class _Batch:
    """The rows that share a cache: their tokens on the device, and who is finished, kept on the host of every rank."""

    def __init__(self, prompts: Sequence[Sequence[int]], settings: _Settings, device: torch.device) -> None:
        self.settings = settings
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
        """bool [B]: ended by EOS or a stop, or as long as allowed."""
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
            self.ended[row] = token == self.settings.eos_id or (stop is not None and stop(response))

    def result(self) -> Generated:
        device, width = self.tokens_BL.device, self.settings.max_new_tokens
        response = np.full((len(self.responses), width), self.settings.eos_id, dtype=np.int64)
        for row, ids in enumerate(self.responses):
            response[row, : len(ids)] = ids
        return Generated(
            torch.from_numpy(response).to(device),
            torch.tensor([len(ids) for ids in self.responses], dtype=torch.int64, device=device),
            self.logp_BT,
            torch.from_numpy(~self.ended).to(device),
        )


def _generate_batch(model: LlamaModel, batch: _Batch, noise_BT: Tensor | None, layout: Layout) -> Iterator[int]:
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


def _forward(model: LlamaModel, tokens_bL: Tensor, context: StaticInferenceContext, layout: Layout) -> Tensor | None:
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
    model: LlamaModel,
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
def _generating(model: LlamaModel) -> Iterator[None]:
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
