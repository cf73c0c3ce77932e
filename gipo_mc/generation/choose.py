"""Which engine generates: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from gipo_mc.generation.engine import Generated, Progress, RolloutEngine, Sampling
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.generation.memory import Limits
from gipo_mc.generation.vllm import VLLMEngine
from gipo_mc.generation.vllm_library import check_vllm
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import StageModel
from gipo_mc.parallel.layout import Layout

#: Values of rollout.engine.
EngineName = Literal["megatron", "vllm"]


def check_engine(name: EngineName, shape: ModelShape, layout: Layout) -> None:
    """Can this engine generate with a model of this shape here? Asked before models are loaded. Raises ConfigError."""
    if name == "vllm":
        check_vllm(shape, layout)


def rollout_engine(name: EngineName, model: StageModel, limits: Limits, longest: int) -> RolloutEngine:
    """The engine, for sequences of at most `longest` tokens, prompt and response. Raises ConfigError."""
    if name == "vllm":
        return VLLMEngine(model, limits, longest)
    return MegatronEngine(model, limits, longest)


class BroughtEngine:
    """An engine whose model is not always on the device: `bring` brings its weights there, before they are read.

    Every generation follows a call of `sync_weights`, so that is where it is called.
    """

    def __init__(self, engine: RolloutEngine, bring: Callable[[], None]) -> None:
        self._engine, self._bring = engine, bring

    @property
    def layout(self) -> Layout:
        return self._engine.layout

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._engine.end_ids

    def sync_weights(self) -> None:
        """See `RolloutEngine.sync_weights`."""
        self._bring()
        self._engine.sync_weights()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        uniforms_BT: np.ndarray | Tensor | None = None,
        on_step: Progress | None = None,
    ) -> Generated:
        """See `RolloutEngine.generate`."""
        return self._engine.generate(prompts, sampling, uniforms_BT, on_step)
