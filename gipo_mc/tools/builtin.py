"""The built-in task: what every trainer does when nothing names a model or data.

A small Llama is made, fine-tuned on demonstrations, a reward model is trained on preference pairs, and GI-PPO starts
from the two; DPO starts from the first and needs the pairs only. The whole pipeline without a file or a network. See
`gipo_mc.data.synthetic` for the task itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gipo_mc.config import Config, load_config
from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import on_main
from gipo_mc.run import checkpoint
from gipo_mc.run.command import BuiltinTask
from gipo_mc.supervised import reward_model, sft
from gipo_mc.tools.new_model import create_model

#: KL penalty of the built-in task with its reward model: GI-PPO's, whose effective penalty is this times the mean
#: probability of the best group, and PPO's, which is about that. With the learning rate of 1e-4 they gave more gold
#: reward on easy and hard prompts than 0.75 and 0.5 with 2e-4 in two seeds; with 0.05 gold fell out of domain.
GI_PPO_KL = 0.2
PPO_KL = 0.15

_COMMON: dict[str, Any] = {
    "data": {
        "prompts": ["builtin"],
        "preferences": ["builtin"],
        "demonstrations": ["builtin"],
        "evaluation": ["builtin:easy", "builtin:hard"],
        "prompt_length": 8,
        "sequence_length": 24,
    },
    "rollout": {"batch_size": 128, "max_new_tokens": 10},
}


def layout_for(ranks: int) -> dict[str, int]:
    """Tensor and pipeline parallelism that show both where the ranks allow it; the rest is data parallel."""
    if ranks % 4 == 0:
        return {"tensor": 2, "pipeline": 2}
    return {"tensor": 2, "pipeline": 1} if ranks % 2 == 0 else {"tensor": 1, "pipeline": 1}


def sft_base() -> dict[str, Any]:
    """Configuration of `train_sft.py` without arguments."""
    return _base(
        run={"name": "builtin_sft", "iterations": 150},
        model={"policy": "${run.dir}/builtin_model"},
        policy={"lr": 3e-3, "schedule": "cosine", "warmup": 10},
        train={"batch_size": 64},
        parallel={"micro_batch_size": 32},
        checkpoint={"every": 50},
        eval={"every": 50, "prompts": 256},
    )


def reward_base() -> dict[str, Any]:
    """Configuration of `train_reward.py` without arguments."""
    return _base(
        run={"name": "builtin_reward", "iterations": 200},
        model={"policy": "${run.dir}/builtin_sft"},
        policy={"lr": 1e-3, "schedule": "cosine", "warmup": 10},
        train={"batch_size": 64},
        parallel={"micro_batch_size": 64},
        checkpoint={"every": 100},
        eval={"every": 50, "prompts": 256},
    )


def dpo_base() -> dict[str, Any]:
    """Configuration of `train_dpo.py` without arguments."""
    return _base(
        run={"name": "builtin_dpo", "iterations": 200},
        model={"policy": "${run.dir}/builtin_sft"},
        policy={"lr": 3e-4, "schedule": "cosine", "warmup": 10},
        train={"batch_size": 64},
        parallel={"micro_batch_size": 64},
        checkpoint={"every": 100},
        eval={"every": 20, "prompts": 256},
    )


def gi_ppo_base() -> dict[str, Any]:
    """Configuration of `train_gi_ppo.py` without arguments."""
    return _base(
        run={"name": "builtin_gi_ppo", "iterations": 50},
        model={"policy": "${run.dir}/builtin_sft", "reward": "${run.dir}/builtin_reward"},
        data={"evaluation": ["builtin:easy", "builtin:hard", "builtin:ood"]},
        algorithm={"mini_batch_size": 64, "kl_coef": GI_PPO_KL},
        policy={"lr": 1e-4},
        critic={"lr": 1e-3},
        parallel={"micro_batch_size": 64},
        checkpoint={"every": 20},
        eval={"every": 10, "prompts": 128, "reward": "python:gipo_mc.data.synthetic:gold"},
    )


def _base(**sections: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {name: dict(section) for name, section in _COMMON.items()}
    merged["parallel"] = dict(layout_for(runtime.world_size()))
    for name, section in sections.items():
        merged[name] = merged.get(name, {}) | section
    return merged


def _make_model(config: Config) -> None:
    folder = Path(config.run.dir) / "builtin_model"
    if Path(config.model.policy) != folder:
        return
    runtime.initialize(config.parallel, config.device)

    def work() -> None:
        if not (folder / "config.json").is_file():
            create_model(folder, builtin_tokenizer(), config.run.seed, **builtin_llama_config())

    on_main(work)


def _train_sft(config: Config) -> None:
    _train_first(config, "builtin_sft", config.model.policy, SFT, sft.train)


def _train_sft_and_reward(config: Config) -> None:
    _train_sft(config)
    _train_first(config, "builtin_reward", config.model.reward, REWARD, reward_model.train)


def _train_first(config: Config, name: str, wanted: str, task: BuiltinTask, train: Callable[[Config], None]) -> None:
    """Train the built-in run `name` if `wanted` is that run and it has no finished checkpoint."""
    folder = Path(config.run.dir) / name
    if Path(wanted) != folder:
        return
    runtime.initialize(config.parallel, config.device)
    base = task.base()
    base["parallel"] |= config.parallel.model_dump(exclude={"micro_batch_size"})
    overrides = [f"run.dir={config.run.dir}", f"run.seed={config.run.seed}", f"device={config.device}"]
    prepared = load_config(None, [*overrides, f"dtype={config.dtype}"], base)
    done = on_main(lambda: prepared.run.iterations in checkpoint.steps(folder / "checkpoints"))
    if not done:
        if dist.get_rank() == 0:
            steps = prepared.run.iterations
            print(
                f"The built-in task needs {folder} first: {steps} steps, about a minute on two CPU cores.", flush=True
            )
        task.prepare(prepared)
        train(prepared)


#: The task of each trainer: its configuration, and what it makes or trains before.
SFT = BuiltinTask(sft_base, _make_model)
REWARD = BuiltinTask(reward_base, _train_sft)
DPO = BuiltinTask(dpo_base, _train_sft)
GI_PPO = BuiltinTask(gi_ppo_base, _train_sft_and_reward)
