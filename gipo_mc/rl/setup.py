"""Everything an RL run needs before its first iteration: models, tokenizers, prompts, rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from gipo_mc.algorithms.group_source import GroupSource
from gipo_mc.algorithms.state import Health, RLState
from gipo_mc.config import Config
from gipo_mc.config.reward import is_model
from gipo_mc.data.loading import load_prompts
from gipo_mc.data.named import sources_of
from gipo_mc.data.sets import PromptSet, seen_in_training
from gipo_mc.data.tokenizer import same_tokens
from gipo_mc.errors import ConfigError
from gipo_mc.generation.choose import BroughtEngine, check_engine, rollout_engine
from gipo_mc.generation.engine import RolloutEngine
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.models.stage import StageModel
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.memory.movers import mover_for
from gipo_mc.parallel.memory.offload import Offloader
from gipo_mc.presets import PRESETS
from gipo_mc.rl.learned.pairs import HeldOutPairs, load_pairs
from gipo_mc.rl.learned.reference import FILE, ReferenceSamples
from gipo_mc.rl.reward_sources.loading import describe_reward, load_reward, training_reward
from gipo_mc.rl.reward_sources.mixed import models_in
from gipo_mc.rl.reward_sources.troubles import Troubles
from gipo_mc.rl.rewards import Reward
from gipo_mc.rl.rollout import limits_of, longest_sequence
from gipo_mc.rl.scoring import Models
from gipo_mc.run.model_sources import NO_BUILTIN, ModelSource, check_fits
from gipo_mc.run.session import Session


@dataclass(frozen=True)
class RLSetup:
    """What the loop works with.

    rollout_engine: generates with the policy. group_source: where group probabilities come from. held_out: evaluation
    prompts, or None. gold: the reward that training never sees. pairs: of eval.pairs. starts_as_reference: is the
    policy's start the reference? troubles: what the training reward says of its failures.
    """

    models: Models
    rollout_engine: RolloutEngine
    group_source: GroupSource
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    held_out: PromptSet | None
    gold: Reward | None
    pairs: HeldOutPairs | None
    starts_as_reference: bool
    troubles: Troubles

    @property
    def evaluates(self) -> bool:
        """Is there anything to evaluate with?"""
        return self.held_out is not None or self.pairs is not None

    @property
    def engines(self) -> Mapping[str, Engine]:
        """What is trained, and so belongs into checkpoints."""
        trained = {
            "policy": self.models.policy, "critic": self.models.critic, "classifier": self.models.classifier
        }  # fmt: skip
        return {role: engine for role, engine in trained.items() if engine is not None}

    @property
    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        """One for each role: all of them read the policy's tokens."""
        return dict.fromkeys(self.engines, self.tokenizer)


def set_up(session: Session) -> RLSetup:
    """Load models and data as the configuration says, and say so. Raises ConfigError, DataError, CheckpointError."""
    config = session.config
    sources = _find_sources(session)
    tokenizer = sources.tokenizer
    told = config.reward.from_outside(config.model.reward)
    asked = told or not is_model(config.eval.reward or "none")  # by a reward that is given the whole row
    prompts = load_prompts(config.data, tokenizer, seed=config.run.seed, columns=asked)
    session.trains_on("data.prompts", prompts, tokenizer, named_domains=told)
    if told:
        session.fixed.frozen["data.prompts (columns)"] = prompts.columns_hash()
    held_out = None
    if config.eval.prompts and sources_of(config.data, "prompts", "evaluation"):
        held_out = load_prompts(config.data, tokenizer, seed=config.run.seed, part="evaluation", columns=asked)
        if text := seen_in_training(prompts, held_out):
            session.warn(text)
    groups = group_source(config, prompts)
    if config.memory.offload:
        session.offloader = Offloader(config.memory.offload, mover_for(session.layout.device, session.folder.path))
    gold = None
    if config.eval.reward:
        gold = load_reward(session, config.eval.reward, "eval.reward", tokenizer, session.warn)
    troubles = Troubles(session.warn)
    models = _load_models(session, sources, troubles)
    for reward in (*models_in(models.reward), *models_in(gold)):
        for rows in (prompts, held_out or ()):
            reward.reader.check(rows)
    session.header(
        [
            ("algorithm", describe_algorithm(config)),
            ("groups", describe_groups(config, groups)),
            ("policy", sources.policy.name),
            ("reference", sources.reference.name),
            ("critic", sources.critic.name if models.critic is not None else "none"),
            *(("reward", line) for line in describe_reward(config, models.reward)),
            ("prompts", prompts.describe()),
            ("held out", held_out.describe() if held_out else "none"),
            *([("offload", session.offloader.describe())] if config.memory.offload else []),
        ]
    )
    engine = _rollout_engine(config, models)
    session.offloader.in_turn(engine.resident for engine in _in_turn(models))
    same = sources.policy.folder.resolve() == sources.reference.folder.resolve()
    pairs = None
    if config.eval.pairs and config.eval.prompts:
        pairs = HeldOutPairs(load_pairs(config, tokenizer), models, tokenizer, config, session.warn)
        troubles.tell()
    return RLSetup(models, engine, groups, tokenizer, prompts, held_out, gold, pairs, same, troubles)


