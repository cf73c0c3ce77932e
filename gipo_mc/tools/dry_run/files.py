"""The files that a start reads: are those there that should be on this machine, and can they be read?

Nothing is downloaded: what only the hub has is noted, not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gipo_mc.config import Config
from gipo_mc.config.reward import is_function, is_server
from gipo_mc.data.tokenizer import check_vocabulary, load_tokenizer
from gipo_mc.errors import GipoError
from gipo_mc.models.weights.hf_load import SafetensorsFolder
from gipo_mc.run import model_sources
from gipo_mc.tools.start_checks import absent_data, unfit_functions, unfit_heads, unfit_rows


def look(config: Config, command: str) -> tuple[list[str], list[str]]:
    """(problems, notes): what a start would say of these files, and what it would download."""
    problems: list[str] = []
    notes: list[str] = []

    def attempt(work: Callable[[], Any]) -> None:
        try:
            work()
        except GipoError as error:
            problems.append(str(error))

    for key, name in _models(config, command):
        if is_function(name):
            continue
        if is_server(name):
            notes.append(f"{key}={name} is a server: a start asks it first in its first iteration.")
        elif model_sources.on_hub(name) and Path(name).parts[0] != config.run.dir:
            notes.append(f"{key}={name} is not on this machine: a start asks the hub for it.")
        else:
            attempt(partial(_model, name, key, config))
    for look_at in (unfit_heads, unfit_functions, absent_data, unfit_rows):
        for text, code in look_at(config, command):
            (problems if code else notes).append(text)
    return list(dict.fromkeys(problems)), list(dict.fromkeys(notes))


def _models(config: Config, command: str) -> Iterator[tuple[str, str]]:
    """(option, model) of those that a command loads."""
    rl = command == "train_gi_ppo"
    names = ["policy", *(["reference"] if rl or command == "train_dpo" else []), *(["critic", "reward"] if rl else [])]
    for name in names:
        if value := getattr(config.model, name):
            yield f"model.{name}", value
    if rl:
        yield from (("reward.also", name) for name in config.reward.also)
    if rl and config.eval.reward:
        yield "eval.reward", config.eval.reward
    for name in config.reward.models if rl else ():
        yield "reward.models", name


def _model(name: str, key: str, config: Config) -> None:
    """What a start does with a model that is here, before it reads its weights. Raises ConfigError, CheckpointError."""
    if model_sources.on_hub(name):  # the folder of a run that is not there
        raise model_sources.no_folder(name, key)
    source = model_sources.resolve(name, key)
    shape = source.shape
    own = config.model.tokenizer if key not in ("model.reward", "reward.also", "reward.models") else ""
    tokenizer = load_tokenizer(own or str(source.folder), chat_template=config.data.chat_template)
    check_vocabulary(tokenizer, shape.vocab_size, source.name)
    if source.kind == "hf":
        SafetensorsFolder(source.folder)
