"""The built-in task: what every trainer does when nothing names a model or data.

A small Llama is made and fine-tuned on demonstrations. GI-PPO starts from it, with the task's proxy as reward; so do a
reward model and DPO, trained on preference pairs. The whole pipeline without a file or a network. See
`gipo_mc.data.synthetic` for the task itself, and configs/builtin_learned_reward.yaml for GI-PPO on that reward model.
This file says what is to be done; `builtin_models` does it, and imports what that takes.
"""

from __future__ import annotations

from typing import Any

from gipo_mc.config import Config, load_config
from gipo_mc.parallel.launcher import world_size
from gipo_mc.run.command import BuiltinTask

#: The reward of RL, and the aim itself, which only evaluations see. The proxy and no reward model, because that is
#: where docs/results/builtin.md shows a gain: with a reward model of the task's noisy pairs GI-PPO cannot be told from
#: PPO.
PROXY, GOLD = "python:gipo_mc.data.synthetic:proxy", "python:gipo_mc.data.synthetic:gold"
#: Options that make PPO with KL of GI-PPO's base. Both have what the study chose for 100 iterations: the KL penalty is
#: the same, the learning rate is not, and GI-PPO has the heavier variance penalty, with its bound, over responses.
PPO = ("algorithm.name=ppo", "policy.lr=5e-05")

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
    """Configuration of `train_sft.py` without arguments. Shorter, it leaves the hard domain's chains unlearned, which
    RL then cannot raise either."""
    return _base(
        run={"name": "builtin_sft", "iterations": 600},
        model={"policy": "${run.dir}/builtin_model"},
        data={"max_rows": 16384},
        policy={"lr": 3e-3, "schedule": "cosine", "warmup": 10},
        train={"batch_size": 64},
        parallel={"micro_batch_size": 32},
        checkpoint={"every": 200},
        eval={"every": 100, "prompts": 256},
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
        run={"name": "builtin_gi_ppo", "iterations": 100},
        model={"policy": "${run.dir}/builtin_sft", "reward": PROXY},
        data={"evaluation": ["builtin:easy", "builtin:hard", "builtin:ood"]},
        algorithm={
            "mini_batch_size": 64,
            "kl_coef": 0.01,
            "beta_policy": 1.0,
            "reweight_cap": 1.6,
            "penalty_over": "responses",
        },
        policy={"lr": 1e-4},
        critic={"lr": 1e-3},
        parallel={"micro_batch_size": 64},
        checkpoint={"every": 20},
        eval={"every": 20, "prompts": 256, "reward": GOLD},
    )


def _base(**sections: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {name: dict(section) for name, section in _COMMON.items()}
    merged["parallel"] = dict(layout_for(world_size()))
    for name, section in sections.items():
        merged[name] = merged.get(name, {}) | section
    return merged


def _make_model(config: Config) -> None:
    from gipo_mc.tools.builtin_models import make_model

    make_model(config)


def _train_sft(config: Config) -> None:
    from gipo_mc.tools.builtin_models import train_sft

    base = SFT.base()
    base["parallel"] |= config.parallel.model_dump(exclude={"micro_batch_size"})
    overrides = [f"run.dir={config.run.dir}", f"run.seed={config.run.seed}", f"device={config.device}"]
    train_sft(config, load_config(None, [*overrides, f"dtype={config.dtype}"], base), SFT.prepare)


#: The task of each trainer: its configuration, and what it makes or trains before.
SFT = BuiltinTask(sft_base, _make_model)
REWARD = BuiltinTask(reward_base, _train_sft)
DPO = BuiltinTask(dpo_base, _train_sft)
GI_PPO = BuiltinTask(gi_ppo_base, _train_sft)
