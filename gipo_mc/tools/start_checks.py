"""What a start of a trainer would find wrong, as far as that can be told without torch and without the network.

Not looked at: weights, but for heads of reward models, tokenizers, rows behind the first ones, what is on the hub, and
what a server or a function answers. gipo-mc dry-run sees more.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from gipo_mc.config import Config, DataConfig, check_layout, names_nothing, options, read_by, verb_of
from gipo_mc.config.load import examine
from gipo_mc.config.reward import FUNCTION, is_function, is_model
from gipo_mc.data.examples import QUARANTINE_ROWS, examples
from gipo_mc.data.named import BUILTIN, Kind, sources_of
from gipo_mc.data.sets import SourceReport
from gipo_mc.data.sources import on_hub
from gipo_mc.errors import CheckpointError, ConfigError, DataError, GipoError, StorageError, did_you_mean_path
from gipo_mc.plan.shapes import local_shape
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.functions.named import has_module
from gipo_mc.run.functions.rewards import form_of, load_function
from gipo_mc.run.saves.places import of_run, standing
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
#: Options of reward models.
_HEADED = (*_REWARDS, "reward.models")
#: The head of a reward model, in the files of transformers.
_SCORE = "score.weight"
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = f"{_WEIGHTS}.index.json"
_SIZED = ("model.policy", "model.critic", *_FROZEN)
_MODELS = (*_SIZED, "model.tokenizer")
#: What the folder of a model, a checkpoint or a run with one holds, one of them.
_A_MODEL = ("config.json", "MANIFEST.json", "checkpoints/step_*")
#: Command -> what its rows are.
_KINDS: dict[str, Kind] = {
    "train_gi_ppo": "prompts",
    "train_sft": "demonstrations",
    "train_reward": "preferences",
    "train_dpo": "preferences",
}
#: Rows of a file that are looked at: with data.on_error=quarantine so few malformed ones stop no start.
_FIRST_ROWS = QUARANTINE_ROWS
_DATA = ("data.prompts", "data.preferences", "data.demonstrations", "data.evaluation", "eval.pairs")


def start_problems(
    path: str | None, overrides: list[str], command: str = "", ranks: int = 0, *, files: bool = True
) -> list[tuple[str, int]]:
    """(sentence, exit code) of everything that `command` would refuse; "": of any. A code of 0: to be known only.

    ranks: that it is to be started on; 0: as few as the configuration needs. files: look at the models, data and
    functions that it names, whose modules are imported. Raises ConfigError where the configuration cannot be read at
    all.
    """
    base = BASES[command]() if command and names_nothing(path, overrides) else None
    config, problems = examine(path, overrides, base)
    found = [(problem, ConfigError.exit_code) for problem in problems]
    if config is None:
        return found
    # Of a configuration with problems, what is said here holds with defaults in the place of what is wrong.
    found += [(problem, ConfigError.exit_code) for problem in problems_of(config, command, ranks)]
    found += [(text, 0) for text in unread(overrides, command)]
    if files:
        found += unfit_folder(config, command)
    if files and not base:  # the built-in task makes its own
        for look in (unfit_models, unfit_heads, absent_models, unfit_functions, absent_data, unfit_rows):
            found += look(config, command)
    return found


def unread(overrides: list[str], command: str) -> Iterator[str]:
    """A sentence on each override that `command` does not read. A file may hold the options of several trainers; what
    is typed is meant for this one."""
    reads = set(read_by(command))
    for key in (word.partition("=")[0] for word in overrides):
        if key in options() and key not in reads:
            others = [other for other in _KINDS if key in read_by(other)]
            named = " and ".join(f"gipo-mc {verb_of(other)}" for other in others) or "no trainer"
            yield f"{key} changes nothing: gipo-mc {verb_of(command)} does not read it, {named} does."


def problems_of(config: Config, command: str, ranks: int) -> list[str]:
    """What `start_problems` finds in a configuration, whatever is on this machine."""
    found = []
    fewest = ranks or _fewest(config, command)
    for check in (lambda: check_layout(config, fewest, command), lambda: check_trackers(config)):
        try:
            check()
        except ConfigError as error:
            found.append(str(error))
    return [*found, *_missing(config, command)]


def unfit_folder(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of a place where the run cannot be: nothing can be written there, or something else has
    it."""
    try:
        path = of_run(config.run.dir, config.run.name or command)
        here = standing(path)
        if not here.is_dir():
            raise StorageError(f"{path}: {here} is a file, and a run needs a folder. Choose another run.dir.")
        if not os.access(here, os.W_OK | os.X_OK):
            raise StorageError(f"{path}: nothing can be written to {here}. Give permission or choose another run.dir.")
        if command and config.run.resume and (theirs := RunFolder(path, command).belongs_to_another()):
            raise ConfigError(theirs)
    except (ConfigError, StorageError) as error:
        return [(str(error), error.exit_code)]
    except OSError as error:
        return [(f"The run cannot be in {config.run.dir}: {error.strerror}.", StorageError.exit_code)]
    return []


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
                shape.check(*sizes, sequence_length=0 if key in _HEADED else longest)
        except ConfigError as error:
            found.append((f"{key}={name}{where}: {error}", error.exit_code))
    return found


