"""Around `generate`: the random numbers of a batch of prompts, and every replica's responses brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.errors import ConfigError
from gipo_mc.generation.engine import Generated
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
    length_B1, truncated_B1, response_BT = _gather_blocks(torch.cat(columns, dim=1), blocks, layout).split(
        [1, 1, own.response_BT.shape[1]], dim=1
    )
    length_B, longest = length_B1[:, 0].contiguous(), int(length_B1.max())
    logp_BT = _gather_blocks(own.sampler_logp_BT, blocks, layout)
    return Rollout(
        sequences=_sequences(prompts, response_BT, length_B, pad_id),
        prompt_index_B=torch.tensor([prompt.index for prompt in prompts], device=layout.device),
        domain_B=tuple(prompt.domain for prompt in prompts),
        sampler_logp_BT=logp_BT[:, :longest].contiguous(),
        truncated_B=truncated_B1[:, 0].bool(),
        counts=_most(own.counts, layout),
    )


def _most(counts: Mapping[str, float], layout: Layout) -> dict[str, float]:
    """Of any replica. Every engine says the same names on all of them."""
    if layout.data == 1 or not counts:
        return dict(counts)
    own = torch.tensor(list(counts.values()), dtype=torch.float64, device=layout.device)
    most = gather_in_rank_order(own, parallel_state.get_data_parallel_group()).amax(dim=0)
    return dict(zip(counts, most.tolist(), strict=True))


def _sequences(prompts: Sequence[Prompt], response_BT: Tensor, length_B: Tensor, pad_id: int) -> Sequences:
    """Each response behind its prompt, right-padded to the longest of them."""
    device = response_BT.device
    prompt_B = torch.tensor([len(prompt.token_ids) for prompt in prompts], device=device)
    longest = int((prompt_B + length_B).max())
    tokens = np.full((len(prompts), longest), pad_id, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt.token_ids)] = prompt.token_ids
    tokens_BL = torch.from_numpy(tokens).to(device)
    row_N, time_N = torch.nonzero(torch.arange(response_BT.shape[1], device=device) < length_B[:, None], as_tuple=True)
    tokens_BL[row_N, prompt_B[row_N] + time_N] = response_BT[row_N, time_N]
    return Sequences(tokens_BL, prompt_B, length_B)


def _gather_blocks(rows: Tensor, blocks: list[range], layout: Layout) -> Tensor:
    """Each replica's rows -> all rows in global order. Blocks may differ in length."""
    if layout.data == 1:
        return rows
    padded = rows.new_zeros(max(map(len, blocks)), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = gather_in_rank_order(padded, parallel_state.get_data_parallel_group())
    return torch.cat([gathered[rank, : len(block)] for rank, block in enumerate(blocks)])
