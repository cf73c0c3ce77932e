"""Everything an RL run needs before its first iteration: models, tokenizers, prompts, rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.group_inference import GroupState
from gipo_mc.config import Config
from gipo_mc.data.loading import load_prompts, sources_of
from gipo_mc.data.sets import PromptSet
from gipo_mc.data.tokenizer import same_tokens
from gipo_mc.errors import ConfigError
from gipo_mc.models.llama import LlamaModel
from gipo_mc.parallel.engine import Engine
from gipo_mc.training.rewards import FunctionReward, ModelReward, Reward, is_function, load_function
from gipo_mc.training.scoring import Models, inferred_groups
from gipo_mc.training.session import Session


@dataclass(frozen=True)
class RLSetup:
    """What the loop works with. held_out: evaluation prompts, or None. gold: the reward that training never sees."""

    models: Models
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    held_out: PromptSet | None
    gold: Reward | None

    @property
    def policy_model(self) -> LlamaModel:
        """The policy's stage on this rank, for generation."""
        model = self.models.policy.model
        assert isinstance(model, LlamaModel)
        return model

    @property
    def engines(self) -> Mapping[str, Engine]:
        """What is trained, and so belongs into checkpoints."""
        return {"policy": self.models.policy, "critic": self.models.critic}

    @property
    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        """One for each role: the critic reads the policy's tokens."""
        return {"policy": self.tokenizer, "critic": self.tokenizer}


def set_up(session: Session) -> RLSetup:
    """Load models and data as the configuration says, and say so. Raises ConfigError, DataError, CheckpointError."""
    config = session.config
    if not config.model.policy:
        raise ConfigError("model.policy is empty: give an SFT run, a Hugging Face folder or a hub name.")
    if not config.model.reward:
        raise ConfigError(
            "model.reward is empty: give a reward-model run or folder, or python:package.module:function."
        )
    policy_source = session.source(config.model.policy, "model.policy")
    reference_source = session.source(config.model.reference or config.model.policy, "model.reference")
    tokenizer = session.tokenizer(policy_source, config.model.tokenizer)
    critic_name = config.model.critic or _critic_start(session, tokenizer)
    critic_source = session.source(critic_name, "model.critic")
    # Critic and reference read the policy's token ids.
    for source in (critic_source, reference_source):
        session.tokenizer(source, config.model.tokenizer or str(policy_source.folder))

    longest = config.data.prompt_length + config.rollout.max_new_tokens
    for source in (policy_source, reference_source, critic_source):
        source.shape.check(session.layout.tensor, session.layout.pipeline, sequence_length=longest, tokenizer_size=0)
    prompts = load_prompts(config.data, tokenizer, seed=config.run.seed)
    held_out = None
    if config.eval.prompts and sources_of(config.data, "prompts", "evaluation"):
        held_out = load_prompts(config.data, tokenizer, seed=config.run.seed, part="evaluation")

    iterations = config.run.iterations
    steps = optimizer_steps(config, iterations)
    policy_steps = optimizer_steps(config, max(1, iterations - config.algorithm.critic_warmup))
    groups = inferred_groups(config)
    reward = _reward(session, config.model.reward, "model.reward", tokenizer)
    gold = _reward(session, config.eval.reward, "eval.reward", tokenizer) if config.eval.reward else None
    models = Models(
        policy=session.load(policy_source, "lm", config.policy, total_steps=policy_steps),
        reference=session.load(reference_source, "lm"),
        critic=session.load(
            critic_source,
            "critic" if groups > 1 else "value",
            config.critic,
            total_steps=steps,
            groups=groups if groups > 1 else 0,
        ),
        reward=reward,
    )
    session.header(
        [
            ("algorithm", _describe_algorithm(config)),
            ("policy", policy_source.name),
            ("reference", reference_source.name),
            ("critic", critic_source.name),
            ("reward", config.model.reward),
            ("prompts", prompts.describe()),
            ("held out", held_out.describe() if held_out else "none"),
        ]
    )
    return RLSetup(models, tokenizer, prompts, held_out, gold)


def optimizer_steps(config: Config, iterations: int) -> int:
    """Optimizer steps in a number of iterations, for the learning-rate schedules."""
    settings = config.algorithm
    return iterations * settings.epochs * math.ceil(config.rollout.batch_size / settings.mini_batch_size)


def restore(session: Session, setup: RLSetup) -> GroupState:
    """Continue from the run folder's checkpoint; the group state to begin with."""
    state: dict[str, Any] | None = session.resume(setup.engines)
    if state is None:
        return GroupState.initial(inferred_groups(session.config))
    return GroupState.from_dict(state["groups"])


def _reward(session: Session, name: str, key: str, tokenizer: PreTrainedTokenizerBase) -> Reward:
    if is_function(name):
        return FunctionReward(name, load_function(name, key), tokenizer, session.layout)
    config, source = session.config, session.source(name, key)
    own = session.tokenizer(source)
    if same_tokens(own, tokenizer):
        longest = config.data.prompt_length + config.rollout.max_new_tokens
        source.shape.check(session.layout.tensor, session.layout.pipeline, sequence_length=longest)
    size, template = config.parallel.micro_batch_size, config.data.chat_template
    return ModelReward(session.load(source, "reward"), own, tokenizer, size, template)


def _critic_start(session: Session, tokenizer: PreTrainedTokenizerBase) -> str:
    """The reward model, where it reads the policy's tokens; else the policy."""
    model = session.config.model
    if is_function(model.reward):
        return model.policy
    if same_tokens(session.tokenizer(session.source(model.reward, "model.reward")), tokenizer):
        return model.reward
    session.warn("The reward model has a tokenizer of its own, so the critic starts from the policy (model.critic).")
    return model.policy


def _describe_algorithm(config: Config) -> str:
    settings = config.algorithm
    if settings.name == "ppo_no_kl":
        return "PPO without KL penalty"
    if settings.name == "ppo":
        return f"PPO with KL penalty {settings.kl_coef:g}"
    kind = "adaptive KL" if settings.adaptive_kl else "KL"
    return f"GI-PPO, {settings.groups} groups, {kind} {settings.kl_coef:g}, beta {settings.beta_policy:g}"
