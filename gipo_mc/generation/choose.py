"""Which engine generates: the one place that knows them all."""

from __future__ import annotations

from typing import Literal

from gipo_mc.generation.engine import RolloutEngine
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
