"""What a start of a trainer would find wrong, as far as that can be told without torch and without the network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from gipo_mc.config import Config, check_layout, options, read_by
from gipo_mc.config.load import examine
from gipo_mc.data.sources import on_hub
from gipo_mc.errors import ConfigError, DataError
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
_MODELS = ("model.policy", "model.reference", "model.critic", "model.reward", "model.tokenizer", "dpo.group_model")
_DATA = ("data.prompts", "data.preferences", "data.demonstrations", "data.evaluation")


def start_problems(
    path: str, overrides: list[str], command: str = "", ranks: int = 0, *, files: bool = True
) -> list[tuple[str, int]]:
    """(sentence, exit code) of everything that `command` would refuse; "": of any.

    ranks: that it is to be started on; 0: as few as the configuration needs. files: look for the models and data that
    it names. Raises ConfigError where the configuration cannot be read at all.
    """
    config, problems = examine(path, overrides)
    found = [(problem, ConfigError.exit_code) for problem in problems]
    if config is None:
        return found
    # Of a configuration with problems, what is said here holds with defaults in the place of what is wrong.
    for check in (lambda: check_layout(config, ranks or _fewest(config)), lambda: check_trackers(config)):
        try:
            check()
        except ConfigError as error:
            found.append((str(error), error.exit_code))
    found += [(problem, ConfigError.exit_code) for problem in _missing(config, command)]
    return found + (list(_no_files(config, command)) if files else [])


def _fewest(config: Config) -> int:
    parallel = config.parallel
    return math.lcm(parallel.tensor * parallel.pipeline, math.prod(parallel.frozen_sizes))


def _missing(config: Config, command: str) -> Iterator[str]:
    needs = {key: _value(config, key) for key in _NEEDS.get(command, ())}
    if any(needs.values()):
        yield from (
            f"{key} is empty, and gipo-mc {command.replace('_', ' ', 1)} needs it" for key in needs if not needs[key]
        )


def _no_files(config: Config, command: str) -> Iterator[tuple[str, int]]:
    """Names of files and folders that are not there; what may be on the hub is not looked for."""
    reads = set(read_by(command)) if command else set(options())
    for key in (key for key in _MODELS if key in reads):
        name = _value(config, key)
        local = name.startswith((".", "/", "~", f"{config.run.dir}/")) or name.count("/") > 1
        if local and ":" not in name and not Path(os.path.expanduser(name)).exists():
            yield f"{key}={name}: there is no such folder. A run is there once it was trained.", ConfigError.exit_code
    for key in (key for key in _DATA if key in reads):
        for source in _value(config, key):
            known = source.partition(":")[0] == "builtin" or on_hub(source)
            if not known and not Path(os.path.expanduser(source)).exists():
                yield f"{key}: there is no file {source}", DataError.exit_code


def _value(config: Config, key: str):  # type: ignore[no-untyped-def]
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
