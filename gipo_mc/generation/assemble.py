"""Around `generate`: the random numbers of a batch of prompts, and every replica's responses brought together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.errors import ConfigError
from gipo_mc.generation.megatron import Generated
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.layout import Layout, split_rows
from gipo_mc.parallel.streams import uniforms
from gipo_mc.types import Prompt, Rollout, Sequences


def sampling_uniforms(seed: int, purpose: str, step: int, prompt_index: Sequence[int], count: int) -> np.ndarray:
    """float64 [B, count]: the numbers that decide the responses to these prompts, one stream for each prompt."""
    rows = [uniforms(seed, purpose, step, int(index), count) for index in prompt_index]
    return np.stack(rows) if rows else np.zeros((0, count))


def assemble_rollout(prompts: Sequence[Prompt], own: Generated, layout: Layout, *, pad_id: int) -> Rollout:
    """The whole rollout on every rank, from the block that each data-parallel replica generated.

    prompts: all B prompts of the iteration in global order, the same on every rank.
    own: responses to block `data_rank` of `split_rows(B, data)`, all generated with the same max_new_tokens.
    The result is in the order of `prompts`, on the layout's device, its T cut to the longest response.
    """
    blocks = split_rows(len(prompts), layout.data)
    count = len(blocks[layout.data_rank])
    if len(own.response_BT) != count:
        raise ConfigError(
            f"Replica {layout.data_rank} of {layout.data} owns {count} of {len(prompts)} prompts, but "
            f"{len(own.response_BT)} responses were given: generate for split_rows(count, data)[data_rank]."
        )
    columns = [own.response_length_B[:, None], own.truncated_B[:, None].long(), own.response_BT]
    ids = _gather_blocks(torch.cat(columns, dim=1), blocks, layout)
    logp_BT = _gather_blocks(own.sampler_logp_BT, blocks, layout)
    length_B, truncated_B, response_BT = ids[:, 0], ids[:, 1].bool(), ids[:, 2:]

    prompt_length = [len(prompt.token_ids) for prompt in prompts]
    responses = [row[:n] for row, n in zip(response_BT.tolist(), length_B.tolist(), strict=True)]
    whole = [torch.tensor([*p.token_ids, *response]) for p, response in zip(prompts, responses, strict=True)]
    tokens_BL = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=pad_id)
    longest = int(length_B.max())
    return Rollout(
        sequences=Sequences(
            tokens_BL.to(layout.device), torch.tensor(prompt_length, device=layout.device), length_B.contiguous()
        ),
        prompt_index_B=torch.tensor([prompt.index for prompt in prompts], device=layout.device),
        domain_B=tuple(prompt.domain for prompt in prompts),
        sampler_logp_BT=logp_BT[:, :longest].contiguous(),
        truncated_B=truncated_B,
    )


def _gather_blocks(rows: Tensor, blocks: list[range], layout: Layout) -> Tensor:
    """Each replica's rows -> all rows in global order. Blocks may differ in length."""
    if layout.data == 1:
        return rows
    padded = rows.new_zeros(max(map(len, blocks)), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = gather_in_rank_order(padded, parallel_state.get_data_parallel_group())
    return torch.cat([gathered[rank, : len(block)] for rank, block in enumerate(blocks)])