def _rollout_engine(config: Config, models: Models) -> RolloutEngine:
    policy = models.policy.model
    assert isinstance(policy, StageModel)
    # A policy that leaves between its turns comes back elsewhere.
    limits = replace(limits_of(config), keep="idle" not in config.memory.offload)
    engine = rollout_engine(config.rollout.engine, policy, limits, longest_sequence(config))
    resident = models.policy.resident
    return engine if resident is None else BroughtEngine(engine, resident.generate)


def _in_turn(models: Models) -> list[Engine]:
    """Models in the order in which an iteration works with them: `score`, then the updates."""
    trained = [engine for engine in (models.critic, models.classifier) if engine is not None]
    reward = [part.engine for part in models_in(models.reward)]
    return [models.policy, models.reference, *trained, *reward, *trained]


@dataclass(frozen=True)
class _Sources:
    """Where the models come from, and the policy's tokenizer. critic: the policy's source where it starts nothing."""

    policy: ModelSource
    reference: ModelSource
    critic: ModelSource
    tokenizer: PreTrainedTokenizerBase


def _find_sources(session: Session) -> _Sources:
    config = session.config
    if not config.model.policy:
        raise ConfigError(f"model.policy is empty: give an SFT run, a Hugging Face folder or a hub name. {NO_BUILTIN}")
    if not config.model.reward:
        raise ConfigError(
            "model.reward is empty: give a reward-model run or folder, python:package.module:function, or the address "
            f"of a server. {NO_BUILTIN}"
        )
    policy = session.source(config.model.policy, "model.policy")
    check_engine(config.rollout.engine, policy.shape, session.layout)
    reference = session.source(config.model.reference or config.model.policy, "model.reference")
    tokenizer = session.tokenizer(policy, config.model.tokenizer)
    critic = policy
    if _has_critic(config) or _has_own_trunk(config):
        critic = session.source(config.model.critic or _critic_start(session, tokenizer), "model.critic")
    # Critic and reference read the policy's token ids.
    for source in (critic, reference):
        session.tokenizer(source, config.model.tokenizer or str(policy.folder))
    longest = longest_sequence(config)
    layout = session.layout
    for source, own in ((policy, layout), (reference, layout.of_frozen), (critic, layout)):
        check_fits(source, own, sequence_length=longest)
    return _Sources(policy, reference, critic, tokenizer)


def _load_models(session: Session, sources: _Sources, troubles: Troubles) -> Models:
    config, settings = session.config, session.config.algorithm
    iterations, own_trunk = config.run.iterations, _has_own_trunk(config)
    epochs = settings.critic_epochs or settings.epochs
    policy_steps = optimizer_steps(config, max(1, iterations - settings.critic_warmup), settings.epochs)
    critic = classifier = None
    if _has_critic(config):
        steps = optimizer_steps(config, iterations, epochs)
        critic = _critic(session, sources.critic, steps, groups=settings.inferred and not own_trunk)
    if own_trunk:
        steps = optimizer_steps(config, math.ceil(iterations / settings.classifier_every), epochs)
        classifier = _critic(session, sources.critic, steps, groups=True)
    policy = session.load(sources.policy, "lm", config.policy, total_steps=policy_steps)
    reference = session.load(sources.reference, "lm", key="model.reference")
    reward = training_reward(session, sources.tokenizer, troubles.hold)
    samples = _reference_samples(session, reference, reward, sources.tokenizer) if settings.reference_samples else None
    return Models(policy, reference, critic, reward, classifier, samples)


