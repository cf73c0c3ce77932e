"""This project's side of every workload: generation through the rollout engine, training through the trainers' own
loops, which take turns where they log a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.rivals import material as rows_of
from benchmarks.rivals.loops import Generate, take_generation_turns, take_memory_turns
from benchmarks.rivals.protocol import Turns, versions
from benchmarks.rivals.units import Unit
from gipo_mc.config import Config, ParallelConfig, load_config
from gipo_mc.generation.assemble import sampling_uniforms
from gipo_mc.generation.engine import RolloutEngine, Sampling
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.models.stage import StageModel
from gipo_mc.ops import describe_build
from gipo_mc.parallel import runtime
from gipo_mc.rl.rollout import limits_of, longest_sequence
from gipo_mc.run.model_sources import load_model, resolve
from gipo_mc.run.session import Session

#: Sequences of one pass of training.
MICRO_BATCH = 16


def our_engine(model: StageModel, config: Config) -> RolloutEngine:
    """The engine of a configuration; the one place here that knows its class."""
    return MegatronEngine(model, limits_of(config), longest_sequence(config))


def about() -> dict[str, Any]:
    return {"versions": versions("torch", "megatron-core", "transformers"), "kernels": describe_build()}


def generation(material: Path, turns: Turns) -> None:
    take_generation_turns(turns, _generator(material), about())


def memory(material: Path, turns: Turns) -> None:
    runtime.initialize(ParallelConfig(), "cpu")
    take_memory_turns(turns, lambda: _generator(material), about())


def _generator(material: Path) -> Generate:
    """f(unit, step) -> its figures. The model's last id ends a response and is never drawn: all have full length."""
    layout = runtime.initialize(ParallelConfig(), "cpu")
    source = resolve(str(material / "model"), "model.policy")
    model = load_model(source, layout, head="lm", dtype=torch.float32, trainable=False, seed=1)
    engine = our_engine(model, load_config(None, []))
    prompts = rows_of.prompts(material, "generation")
    last = rows_of.VOCABULARY - 1

    def generate(unit: Unit, step: int) -> dict[str, Any]:
        index = [i for i in range(unit.prompts) for _ in range(unit.samples)]
        sampling = Sampling(rows_of.NEW_TOKENS, last, top_p=unit.top_p, known_ids=last)
        noise = sampling_uniforms(step, "rivals", step, range(len(index)), rows_of.NEW_TOKENS)
        engine.sync_weights()
        found = engine.generate([prompts[i] for i in index], sampling, noise)
        return {"tokens": int(found.response_length_B.sum()), "responses": len(index)}

    return generate


# ------------------------------------------------------------------------------------------------------- training
def sft(material: Path, turns: Turns) -> None:
    from gipo_mc.supervised.sft import train

    _take_turns(turns, lambda metrics: {"tokens": metrics["tokens"], "loss": metrics["loss"]})
    train(_supervised(material, "demonstrations", "demonstrations"))


def dpo(material: Path, turns: Turns) -> None:
    from gipo_mc.supervised.dpo import train

    _take_turns(turns, lambda metrics: {"tokens": metrics["tokens"], "loss": metrics["loss"]})
    train(_supervised(material, "preferences", "pairs"))


def reward(material: Path, turns: Turns) -> None:
    from gipo_mc.supervised.reward_model import train

    tokens = rows_of.tokens_read(material, "pairs")
    _take_turns(turns, lambda metrics: {"tokens": tokens, "loss": metrics["loss"]})
    train(_supervised(material, "preferences", "pairs"))


def ppo(material: Path, turns: Turns) -> None:
    from gipo_mc.rl.gi_ppo import train

    def figures(metrics: Mapping[str, float]) -> dict[str, Any]:
        phases = {name.removeprefix("time/"): value for name, value in metrics.items() if name.startswith("time/")}
        return {"tokens": round(phases["total"] * metrics["throughput/tokens_per_second"]), "phases": phases}

    _take_turns(turns, figures)
    train(
        load_config(
            None,
            [],
            _common(material)
            | {
                "model": {"policy": str(material / "model"), "reward": str(material / "reward")},
                "data": {"prompts": [str(material / "ppo.jsonl")], "prompt_length": rows_of.FILES["ppo"].prompt},
                "rollout": {"batch_size": rows_of.FILES["ppo"].count, "max_new_tokens": rows_of.NEW_TOKENS},
                "algorithm": {"name": "ppo", "mini_batch_size": rows_of.FILES["ppo"].count // 2},
                "critic": {"lr": 1e-7},
            },
        )
    )


def _common(material: Path) -> dict[str, Any]:
    """A run that goes on until it is ended and only logs. Its steps are small, so that each has the same to do."""
    return {
        "run": {"dir": str(material / "runs"), "name": "ours", "iterations": 1000, "resume": False},
        "device": "cpu",
        "dtype": "float32",
        "parallel": {"micro_batch_size": MICRO_BATCH},
        "policy": {"lr": 1e-7},
        "checkpoint": {"every": 0},
        "eval": {"every": 0, "prompts": 0},
    }


def _supervised(material: Path, kind: str, file: str) -> Config:
    rows = rows_of.FILES[file]
    return load_config(
        None,
        [],
        _common(material)
        | {
            "model": {"policy": str(material / "model")},
            "data": {
                kind: [str(material / f"{file}.jsonl")],
                "prompt_length": rows.prompt,
                "sequence_length": rows.whole,
            },
            "train": {"batch_size": rows.count},
        },
    )


def _take_turns(turns: Turns, figures: Callable[[Mapping[str, float]], dict[str, Any]]) -> None:
    """Let the loop of this process wait after each step that it logs. The first one is the warm-up."""
    log = Session.log

    def log_and_wait(session: Session, step: int, metrics: Mapping[str, float], *, show: bool = True) -> None:
        log(session, step, metrics, show=show)
        turns.wait(**(figures(metrics) if step > 1 else about()))

    Session.log = log_and_wait  # type: ignore[method-assign]
