"""Reinforcement learning from another program, with a reward function of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from gipo_mc.api import ranks
from gipo_mc.api.runs import Run, read_run
from gipo_mc.config import Config, load_config
from gipo_mc.config.reward import FUNCTION
from gipo_mc.errors import ConfigError
from gipo_mc.rl.reward_sources.functions import form_of, given_function
from gipo_mc.run.jsonl import encode, storage_errors, write_atomically


def train(
    *,
    policy: str | Path,
    reward: str | Path | Callable[..., Any],
    prompts: str | Path | Sequence[str | Path | Mapping[str, Any]],
    run: str | Path,
    options: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
) -> Run:
    """Train a policy with GI-PPO, or with the algorithm that `options` names, and return the run.

    policy: a Hugging Face folder or hub name, a run or a checkpoint. reward: a reward model, a server's address, or a
    function in one of the forms of docs/rewards.md. prompts: files, hub names or "builtin", as data.prompts takes them;
    or rows, a mapping with "prompt" or "messages" each, all of whose columns the reward function gets. run: the run
    folder; one that is there is continued. options: {"run.iterations": 100, "policy.lr": 1e-6, ...}, the keys of the
    commands. config: a YAML file to take other options from.

    Under torchrun all ranks call it with the same arguments. Ctrl-C ends it as it ends the command. Raises the errors
    of `gipo_mc.errors`, the same on every rank; what was saved is continued by the same call.
    """
    folder = Path(run)
    if not folder.name or folder.name == "..":
        raise ConfigError(f"run={str(run)!r} names no folder: give one like runs/mine.")
    name, function = _named(reward)
    given = {
        "run.dir": str(folder.parent),
        "run.name": folder.name,
        "model.policy": str(policy),
        "model.reward": name,
        **(options or {}),
        "data.prompts": _sources(prompts, folder),
    }
    settings = load_config(
        str(config) if config else None, [f"{key}={_as_yaml(value)}" for key, value in given.items()]
    )
    with given_function(name, function) if function else nullcontext(), ranks.held(settings):
        _train(settings)
    return read_run(folder)


def _train(config: Config) -> None:
    from gipo_mc.rl.gi_ppo import train as train_gi_ppo

    train_gi_ppo(config)


def _named(reward: str | Path | Callable[..., Any]) -> tuple[str, Callable[..., Any] | None]:
    """(value of model.reward, the function where it is one)."""
    if isinstance(reward, str | Path):
        return str(reward), None
    form_of(reward)
    own = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{FUNCTION}{own.__module__}:{own.__qualname__}", reward


def _sources(prompts: str | Path | Sequence[str | Path | Mapping[str, Any]], folder: Path) -> list[str]:
    """What data.prompts is to be. Rows become a file beside the run folder, which a later start by a command reads
    again; its folder is named by a hash of them: other rows for the same run, which refuses them, spoil nothing."""
    if isinstance(prompts, str | Path):
        return [str(prompts)]
    rows = [one for one in prompts if isinstance(one, Mapping)]
    if not rows:
        return [str(one) for one in prompts]
    if len(rows) != len(prompts):
        raise ConfigError("prompts holds rows and names of files: give all of one kind.")
    text = "".join(encode(row) + "\n" for row in rows)
    path = folder.with_name(f"{folder.name}.rows-{hashlib.sha256(text.encode()).hexdigest()[:8]}") / "prompts.jsonl"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return [str(path)]


def _as_yaml(value: Any) -> str:
    """A value as an override of the command line has it. Raises ConfigError for what no option can be."""
    try:
        return json.dumps(str(value) if isinstance(value, Path) else value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{value!r:.100} is no value of an option: give a text, a number, or a list of them."
        ) from error