def _reference_samples(
    session: Session, reference: Engine, reward: Reward, tokenizer: PreTrainedTokenizerBase
) -> ReferenceSamples:
    """The reference generates on the training ranks, whatever the policy's engine is."""
    config, model = session.config, reference.model
    assert isinstance(model, StageModel)
    engine: RolloutEngine = MegatronEngine(model, replace(limits_of(config), keep=False), longest_sequence(config))
    if reference.resident is not None:
        engine = BroughtEngine(engine, reference.resident.generate)
    return ReferenceSamples(engine, reward, tokenizer, config, session.folder.path / FILE)


def _has_critic(config: Config) -> bool:
    return config.algorithm.advantage == "gae"


def _has_own_trunk(config: Config) -> bool:
    """Is the classifier a model of its own?"""
    return config.algorithm.inferred and config.algorithm.group_trunk == "own"


def group_source(config: Config, prompts: PromptSet) -> GroupSource:
    """Where the group probabilities of this run come from. Raises ConfigError where known domains do not fit."""
    settings = config.algorithm
    domains = tuple(sorted(prompts.domains)) if settings.groups_from == "domain" else ()
    if settings.groups_from == "domain" and len(domains) != settings.groups:
        raise ConfigError(
            f"algorithm.groups_from=domain makes a group of each of the {len(domains)} domains of the prompts "
            f"({', '.join(domains)}), not algorithm.groups={settings.groups}: "
            + (f"set algorithm.groups={len(domains)}" if len(domains) > 1 else "give prompts of several domains")
        )
    return GroupSource(settings.groups_from, settings.group_count, domains, settings.assignment == "hard")


def _critic(session: Session, source: ModelSource, steps: int, *, groups: bool) -> Engine:
    """A critic, with the group classifier on it or without. As a classifier alone its value head is left as it is."""
    config = session.config
    count = config.algorithm.groups if groups else 0
    return session.load(source, "critic" if groups else "value", config.critic, total_steps=steps, groups=count)


def optimizer_steps(config: Config, iterations: int, epochs: int) -> int:
    """Optimizer steps in a number of iterations, for the learning-rate schedules."""
    settings = config.algorithm
    return iterations * epochs * math.ceil(config.rollout.batch_size / settings.mini_batch_size)


def restore(session: Session, setup: RLSetup) -> RLState:
    """Continue from the run folder's checkpoint; the state to begin with."""
    state: dict[str, Any] | None = session.resume(setup.engines)
    if setup.models.reference_samples is not None:
        setup.models.reference_samples.begin(anew=state is None)
    if state is None:
        return RLState.initial(session.config.algorithm.group_count)
    return replace(RLState.from_dict(state["groups"]), health=Health.from_dict(state.get("health")))


def _critic_start(session: Session, tokenizer: PreTrainedTokenizerBase) -> str:
    """The reward model, where it reads the policy's tokens; else the policy."""
    model = session.config.model
    if not is_model(model.reward):
        return model.policy
    if same_tokens(session.tokenizer(session.source(model.reward, "model.reward")), tokenizer):
        return model.reward
    session.warn("The reward model has a tokenizer of its own, so the critic starts from the policy (model.critic).")
    return model.policy


def describe_algorithm(config: Config) -> str:
    """The preset, what was changed in it, and the numbers that matter."""
    settings = config.algorithm
    preset = PRESETS[settings.name]
    changed = [
        f"{key}={getattr(settings, key)}" for key, value in preset.algorithm.items() if getattr(settings, key) != value
    ]
    parts = [preset.title + (f" with {', '.join(changed)}" if changed else "")]
    if settings.kl_penalty != "none":
        parts.append(f"{settings.kl_penalty.replace('_', ' ')} KL {settings.kl_coef:g}")
    if settings.penalty == "variance" and settings.group_count > 1:
        parts.append(f"beta {settings.beta_policy:g}")
    if settings.penalty == "group_dro":
        parts.append(f"group-DRO step {settings.dro_step:g}")
    if settings.advantage != "gae":
        parts.append(f"{settings.advantage} of {config.rollout.samples_per_prompt} samples a prompt, no critic")
    return ", ".join(parts)


def describe_groups(config: Config, source: GroupSource) -> str:
    """Where the groups come from, an oracle named as such."""
    settings = config.algorithm
    if source.oracle:
        return f"ORACLE, told the known domains: {', '.join(source.domains)}"
    kind = {
        "classifier": f"{source.groups}, inferred ({settings.group_trunk} trunk, reads {settings.group_input})",
        "none": "none",
        "reward": "2, rewards above and below their running mean",
        "gain": "2, gains over the reference above and below the mean of the batch",
        "uniform": f"{source.groups}, equally likely for every response",
    }[settings.groups_from]
    return kind + (", hard assignment" if source.hard else "")
