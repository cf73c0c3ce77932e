"""What an engine refuses before anything is computed, on all ranks alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gipo_mc.errors import ConfigError, DataError
from gipo_mc.generation.engine import Sampling


def checked(
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    uniforms_BT: np.ndarray | Tensor | None,
    *,
    vocab_size: int,
    context: int,
) -> tuple[Sampling, Tensor | None]:
    """The sampling, where temperature 0 has become greedy, and its uniforms, float64 [B, >= max_new_tokens] on the
    host; None when greedy. context: most tokens of a prompt and its response. Raises ConfigError and DataError."""
    sampling.check()
    if sampling.temperature == 0:
        sampling = replace(sampling, greedy=True, temperature=1.0)
    _check_prompts(prompts, sampling, vocab_size, context)
    if sampling.greedy:
        return sampling, None
    return sampling, _check_uniforms(uniforms_BT, len(prompts), sampling.max_new_tokens)


def _check_prompts(prompts: Sequence[Sequence[int]], sampling: Sampling, vocab_size: int, context: int) -> None:
    """Raises DataError for an empty prompt, one that does not fit the `context` with max_new_tokens, and an id outside
    the vocabulary; ConfigError for such an EOS id."""
    if not 0 <= sampling.eos_id < vocab_size:
        raise ConfigError(
            f"The EOS id {sampling.eos_id} is outside the model's vocabulary of {vocab_size} tokens: use the "
            "tokenizer that belongs to the model."
        )
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"Prompt {row} of the batch has no tokens: a model needs at least one to continue from.")
        if len(prompt) + sampling.max_new_tokens > context:
            raise DataError(
                f"Prompt {row} of the batch has {len(prompt)} tokens; with max_new_tokens={sampling.max_new_tokens} "
                f"that is more than the model's context of {context}: shorten the prompt, or lower "
                "rollout.max_new_tokens."
            )
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise DataError(
                f"Prompt {row} of the batch holds token id {max(prompt) if min(prompt) >= 0 else min(prompt)}, but the "
                f"model's vocabulary has {vocab_size} tokens: use the tokenizer that belongs to the model."
            )


def _check_uniforms(uniforms_BT: np.ndarray | Tensor | None, rows: int, tokens: int) -> Tensor:
    """float64 [rows, >= tokens] on the host. Raises ConfigError where there are none, or too few."""
    if uniforms_BT is None:
        raise ConfigError("Sampling needs uniforms_BT (see sampling_uniforms); without them ask for greedy=True.")
    noise_BT = torch.as_tensor(uniforms_BT, dtype=torch.float64)
    if noise_BT.ndim != 2 or noise_BT.shape[0] != rows or noise_BT.shape[1] < tokens:
        raise ConfigError(
            f"uniforms_BT has shape {list(noise_BT.shape)}: {rows} prompts and max_new_tokens={tokens} need "
            f"[{rows}, {tokens}]."
        )
    return noise_BT
