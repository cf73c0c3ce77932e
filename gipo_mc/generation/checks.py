"""What generation refuses before anything is computed: the same error on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gipo_mc.errors import ConfigError, DataError


def check_options(max_new_tokens: int, temperature: float, top_p: float, top_k: int, micro_batch: int) -> None:
    """Raises ConfigError naming every option that is out of range."""
    problems = []
    if max_new_tokens < 1:
        problems.append(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not 0 < temperature < float("inf"):
        problems.append(f"temperature={temperature} must be positive (0: greedy)")
    if not 0 < top_p <= 1:
        problems.append(f"top_p={top_p} must be above 0 and at most 1 (1: off)")
    if top_k < 0:
        problems.append(f"top_k={top_k} must not be negative (0: all)")
    if micro_batch < 0:
        problems.append(f"micro_batch={micro_batch} must not be negative (0: all at once)")
    if problems:
        raise ConfigError("Generation cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


def check_eos(eos_id: int, vocab_size: int) -> None:
    """Raises ConfigError for an EOS id that the model does not have."""
    if not 0 <= eos_id < vocab_size:
        raise ConfigError(
            f"The EOS id {eos_id} is outside the model's vocabulary of {vocab_size} tokens: use the tokenizer "
            "that belongs to the model."
        )


def checked_uniforms(uniforms_BT: np.ndarray | Tensor | None, prompts: int, max_new_tokens: int) -> Tensor:
    """The uniforms as float64 [B, >= max_new_tokens]. Raises ConfigError where there are none, or of another shape."""
    if uniforms_BT is None:
        raise ConfigError("Sampling needs uniforms_BT (see sampling_uniforms); without them ask for greedy=True.")
    noise_BT = torch.as_tensor(uniforms_BT, dtype=torch.float64)
    if noise_BT.ndim != 2 or noise_BT.shape[0] != prompts or noise_BT.shape[1] < max_new_tokens:
        raise ConfigError(
            f"uniforms_BT has shape {list(noise_BT.shape)}: {prompts} prompts and "
            f"max_new_tokens={max_new_tokens} need [{prompts}, {max_new_tokens}]."
        )
    return noise_BT


def check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, context: int, vocab_size: int) -> None:
    """Raises DataError for a prompt that is empty, too long for the context (tokens), or holds a foreign id."""
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
