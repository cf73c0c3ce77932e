"""Both engines over one policy, on every rank of a layout, and what they make of the same prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gipo_mc.generation.assemble import sampling_uniforms
from gipo_mc.generation.choose import check_engine, rollout_engine
from gipo_mc.generation.engine import Generated, RolloutEngine, Sampling
from gipo_mc.generation.memory import Limits
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.weights.hf_load import load_hf_weights
from gipo_mc.parallel import runtime
from tests.ranks import parallel_config

VOCAB, NEW, EOS = 101, 12, 7
#: Some longer than a block of vLLM's cache (128 tokens on a CPU), so that prefixes are kept and found again.
LENGTHS = (3, 150, 9, 1, 140)
#: Not all prompts fit into one pass.
LIMITS = Limits(slots=4, prefill_tokens=160, kv_cache_gib=0.05)


class Engines:
    """A policy and an engine of each kind. vllm: False leaves that one out."""

    vllm: RolloutEngine

    def __init__(self, folder: Path, layout: dict[str, Any], vllm: bool = True) -> None:
        config, _ = parallel_config(**layout)
        self.layout = runtime.initialize(config, "cpu")
        shape = read_shape(folder)
        check_engine("vllm", shape, self.layout)
        self.model = build_model(shape, self.layout, head="lm", dtype=torch.float32, trainable=True)
        load_hf_weights(self.model, folder)
        if vllm:
            self.vllm = rollout_engine("vllm", self.model, LIMITS, 200)
        self.megatron = rollout_engine("megatron", self.model, LIMITS, 200)

    @torch.no_grad()
    def change_weights(self, seed: int) -> None:
        """As a step of an optimizer would; every rank adds the same to what all of them hold."""
        torch.manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))

    def greedy(self, engine: RolloutEngine, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        return generate(engine, prompts, greedy=True, **options).responses()

    @torch.no_grad()
    def logp(self, prompt: Sequence[int], response: Sequence[int], temperature: float) -> torch.Tensor:
        """float32 [T]: of the training model's forward pass. On one rank."""
        hidden_LBH = self.model(torch.tensor([[*prompt, *response]]))
        logits = self.model.lm_logits(hidden_LBH[len(prompt) - 1 : -1, 0])[:, : self.model.vocab_size]
        return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)


def generate(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    *,
    index: Sequence[int] | None = None,
    step: int = 3,
    on_step: Any = None,
    **options: Any,
) -> Generated:
    """Take over the weights and generate, with the random numbers of prompts `index`."""
    uniforms_BT = sampling_uniforms(7, "rollout", step, index or range(len(prompts)), NEW)
    sampling = Sampling(**{"max_new_tokens": NEW, "eos_id": EOS, **options})
    engine.sync_weights()
    return engine.generate(prompts, sampling, uniforms_BT, on_step)


def surroundings() -> list[Any]:
    """What vLLM could leave changed behind it."""
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        repr(np.random.get_state()),  # noqa: NPY002
        torch.get_num_threads(),
        torch.set_num_threads,
    ]
