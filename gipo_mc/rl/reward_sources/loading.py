"""The rewards that a configuration names: found, loaded, put together, and described."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config
from gipo_mc.config.reward import is_function, is_model, is_server
from gipo_mc.data.tokenizer import same_tokens
from gipo_mc.rl.learned.ensemble import EnsembleReward
from gipo_mc.rl.reward_sources.functions import FunctionReward
from gipo_mc.rl.reward_sources.mixed import MixedReward, models_in
from gipo_mc.rl.reward_sources.server import ServerReward
from gipo_mc.rl.rewards import ModelReward, Reward
from gipo_mc.rl.rollout import longest_sequence
from gipo_mc.run.functions.rewards import form_of, load_function
from gipo_mc.run.model_sources import check_fits
from gipo_mc.run.session import Session


def training_reward(session: Session, tokenizer: PreTrainedTokenizerBase, warn: Callable[[str], None]) -> Reward:
    """model.reward, with reward.models an ensemble, with reward.also and the penalties where there are any. warn: told
    of failures that do not end the run."""
    settings, first = session.config.reward, session.config.model.reward
    rewards = [load_reward(session, first, "model.reward", tokenizer, warn)]
    session.fixed.frozen["reward.models"] = f"{len(settings.models)} models"  # what they hold is compared one by one
    if settings.models:
        named = enumerate(settings.models, 2)
        more = [load_reward(session, name, f"reward.models ({place})", tokenizer, warn) for place, name in named]
        members = [member for reward in (*rewards, *more) for member in models_in(reward)]
        rewards = [EnsembleReward(members, settings.deviations)]
    also = enumerate(settings.also)
    rewards += [load_reward(session, name, f"reward.also ({place})", tokenizer, warn) for place, name in also]
    return MixedReward.of(rewards, settings, first)


def load_reward(
    session: Session, name: str, key: str, tokenizer: PreTrainedTokenizerBase, warn: Callable[[str], None]
) -> Reward:
    """One reward. key: the option that names it, and which of its names it is. tokenizer: the policy's. warn: told of
    failures that do not end the run."""
    config, option = session.config, key.partition(" ")[0]
    if not is_model(name):
        session.fixed.frozen[key] = name  # its code may be corrected, as that of the trainer itself
    if is_function(name):
        function = load_function(name, option)
        form_of(function, f"{option}={name}")
        return FunctionReward(name, function, tokenizer, session.layout, config.reward, warn)
    if is_server(name):
        limit = 60.0 * config.parallel.timeout_minutes
        return ServerReward.at(name, config.reward, tokenizer, session.layout, limit, warn)
    source = session.source(name, option)
    own = session.tokenizer(source)
    if same_tokens(own, tokenizer):
        check_fits(source, session.layout.of_frozen, sequence_length=longest_sequence(config))
    data = config.data
    engine = session.load(source, "reward", key=key)
    return ModelReward(engine, own, tokenizer, config.parallel, data.chat_template, data, config.rollout.stop)


def describe_reward(config: Config, reward: Reward) -> list[str]:
    """A line for each reward."""
    settings, sources = config.reward, config.reward.sources(config.model.reward)
    parts = reward.rewards if isinstance(reward, MixedReward) else (reward,)
    lines = [_described(name, part, config) for name, part in zip(sources, parts, strict=True)]
    if isinstance(reward, MixedReward):
        lines = [f"{weight:g} x {line}" for weight, line in zip(reward.weights, lines, strict=True)]
    if settings.length_penalty:
        lines.append(f"- {settings.length_penalty:g} for each token beyond {settings.free_length}")
    if settings.missing_eos_penalty:
        lines.append(f"- {settings.missing_eos_penalty:g} where a response was cut")
    if samples := config.algorithm.reference_samples:
        lines.append(f"gains are over {samples} responses of the reference to each prompt")
    return lines


def _described(name: str, reward: Reward, config: Config) -> str:
    if isinstance(reward, EnsembleReward):
        names = ", ".join([name, *config.reward.models])
        return f"mean minus {reward.deviations:g} standard deviations of {names}"
    return f"{name}, reads {reward.reader.how}" if isinstance(reward, ModelReward) else name
