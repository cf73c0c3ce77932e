"""A tiny Llama that generates on every rank of a layout, and transformers' greedy continuation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from gipo_mc.generation.assemble import assemble_rollout, sampling_uniforms
from gipo_mc.generation.engine import Generated, Sampling
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.generation.memory import Limits
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.weights.hf_load import load_hf_weights
from gipo_mc.parallel import runtime
from gipo_mc.parallel.layout import Layout, split_rows
from gipo_mc.types import Prompt, Rollout
from tests.ranks import parallel_config, run_ranks

VOCAB, NEW = 101, 12  # 101: no layout divides it, so padding is always there
SEED, STEP = 7, 3
PROMPT_LENGTHS = (3, 9, 1, 5, 5, 14, 2)


def hf_greedy(model: LlamaForCausalLM, ids: tuple[int, ...], eos_id: int | None) -> list[int]:
    tokens = torch.tensor([ids])
    output = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=0,
    )
    return output[0, len(ids) :].tolist()


Job = Callable[[Any, Layout], Any]


def on_ranks(folder: Path, layout: dict[str, Any], job: Job) -> list[Any]:
    """`job(model, layout)` on every rank of a layout, the model loaded from `folder`."""
    config, ranks = parallel_config(**layout)

    def rank_main(_: int) -> Any:
        here = runtime.initialize(config, "cpu")
        model = build_model(read_shape(folder), here, head="lm", dtype=torch.float32, trainable=True)
        load_hf_weights(model, folder)
        return job(model, here)

    return run_ranks(rank_main, ranks)


def generate(
    model: Any, tokens: Sequence[Sequence[int]], uniforms_BT: Any = None, on_step: Any = None, *, look_every: int = 1,
    grouped: bool = False, limits: Limits | None = None, **sampling: Any,
) -> Generated:  # fmt: skip
    longest = max(map(len, tokens), default=0) + sampling["max_new_tokens"]
    engine = MegatronEngine(model, limits, longest)
    engine.look_every = look_every
    if grouped:
        engine.groups = engine.layout.pipeline  # as on a GPU
    return engine.generate(tokens, Sampling(**sampling), uniforms_BT, on_step)


def rollout(model: Any, layout: Layout, prompts: list[Prompt], eos_id: int, **options: Any) -> Rollout:
    """Generate this replica's block, as a training iteration does, and bring all blocks together."""
    own = [prompts[row] for row in split_rows(len(prompts), layout.data)[layout.data_rank]]
    count = options.pop("max_new_tokens", NEW)
    generated = generate(
        model,
        [prompt.token_ids for prompt in own],
        max_new_tokens=count,
        eos_id=eos_id,
        uniforms_BT=sampling_uniforms(SEED, "rollout", STEP, [prompt.index for prompt in own], count),
        **options,
    )
    return assemble_rollout(prompts, generated, layout, pad_id=0)


def responses(result: Rollout) -> list[list[int]]:
    sequences = result.sequences
    return [
        row[p : p + r]
        for row, p, r in zip(
            sequences.tokens_BL.tolist(), sequences.prompt_length_B.tolist(), sequences.response_length_B.tolist()
        )
    ]
