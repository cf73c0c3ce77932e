"""Lists of token ids -> the right-padded batch that every model takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gipo_mc.types import Sequences


def to_sequences(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Sequences:
    """`Sequences` of B prompts with their responses (a response may be empty, a prompt not).

    The batch is as long as its longest row; what stands in the padding never matters, `pad_id` is for the eye.
    """
    if len(prompt_ids) != len(response_ids):
        raise ValueError(f"{len(prompt_ids)} prompts, but {len(response_ids)} responses")
    if any(not len(p) for p in prompt_ids):
        raise ValueError("every prompt needs at least one token: the first response token is predicted from it")
    prompt_B = torch.tensor([len(p) for p in prompt_ids], dtype=torch.int64)
    response_B = torch.tensor([len(r) for r in response_ids], dtype=torch.int64)
    longest = int((prompt_B + response_B).max()) if len(prompt_ids) else 0
    tokens_BL = torch.full((len(prompt_ids), longest), pad_id, dtype=torch.int64)
    for row, prompt, response in zip(tokens_BL, prompt_ids, response_ids, strict=True):
        row[: len(prompt) + len(response)] = torch.tensor([*prompt, *response], dtype=torch.int64)
    return Sequences(tokens_BL.to(device), prompt_B.to(device), response_B.to(device))
