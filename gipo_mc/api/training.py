"""The four trainers from another program: reinforcement learning with a reward of its own, SFT, reward model, DPO."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from gipo_mc.api import ranks
from gipo_mc.api.runs import Run, read_run
from gipo_mc.config import load_config
from gipo_mc.config.reward import FUNCTION
from gipo_mc.errors import ConfigError
from gipo_mc.run.functions.rewards import form_of, given_function
from gipo_mc.run.jsonl import encode, storage_errors, write_atomically

#: Where the rows of a training come from: one file or hub name, several of them, or the rows themselves.
Sources = str | Path | Sequence[str | Path | Mapping[str, Any]]


def train(
    *,
    policy: str | Path,
    reward: str | Path | Callable[..., Any],
    prompts: Sources,
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
    name, function = _named(reward)
    models = {"model.policy": policy, "model.reward": name}
    with given_function(name, function) if function else nullcontext():
        return _train("train_gi_ppo", models, ("prompts", prompts), Path(run), options, config)


def train_sft(
    *,
    policy: str | Path,
    demonstrations: Sources,
    run: str | Path,
    options: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
) -> Run:
    """Fine-tune a policy on demonstrations, and return the run.

    demonstrations: files, hub names or "builtin", as data.demonstrations takes them; or rows, a mapping with "prompt"
    and "response", or with "messages", each. The rest is as in `train`.
    """
    models = {"model.policy": policy}
    return _train("train_sft", models, ("demonstrations", demonstrations), Path(run), options, config)


def train_reward(
    *,
    policy: str | Path,
    preferences: Sources,
    run: str | Path,
    options: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
) -> Run:
    """Train a reward model (Bradley-Terry) on preference pairs, and return the run; `load_reward` and `train` take its
    folder.

    policy: what it starts from, usually the SFT model; it is given a new head. preferences: files, hub names or
    "builtin", as data.preferences takes them; or rows, a mapping with "prompt", "chosen" and "rejected" each. The rest
    is as in `train`.
    """
    models = {"model.policy": policy}
    return _train("train_reward", models, ("preferences", preferences), Path(run), options, config)


def train_dpo(
    *,
    policy: str | Path,
    preferences: Sources,
    run: str | Path,
    reference: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
) -> Run:
    """Train a policy on preference pairs with DPO, IPO or group-DPO (`dpo.*` of `options`), and return the run.

    preferences: as in `train_reward`. reference: what it is held to, frozen; None: the policy as it starts. The rest is
    as in `train`.
    """
    models = {"model.policy": policy} | ({"model.reference": reference} if reference is not None else {})
    return _train("train_dpo", models, ("preferences", preferences), Path(run), options, config)


#: Command -> the module whose `train` it calls.
_TRAINERS = {
    "train_gi_ppo": "gipo_mc.rl.gi_ppo",
    "train_sft": "gipo_mc.supervised.sft",
    "train_reward": "gipo_mc.supervised.reward_model",
    "train_dpo": "gipo_mc.supervised.dpo",
}


def _train(
    command: str,
    models: Mapping[str, str | Path],
    data: tuple[str, Sources],
    folder: Path,
    options: Mapping[str, Any] | None,
    config: str | Path | None,
) -> Run:
    """Call `train` of a command's module. data: (which of the `data` section, its sources). Raises as `train`."""
    if not folder.name or folder.name == "..":
        raise ConfigError(f"run={str(folder)!r} names no folder: give one like runs/mine.")
    kind, sources = data
    given = {
        "run.dir": str(folder.parent),
        "run.name": folder.name,
        **models,
        **(options or {}),
        f"data.{kind}": _sources(kind, sources, folder),
    }
    settings = load_config(
        str(config) if config else None, [f"{key}={_as_yaml(value)}" for key, value in given.items()]
    )
    with ranks.held(settings, command):
        importlib.import_module(_TRAINERS[command]).train(settings)
    return read_run(folder)


def _named(reward: str | Path | Callable[..., Any]) -> tuple[str, Callable[..., Any] | None]:
    """(value of model.reward, the function where it is one)."""
    if isinstance(reward, str | Path):
        return str(reward), None
    form_of(reward)
    own = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{FUNCTION}{own.__module__}:{own.__qualname__}", reward


def _sources(kind: str, given: Sources, folder: Path) -> list[str]:
    """What data.<kind> is to be. Rows become a file beside the run folder, which a later start by a command reads
    again; its folder is named by a hash of them: other rows for the same run, which refuses them, spoil nothing."""
    if isinstance(given, str | Path):
        return [str(given)]
    rows = [one for one in given if isinstance(one, Mapping)]
    if not rows:
        return [str(one) for one in given]
    if len(rows) != len(given):
        raise ConfigError(f"{kind} holds rows and names of files: give all of one kind.")
    text = "".join(encode(row) + "\n" for row in rows)
    path = folder.with_name(f"{folder.name}.rows-{hashlib.sha256(text.encode()).hexdigest()[:8]}") / f"{kind}.jsonl"
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
