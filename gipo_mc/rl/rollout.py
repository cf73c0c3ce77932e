"""prompts -> rollout: which prompts an iteration takes, and the policy's responses to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config
from gipo_mc.data.batches import batch_indices
from gipo_mc.data.encode import encoder_of
from gipo_mc.data.sets import PromptSet
from gipo_mc.data.special_tokens import end_ids
from gipo_mc.generation.assemble import assemble_rollout, sampling_uniforms
from gipo_mc.generation.engine import Progress, RolloutEngine, Sampling
from gipo_mc.generation.memory import Limits
from gipo_mc.generation.stopping import stop_on_strings
from gipo_mc.parallel.layout import split_rows
from gipo_mc.types import Prompt, Rollout


def take_prompts(prompts: PromptSet, config: Config, step: int) -> list[Prompt]:
    """The prompts of iteration `step`, each as often as it is answered, side by side; the same on every rank, a
    function of (seed, step)."""
    samples = config.rollout.samples_per_prompt
    rows = batch_indices(config.run.seed, "prompts", step, config.rollout.batch_size // samples, len(prompts))
    return [prompts[int(row)] for row in rows for _ in range(samples)]


def sampling_noise(seed: int, purpose: str, step: int, prompts: Sequence[Prompt], count: int) -> np.ndarray:
    """float64 [B, count]: the uniforms of each prompt's response. A prompt that comes again in the same batch (at the
    end of an epoch, or in a small data set) draws from another stream, or its responses would be copies."""
    seen: Counter[int] = Counter()
    rows = []
    for prompt in prompts:
        again = f"/{seen[prompt.index]}" if seen[prompt.index] else ""
        rows.append(sampling_uniforms(seed, purpose + again, step, [prompt.index], count)[0])
        seen[prompt.index] += 1
    return np.stack(rows)


@lru_cache(maxsize=2)
def _known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the tokenizer's highest id. Models fill their vocabulary up to a round number; a response with one
    of those ids would have a token that no reward, no person and no other program can see."""
    return 1 + max(tokenizer.get_vocab().values())


def longest_sequence(config: Config) -> int:
    """Most tokens of a prompt and its response."""
    return config.data.prompt_length + config.rollout.max_new_tokens


def limits_of(config: Config) -> Limits:
    """What the rollout section lets a rank spend on generation."""
    settings = config.rollout
    return Limits(settings.slots, settings.prefill_tokens, settings.kv_cache_gib)


def roll_out(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: Config,
    step: int,
    *,
    purpose: str = "rollout",
    greedy: bool = False,
    on_step: Progress | None = None,
) -> Rollout:
    """Responses of the policy to `prompts`, each data-parallel replica generating its block of them.

    purpose: names the random stream, so that evaluation does not repeat the draws of training.
    """
    layout, settings = engine.layout, config.rollout
    block = split_rows(len(prompts), layout.data)[layout.data_rank]
    noise_BT = sampling_noise(config.run.seed, purpose, step, prompts, settings.max_new_tokens)
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        eos_id=tokenizer.eos_token_id,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        greedy=greedy,
        stop=stop_on_strings(tokenizer, settings.stop, encoder_of(tokenizer).lead if settings.stop else ()),
        stop_ids=end_ids(tokenizer, engine.end_ids),
        known_ids=_known_ids(tokenizer),
    )
    engine.sync_weights()
    generated = engine.generate(
        [prompts[row].token_ids for row in block], sampling, noise_BT[block.start : block.stop], on_step
    )
    return assemble_rollout(prompts, generated, layout, pad_id=tokenizer.pad_token_id)
