"""What a start of a trainer would find wrong, as far as that can be told without torch and without the network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gipo_mc.config import Config, check_layout, options, read_by
from gipo_mc.config.load import examine
from gipo_mc.config.reward import is_model
from gipo_mc.data.sources import on_hub
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.plan.shapes import local_shape
from gipo_mc.run.trackers import check_trackers
from gipo_mc.tools import builtin

#: Command -> the options without which it does not start, unless nothing is named: then it has a built-in task.
_NEEDS = {
    "train_gi_ppo": ("model.policy", "model.reward", "data.prompts"),
    "train_sft": ("model.policy", "data.demonstrations"),
    "train_reward": ("model.policy", "data.preferences"),
    "train_dpo": ("model.policy", "data.preferences"),
}
BASES = {
    "train_gi_ppo": builtin.gi_ppo_base,
    "train_sft": builtin.sft_base,
    "train_reward": builtin.reward_base,
    "train_dpo": builtin.dpo_base,
}
#: Models that only score, which may have a layout of their own.
_FROZEN = ("model.reference", "model.reward", "dpo.group_model", "reward.models", "reward.also", "eval.reward")
#: Those of them that may also be functions or addresses.
_REWARDS = ("model.reward", "reward.also", "eval.reward")
_SIZED = ("model.policy", "model.critic", *_FROZEN)
_MODELS = (*_SIZED, "model.tokenizer")
#: What the folder of a model, a checkpoint or a run with one holds, one of them.
_A_MODEL = ("config.json", "MANIFEST.json", "checkpoints/step_*")
_DATA = ("data.prompts", "data.preferences", "data.demonstrations", "data.evaluation", "eval.pairs")


def start_problems(
    path: str, overrides: list[str], command: str = "", ranks: int = 0, *, files: bool = True
) -> list[tuple[str, int]]:
    """(sentence, exit code) of everything that `command` would refuse; "": of any. A code of 0: to be known only.

    ranks: that it is to be started on; 0: as few as the configuration needs. files: look for the models and data that
    it names. Raises ConfigError where the configuration cannot be read at all.
    """
    config, problems = examine(path, overrides)
    found = [(problem, ConfigError.exit_code) for problem in problems]
    if config is None:
        return found
    # Of a configuration with problems, what is said here holds with defaults in the place of what is wrong.
    found += [(problem, ConfigError.exit_code) for problem in problems_of(config, command, ranks)]
    return found + (unfit_models(config, command) + absent_files(config, command) if files else [])


def problems_of(config: Config, command: str, ranks: int) -> list[str]:
    """What `start_problems` finds in a configuration, whatever is on this machine."""
    found = []
    for check in (lambda: check_layout(config, ranks or _fewest(config)), lambda: check_trackers(config)):
        try:
            check()
        except ConfigError as error:
            found.append(str(error))
    return [*found, *_missing(config, command)]


def unfit_models(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of each model on this machine that the ranks cannot share, or whose positions the data
    exceed, by its config.json."""
    parallel, found, seen, longest = config.parallel, [], set(), _longest(config, command)
    for key, name in _named(config, _SIZED, _read(command)):
        sizes, where = (parallel.tensor, parallel.pipeline, parallel.virtual_pipeline), ""
        if key in _FROZEN and parallel.frozen_sizes != sizes[:2]:
            sizes = (*parallel.frozen_sizes, 1)
            where = " on parallel.frozen_tensor x parallel.frozen_pipeline ranks, 0 meaning as the others"
        if not name or (name, sizes) in seen:
            continue
        seen.add((name, sizes))
        try:
            if shape := local_shape(os.path.expanduser(name)):
                # A reward model with a tokenizer of its own counts other tokens.
                shape.check(*sizes, sequence_length=0 if key in (*_REWARDS, "reward.models") else longest)
        except ConfigError as error:
            found.append((f"{key}={name}{where}: {error}", error.exit_code))
    return found


def _longest(config: Config, command: str) -> int:
    """Most tokens of a prompt and its response that a start is to read; 0: nothing says which trainer it is of."""
    data = config.data
    if command == "train_gi_ppo" or (not command and data.prompts):
        return data.prompt_length + config.rollout.max_new_tokens
    return data.sequence_length if command or data.demonstrations or data.preferences else 0


def _fewest(config: Config) -> int:
    parallel = config.parallel
    return math.lcm(parallel.tensor * parallel.pipeline, math.prod(parallel.frozen_sizes))


def _missing(config: Config, command: str) -> Iterator[str]:
    needs = {key: _value(config, key) for key in _NEEDS.get(command, ())}
    verb = command.replace("_", " ", 1).replace("_", "-")
    if any(needs.values()):
        yield from (f"{key} is empty, and gipo-mc {verb} needs it" for key in needs if not needs[key])


def absent_files(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of names of files and folders that are not here, or hold no model. What may be on the hub
    is not looked for there: a model's code is 0 then."""
    found: list[tuple[str, int]] = []
    for key, name in _named(config, _MODELS, _read(command)):
        path = Path(os.path.expanduser(name))
        if not name or (key in _REWARDS and not is_model(name)):
            continue
        if path.exists():
            if key != "model.tokenizer" and not any(any(path.glob(what)) for what in _A_MODEL):
                text = f"{key}={name} is no model (no config.json), no checkpoint, and no run that has one."
                found.append((text, ConfigError.exit_code))
            continue
        local = name.startswith((".", "/", "~", f"{config.run.dir}/")) or name.count("/") != 1
        if local:
            text = f"{key}={name}: there is no such folder. A run is there once it was trained."
        else:
            text = f"{key}={name}: there is no such folder here; taken for a name on the hub."
        found.append((text, ConfigError.exit_code if local else 0))
    for key, source in _named(config, _DATA, _read(command)):
        known = source.partition(":")[0] == "builtin" or on_hub(source)
        if not known and not Path(os.path.expanduser(source)).exists():
            found.append((f"{key}: there is no file {source}", DataError.exit_code))
    return found


def _read(command: str) -> set[str]:
    return set(read_by(command)) if command else set(options())


def _named(config: Config, keys: tuple[str, ...], reads: set[str]) -> Iterator[tuple[str, str]]:
    """(key, name) of all names that these options hold, one or several each."""
    for key in (key for key in keys if key in reads):
        value = _value(config, key)
        yield from ((key, name) for name in (value if isinstance(value, list) else [value]))


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
