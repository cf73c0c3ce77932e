"""Small runs for the training tests: one Hugging Face policy and reward model, and iterations in any layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from gipo_mc.config import Config, ParallelConfig, load_config
from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.step_checks import StepResult
from tests.models.tiny import FAMILIES
from tests.ranks import run_ranks


def save_models(folder: Path, seed: int = 3, model_type: str = "llama", layers: int = 2) -> dict[str, str]:
    """A random policy and reward model for the built-in task, saved by transformers: {"policy": ..., "reward": ...}.

    layers: one for each stage that a test has; a stage of several is for tests that compare layouts."""
    fields = {**builtin_llama_config(), **FAMILIES.get(model_type, {})}
    fields |= {"num_hidden_layers": layers, "initializer_range": 0.2}
    kind = CONFIG_MAPPING[model_type]
    tokenizer = builtin_tokenizer()
    torch.manual_seed(seed)
    for name, model in (
        ("policy", AutoModelForCausalLM.from_config(kind(**fields))),
        ("reward", AutoModelForSequenceClassification.from_config(kind(num_labels=1, **fields))),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"policy": str(folder / "policy"), "reward": str(folder / "reward")}


def rl_config(folder: Path, models: dict[str, str], *overrides: str, **layout: Any) -> Config:
    """A GI-PPO configuration on the built-in prompts that a test can afford."""
    base = {
        "run": {"dir": str(folder), "name": "run", "iterations": 2, "seed": 5},
        "device": "cpu",
        "model": models,
        "data": {"prompts": ["builtin"], "evaluation": ["builtin:easy"], "prompt_length": 8, "max_rows": 64},
        "rollout": {"batch_size": 18, "max_new_tokens": 8},
        "algorithm": {"mini_batch_size": 6, "epochs": 2, "beta_ramp": 0, "kl_coef": 0.1},
        "parallel": {"micro_batch_size": 4, "timeout_minutes": 2, **layout},
        "policy": {"lr": 1e-3},
        "critic": {"lr": 1e-3},
        "eval": {"prompts": 4, "reward": "python:gipo_mc.data.synthetic:gold"},
    }
    return load_config(None, list(overrides), base)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class GradientRecorder:
    """Takes the place of `Engine.step`: keeps the gradients of each step, whole, and changes no parameter.

    gradients: one dict a step, Megatron name of the stage -> gradient, tensor-parallel shards stacked.
    """

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def __call__(self, engine: Engine) -> StepResult:
        assert engine.optimizer is not None
        for parameter in engine.model.parameters():
            parameter.grad_dtype = None  # a float64 model of a test is given Megatron's float32 buffers
        engine.optimizer.prepare_grads()
        norm = float(engine.optimizer.get_grad_norm())
        self.gradients.append({name: p.main_grad.clone() for name, p in engine.model.named_parameters()})
        return StepResult(norm, True, engine.lr)


def whole_gradients(engine: Engine, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of this stage under Hugging Face names, the tensor-parallel shards put together."""
    from megatron.core import parallel_state

    from gipo_mc.models.weights.table import stage_mappings

    group = parallel_state.get_tensor_model_parallel_group()
    whole: dict[str, Tensor] = {}
    mappings: Any = stage_mappings(engine.model)  # type: ignore[arg-type]
    for name, gradient in gradients.items():
        if name.startswith("group_head."):
            whole[name] = gradient
        else:
            whole |= mappings[name].merge(list(gather_in_rank_order(gradient, group).unbind()))
    return whole


def initialize(config: Config) -> None:
    """Groups of a test's rank."""
    runtime.initialize(config.parallel, "cpu")


def global_tensors(*paths: Path) -> list[dict[str, Tensor]]:
    """Every tensor of each checkpoint, whole, by its name: weights and Adam moments."""
    return run_ranks(_global_tensors, 1, paths)[0]  # type: ignore[no-any-return]


def _global_tensors(rank: int, paths: tuple[Path, ...]) -> list[dict[str, Tensor]]:
    from megatron.core import dist_checkpointing

    runtime.initialize(ParallelConfig(timeout_minutes=1), "cpu")
    loaded = [dist_checkpointing.load_plain_tensors(str(path / "shards")) for path in paths]
    return [{name: value for name, value in one.items() if isinstance(value, Tensor)} for one in loaded]