def unfit_heads(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of reward models in folders of transformers whose weights have no head of one label, by the
    headers of their files."""
    found = []
    for key, name in _named(config, _HEADED, _read(command)):
        folder = Path(os.path.expanduser(name))
        if not (is_model(name) and any((folder / file).is_file() for file in (_WEIGHTS, _WEIGHTS_INDEX))):
            continue
        try:
            size = _head(folder)
        except (OSError, ValueError, SafetensorError) as error:
            found.append((f"{key}={name}: its weights cannot be read: {error}", CheckpointError.exit_code))
            continue
        if size is None:
            text = "its weights have no head (score.weight): give a reward model, for example of gipo-mc train reward"
        elif size[0] != 1:
            text = f"its head (score.weight) has {size[0]} labels: a reward model has exactly one (num_labels=1)"
        else:
            continue
        found.append((f"{key}={name}: {text}.", CheckpointError.exit_code))
    return found


def _head(folder: Path) -> list[int] | None:
    """Size of score.weight in the weights of a folder; None where they have none."""
    index, name = folder / _WEIGHTS_INDEX, _WEIGHTS
    if index.is_file():
        name = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).get(_SCORE, "")
    if not name:
        return None
    with safe_open(folder / name, framework="numpy") as file:
        names = set(file.keys())
        return list(file.get_slice(_SCORE).get_shape()) if _SCORE in names else None


def _longest(config: Config, command: str) -> int:
    """Most tokens of a prompt and its response that a start is to read; 0: nothing says which trainer it is of."""
    data = config.data
    if command == "train_gi_ppo" or (not command and data.prompts):
        return data.prompt_length + config.rollout.max_new_tokens
    return data.sequence_length if command or data.demonstrations or data.preferences else 0


def _fewest(config: Config, command: str) -> int:
    parallel = config.parallel
    frozen = math.prod(parallel.frozen_sizes) if "parallel.frozen_tensor" in _read(command) else 1
    return math.lcm(parallel.tensor * parallel.pipeline, frozen)


def _missing(config: Config, command: str) -> Iterator[str]:
    needs = {key: _value(config, key) for key in _NEEDS.get(command, ())}
    if any(needs.values()):
        yield from (f"{key} is empty, and gipo-mc {verb_of(command)} needs it" for key in needs if not needs[key])


def absent_files(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of files, folders and modules that are not here, or hold no model: nothing is read or
    imported. A model that may be on the hub has a code of 0."""
    functions = [
        (f"{key}={name}: there is no module of this name.", ConfigError.exit_code)
        for key, name in _functions(config, command)
        if not has_module(name.removeprefix(FUNCTION))
    ]
    # That rows on the hub are not looked at goes without saying: none are.
    return absent_models(config, command) + functions + [found for found in absent_data(config, command) if found[1]]


def absent_models(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of names of models that are not here, or hold none. What may be on the hub is not looked
    for there: the code is 0 then."""
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
            near = did_you_mean_path(name) or ". A run is there once it was trained."
            text = f"{key}={name}: there is no such folder{near}"
        else:
            near = did_you_mean_path(name) or "."
            text = f"{key}={name}: there is no such folder here; taken for a name on the hub{near}"
        found.append((text, ConfigError.exit_code if local else 0))
    return found


def absent_data(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of data files that are not here; what may be on the hub has a code of 0."""
    found: list[tuple[str, int]] = []
    for key, source in _named(config, _DATA, _read(command)):
        if on_hub(source):
            text = f"{key}: {source} is not on this machine: a start asks the hub for it. Its rows are not looked at."
            found.append((text, 0))
        elif source.partition(":")[0] != BUILTIN and not Path(os.path.expanduser(source)).exists():
            found.append((f"{key}: there is no file {source}{did_you_mean_path(source)}", DataError.exit_code))
    return found


def unfit_functions(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of reward functions that cannot be loaded or called; imports their modules."""
    found: dict[str, int] = {}
    for key, name in _functions(config, command):
        try:
            with redirect_stdout(sys.stderr):  # what a module prints is no part of a report
                form_of(load_function(name, key), f"{key}={name}")
        except ConfigError as error:
            found[str(error)] = error.exit_code
    return list(found.items())


def _functions(config: Config, command: str) -> Iterator[tuple[str, str]]:
    """(option, name) of functions, but for those of the built-in task: they take torch to import."""
    for key, name in _named(config, _REWARDS, _read(command)):
        if is_function(name) and name not in (builtin.PROXY, builtin.GOLD):
            yield key, name


def unfit_rows(config: Config, command: str) -> list[tuple[str, int]]:
    """(sentence, exit code) of data files on this machine that cannot be read, or whose first rows a start would
    refuse; with a code of 0, files whose first rows are all skipped."""
    found: dict[str, int] = {}
    for source, kind in _sources(config, command):
        here = source.partition(":")[0] != BUILTIN and not on_hub(source)
        if here and Path(os.path.expanduser(source)).exists():
            try:
                if note := _first_rows(source, kind, config.data):
                    found[note] = 0
            except GipoError as error:
                found[" ".join(str(error).split("\n"))] = error.exit_code
    return list(found.items())


def _sources(config: Config, command: str) -> Iterator[tuple[str, Kind]]:
    """The sources that a command reads, and for what. Without a command: each for what its option says."""
    data, kind = config.data, _KINDS.get(command, "prompts")
    if command:
        with suppress(ConfigError):  # none is named: said before
            yield from ((source, kind) for source in sources_of(data, kind))
    else:
        for each in get_args(Kind):
            yield from ((source, each) for source in getattr(data, each))
    # Whatever they are held out for, they have prompts.
    evaluated = config.eval.prompts or command not in ("", "train_gi_ppo")
    yield from ((source, kind) for source in data.evaluation if evaluated)
    if "eval.pairs" in _read(command) and config.eval.prompts:
        yield from ((source, "preferences") for source in config.eval.pairs)


def _first_rows(source: str, kind: Kind, data: DataConfig) -> str:
    """Read them as a start would. Raises as that does; returns a sentence where data.on_error=quarantine skips all."""
    report = SourceReport(source)
    count = min(data.max_rows or _FIRST_ROWS, _FIRST_ROWS)
    for _ in examples(source, kind, "", data.model_copy(update={"max_rows": count}), report):
        pass
    if report.read == report.left_out["malformed rows"] > 0:
        what = f"the first {report.read} rows are" if report.read > 1 else "the first row is"
        return f"{source}: {what} malformed, and data.on_error=quarantine skips them: {report.problems[0]}"
    return ""


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
