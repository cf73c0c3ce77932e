"""Which options a command reads: `--help` shows these, and a run that continues keeps those of them that are fixed."""

from __future__ import annotations

from gipo_mc.config.schema import options

_RL_ONLY = (
    *("rollout", "algorithm", "critic", "model.critic", "model.reward", "eval.reward", "memory.offload"),
    *("reward", "eval.pairs"),
)
_FROZEN = ("parallel.frozen_tensor", "parallel.frozen_pipeline")
_RL_DATA = ("data.prompts", "data.prompt_length", "data.reward_chat_template")
_SFT_DATA = ("data.demonstrations", "data.turns")

TRAINERS = ("train_gi_ppo", "train_sft", "train_reward", "train_dpo")
#: Command -> sections and options that it does not read. They may change, because nothing depends on them.
UNREAD: dict[str, tuple[str, ...]] = {
    "train_sft": (*_RL_ONLY, *_RL_DATA, *_FROZEN, "model.reference", "dpo", "train.margin"),
    "train_reward": (*_RL_ONLY, *_RL_DATA, *_SFT_DATA, *_FROZEN, "model.reference", "dpo"),
    "train_dpo": (*_RL_ONLY, *_RL_DATA, *_SFT_DATA, "train.margin"),
    "train_gi_ppo": ("train", "dpo", "data.sequence_length", "data.turns", "data.join"),
    "generate": (
        *("run.dir", "run.name", "run.iterations", "run.resume", "run.grace_seconds", "run.trackers", "tracking"),
        *("parallel.micro_batch_size", "parallel.tokens_per_micro_batch", "parallel.logit_rows"),
        *("parallel.distributed_optimizer", "parallel.overlap", "memory", "precision.fp8", *_FROZEN),
        *("model.reference", "model.critic", "model.reward", "rollout.batch_size", "rollout.samples_per_prompt"),
        "rollout.refusals",
        *("data.sequence_length", "data.turns", "data.join", "data.reward_chat_template"),
        *("algorithm", "policy", "critic", "train", "dpo", "checkpoint", "eval.every", "eval.reward"),
        *("reward", "eval.pairs"),
    ),
}


def verb_of(command: str) -> str:
    """What a person types behind gipo-mc: "train gi-ppo" of "train_gi_ppo"."""
    return command.replace("_", " ", 1).replace("_", "-")


def read_by(command: str) -> list[str]:
    """Keys of the options that `command` reads, in the order of the schema; all of them where it is not known here."""
    unread = UNREAD.get(command, ())
    return [key for key in options() if not any(key == name or key.startswith(f"{name}.") for name in unread)]
