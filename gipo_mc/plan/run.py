"""What a configuration asks for: which models, and how many sequences of which length go through them in each phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from gipo_mc.config import Config
from gipo_mc.config.reward import is_model
from gipo_mc.errors import ConfigError
from gipo_mc.models.packing import Packer
from gipo_mc.models.shape import ModelShape
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.parameters import Role
from gipo_mc.plan.shapes import known_shape, shape_of

#: (name of a model, option that names it) -> its sizes.
Sizes = Callable[[str, str], ModelShape]


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sequence. The longest decide about memory, the usual ones about time."""

    longest_prompt: int
    longest_response: int
    prompt: int
    response: int

    @property
    def longest(self) -> int:
        return self.longest_prompt + self.longest_response

    @property
    def usual(self) -> int:
        return self.prompt + self.response


@dataclass(frozen=True)
class Pass:
    """All rows of a batch through one model, once.

    parts: (rows, tokens of each, response tokens of each) of the micro-batches of one replica. backward: with it.
    logits: rows of response tokens are projected on the vocabulary.
    """

    role: Role
    parts: tuple[tuple[int, int, int], ...]
    backward: bool
    logits: bool

    @property
    def tokens(self) -> int:
        return sum(rows * length for rows, length, _ in self.parts)


@dataclass(frozen=True)
class Run:
    """One configuration, its command and the shapes of its models."""

    config: Config
    command: str
    roles: tuple[Role, ...]
    lengths: Lengths

    def role(self, name: str) -> Role | None:
        return next((role for role in self.roles if role.name == name), None)

    @property
    def batch(self) -> int:
        """Sequences, or pairs of them, of an iteration."""
        config = self.config
        return config.rollout.batch_size if self.command == "train_gi_ppo" else config.train.batch_size

    def changed(self, options: Mapping[str, Any]) -> Run:
        """The run with other values of some options, by their dotted names; they are not checked."""
        config = self.config
        for key, value in options.items():
            section, _, name = key.partition(".")
            config = config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})
        return replace(self, config=config)

    def generated(self, grid: Grid) -> tuple[int, int]:
        """(responses of a batch that one replica generates, those of them at a time)."""
        settings = self.config.rollout
        rows = -(-settings.batch_size // grid.data)
        return rows, min(settings.slots or rows, rows)

    def phases(self, grid: Grid, *, longest: bool) -> dict[str, list[Pass]]:
        """Phase -> its passes, in the order of an iteration, generation aside. longest: with rows as long as they may
        be, else as long as they usually are."""
        return _rl(self, grid, longest) if self.command == "train_gi_ppo" else _supervised(self, grid, longest)

    def parts(self, rows: int, grid: Grid, *, longest: bool, unit: int = 1) -> tuple[tuple[int, int, int], ...]:
        """`rows` rows of one length in the micro-batches of the busiest replica."""
        length = self.lengths.longest if longest else self.lengths.usual
        response = self.lengths.longest_response if longest else self.lengths.response
        parallel = self.config.parallel
        sizes = _plan(
            rows // unit, grid.padded(length), max(parallel.micro_batch_size // unit, 1),
            parallel.tokens_per_micro_batch, unit, grid.data,
        )  # fmt: skip
        return tuple((size * unit, grid.padded(length), response) for size in sizes)


def command_of(config: Config) -> str:
    """The trainer that a configuration is for, by its data; preferences are DPO's where an option of DPO is set."""
    if config.data.prompts:
        return "train_gi_ppo"
    if config.data.demonstrations:
        return "train_sft"
    if config.data.preferences:
        return "train_dpo" if config.dpo != type(config.dpo)() or "dpo" in config.run.name else "train_reward"
    raise ConfigError(
        "The configuration names no data, so the plan cannot tell which trainer it is for: add --command."
    )


def read_run(
    config: Config,
    command: str = "",
    *,
    config_file: str | None = None,
    shape: str = "",
    prompt: int = 0,
    response: int = 0,
) -> Run:
    """command: "" for the one that the data are of. shape: the model that all names stand for; "": each its own.
    prompt, response: usual tokens of each; 0: as many as are allowed. Raises ConfigError."""
    command = command or command_of(config)

    def of(name: str, key: str) -> ModelShape:
        if shape:
            return known_shape(shape) or shape_of(shape, "--shape")
        return shape_of(name, key, config_file)

    rl = command == "train_gi_ppo"
    if not config.model.policy:
        raise ConfigError("model.policy is empty: name a model; builtin_model is the built-in task's.")
    roles = _rl_roles(config, of) if rl else _supervised_roles(config, command, of)
    most = config.rollout.max_new_tokens if rl else config.data.sequence_length
    prompts = config.data.prompt_length if rl else 0
    if wrong := _too_long(config, rl, prompt, response):
        raise ConfigError(f"{wrong}, the most that the configuration allows: give fewer tokens, or raise it.")
    lengths = Lengths(prompts, most, prompt or prompts, response or (most if rl else most - prompt))
    return Run(config, command, tuple(roles), lengths)


def _too_long(config: Config, rl: bool, prompt: int, response: int) -> str:
    """Which usual lengths are more than the configuration has room for, the start of a sentence; "": none."""
    if not rl:
        whole = prompt + max(response, 1)
        if whole <= config.data.sequence_length:
            return ""
        given = f"--prompt {prompt} with --response {response}" if response else f"--prompt {prompt} with a response"
        return (
            f"{given if prompt else f'--response {response}'} is more than data.sequence_length="
            f"{config.data.sequence_length}"
        )
    return " and ".join(
        f"{name} {value} is more than {key}={most}"
        for name, value, key, most in (
            ("--prompt", prompt, "data.prompt_length", config.data.prompt_length),
            ("--response", response, "rollout.max_new_tokens", config.rollout.max_new_tokens),
        )
        if value > most
    )


def _rl_roles(config: Config, of: Sizes) -> list[Role]:
    settings, model = config.algorithm, config.model
    policy = of(model.policy, "model.policy")
    found = [
        Role("policy", policy, "lm", True),
        Role("reference", of(model.reference, "model.reference") if model.reference else policy, "lm", False),
    ]
    reward = of(model.reward, "model.reward") if is_model(model.reward) else policy
    critic = of(model.critic, "model.critic") if model.critic else reward
    own = settings.inferred and settings.group_trunk == "own"
    if settings.advantage == "gae":
        groups = settings.groups if settings.inferred and not own else 0
        found.append(Role("critic", critic, "critic" if groups else "value", True, groups, settings.group_head))
    if own:
        found.append(Role("classifier", critic, "critic", True, settings.groups, settings.group_head))
    if is_model(model.reward) or not model.reward:
        found.append(Role("reward", reward, "reward", False))
    for place, name in enumerate(config.reward.models, 2):
        found.append(Role(f"reward {place}", of(name, "reward.models"), "reward", False))
    for name in filter(is_model, config.reward.also):
        found.append(Role("reward", of(name, "reward.also"), "reward", False))
    if is_model(config.eval.reward):
        found.append(Role("eval reward", of(config.eval.reward, "eval.reward"), "reward", False))
    return found


def _supervised_roles(config: Config, command: str, of: Sizes) -> list[Role]:
    policy = of(config.model.policy, "model.policy")
    found = [Role("model", policy, "reward" if command == "train_reward" else "lm", True)]
    if command == "train_dpo":
        reference = config.model.reference
        found.append(Role("reference", of(reference, "model.reference") if reference else policy, "lm", False))
    return found


def _rl(run: Run, grid: Grid, longest: bool) -> dict[str, list[Pass]]:
    config, settings = run.config, run.config.algorithm
    batch = config.rollout.batch_size
    all_rows = run.parts(batch, grid, longest=longest)
    frozen_rows = run.parts(batch, grid.of(False), longest=longest)
    found = {
        "behaviour_logprob": [Pass(run.roles[0], all_rows, False, True)],
        "reference_logprob": [Pass(run.roles[1], frozen_rows, False, True)],
        "values": [Pass(role, all_rows, False, False) for name in ("critic", "classifier") if (role := run.role(name))],
        "rewards": [Pass(role, frozen_rows, False, False) for role in run.roles if role.name.startswith("reward")],
    }
    steps = -(-batch // settings.mini_batch_size)
    own_rows = run.parts(-(-batch // steps), grid, longest=longest)
    critic, epochs = [], settings.critic_epochs or settings.epochs
    # A mini-batch that is one micro-batch of one replica knows its sums by group in its only pass.
    first_pass = settings.group_statistics == "exact" and not (len(own_rows) == grid.data == 1)
    for name in ("critic", "classifier"):
        if (role := run.role(name)) is None:
            continue
        # The classifier's probabilities of the whole mini-batch come first, those of the first mini-batch aside.
        again = role.groups > 0 and first_pass
        critic += _steps(role, own_rows, steps * epochs, again, logits=False)
    again = settings.penalty == "variance" and settings.group_count > 1 and first_pass
    found["update_critic"] = critic
    found["update_policy"] = _steps(run.roles[0], own_rows, steps * settings.epochs, again, logits=True)
    return {name: passes for name, passes in found.items() if passes}


def _steps(role: Role, parts: tuple[tuple[int, int, int], ...], steps: int, again: bool, *, logits: bool) -> list[Pass]:
    forward = [Pass(role, parts, False, logits)] * (steps - 1) if again else []
    return [*forward, *[Pass(role, parts, True, logits)] * steps]


def _supervised(run: Run, grid: Grid, longest: bool) -> dict[str, list[Pass]]:
    unit = 1 if run.command == "train_sft" else 2
    rows = run.parts(run.config.train.batch_size * unit, grid, longest=longest, unit=unit)
    logits = run.command != "train_reward"
    found = {}
    if reference := run.role("reference"):
        theirs = run.parts(run.config.train.batch_size * unit, grid.of(False), longest=longest, unit=unit)
        found["reference_logprob"] = [Pass(reference, theirs, False, logits)]
    found["update"] = [Pass(run.roles[0], rows, True, logits)]
    return found


@lru_cache(maxsize=4096)
def _plan(units: int, length: int, most: int, tokens: int, unit: int, replicas: int) -> list[int]:
    """Units of each micro-batch of the replica with the most tokens."""
    plan = Packer([length] * units, most, tokens, unit).plan(replicas)
    return max(([len(part) for part in replica] for replica in plan), key=sum)
