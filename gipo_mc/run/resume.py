"""What a run keeps from its start to its end: the check that comes before a run continues.

Every option keeps its value, unless its field in `gipo_mc.config.schema` says otherwise. Names of files and models may
change, what they hold may not. Rows of data, checkpoints of runs and the safetensors of Hugging Face folders are
compared by SHA-256 of all that they hold; every model by its shape. The start models (model.policy, model.critic) are
not read again, because a checkpoint has their weights: they may be moved, and where one is the reference too it is held
as that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from gipo_mc.config import Config, changes, options, read_by, resume_rule, saved_values, values, written
from gipo_mc.errors import ConfigError
from gipo_mc.models.families import read_shape
from gipo_mc.models.shape import ModelShape

#: Values of the options that name models and files, by key: those of the run's config.yaml, and now.
Names = tuple[Mapping[str, Any], Mapping[str, Any]]
_NO_NAMES: Names = ({}, {})
#: What runs of the variance penalty did before there was an option for it, where that is not the default.
_BEFORE = {"algorithm.penalty_over": "responses"}


@dataclass
class Fixed:
    """What a checkpoint stores of this, JSON-able, under the names of the fields.

    settings: values of the fixed options that the command reads, by key.
    frozen: frozen models and the tokenizer, by the key that names them -> what they are made of.
    data: key of the training data -> its sources, {"source", "rows", "sha256"} each.
    """

    settings: dict[str, Any]
    frozen: dict[str, str] = field(default_factory=dict)
    data: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: Key of a frozen model -> what older checkpoints say that it is made of. Not stored.
    earlier: dict[str, Callable[[], str]] = field(default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"settings": self.settings, "frozen": self.frozen, "data": self.data}

    def changes(self, stored: Mapping[str, Any], evaluated: str = "", names: Names = _NO_NAMES) -> list[str]:
        """What differs from the state of a checkpoint, a line each. What that did not store yet is not compared.

        evaluated: the model that only evaluations used, under whose name older checkpoints list it. names: of models
        and files, then and now.
        """
        frozen = [
            f"{key} was made of {old}{_named(names[0], key)}, "
            f"now of {self.frozen.get(key, 'something else')}{_named(names[1], key)}"
            for key, old in stored["frozen"].items()
            if not (evaluated and key.startswith(f"{evaluated} (")) and not self._holds(key, old)
        ]
        data = [
            line
            for key, old in stored.get("data", {}).items()
            for line in _changed_sources(key, old, self.data.get(key, []))
        ]
        return [*self._changed_settings(stored), *frozen, *data]

    def _changed_settings(self, stored: Mapping[str, Any]) -> list[str]:
        unsaid = _BEFORE if stored["settings"].get("algorithm.penalty") == "variance" else {}
        return [
            f"{key} was {old!r}, now {self.settings[key]!r}"
            for key, old in {**unsaid, **stored["settings"]}.items()
            if key in self.settings and self.settings[key] != old
        ]

    def check_settings(self, checkpoint: Path, stored: Mapping[str, Any], names: Names = _NO_NAMES) -> None:
        """`check` of the options alone, which needs no model and no data; models and files of other names are named
        beside what is refused. Raises ConfigError, too, where the checkpoint is none of a run: an imported model has no
        options."""
        if "settings" not in stored:
            raise ConfigError(
                f"{checkpoint} holds an imported model and no run that could continue: name it as model.policy, and "
                "choose another run.name."
            )
        if changed := self._changed_settings(stored):
            _refuse(checkpoint, [*changed, *_renamed(*names)])

    def check(self, checkpoint: Path, stored: Mapping[str, Any], names: Names = _NO_NAMES) -> None:
        """Raises ConfigError with every change."""
        _refuse(checkpoint, self.changes(stored, _only_evaluated(names[0]), names))

    def _holds(self, key: str, made_of: str) -> bool:
        option = key.partition(" ")[0]
        if option in options() and resume_rule(option) == "changeable":
            return True  # the reward of evaluations
        if key in self.frozen:
            return self.frozen[key] == made_of or (key in self.earlier and self.earlier[key]() == made_of)
        # Older checkpoints have the folder's name in place of the key.
        return made_of in self.frozen.values() or any(earlier() == made_of for earlier in self.earlier.values())


def names_of(config: Path, now: Config) -> Names:
    """For `Fixed.check`. config: the config.yaml that the run had."""
    try:
        return saved_values(config), written(now)
    except ConfigError:
        return _NO_NAMES


def _only_evaluated(saved: Mapping[str, Any]) -> str:
    """The model that eval.reward named, where nothing else of the run did; empty: none, or it is not known."""
    name = saved.get("eval.reward")
    others = [saved.get(f"model.{key}") for key in ("policy", "reference", "critic", "reward", "tokenizer")]
    return name if isinstance(name, str) and name not in others else ""


def _named(names: Mapping[str, Any], key: str) -> str:
    """ " (NAME)" of what an option names; "" where that is not known."""
    option = key.partition(" ")[0]
    found = names.get(option) or (names.get("model.policy") if option == "model.reference" else "")
    return f" ({found})" if isinstance(found, str) and found else ""


def _renamed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The models and files that have other names; what they hold is compared once they are read."""
    return [
        f"{key} was {then[key]!r}, now {now[key]!r}: right only where both hold the same, which is compared next"
        for key in now
        if key in then and then[key] != now[key] and resume_rule(key) == "content"
    ]


def _refuse(checkpoint: Path, changed: Sequence[str]) -> None:
    if changed:
        raise ConfigError(
            f"The run cannot continue from {checkpoint}, because something changed that it depends on:\n"
            + "\n".join(f"  - {line}" for line in changed)
            + "\nPut it back (a model may be named by the folder of one of its checkpoints), or start a new run "
            "with another run.name."
        )


def check_shape(shape: ModelShape, saved: Path) -> None:
    """Is the model that is to be filled from a checkpoint of the shape that this holds? Its tensors may fit where norms
    or rotary embeddings compute something else. Raises ConfigError naming every field that differs."""
    now, then = (asdict(_without_tokens(one)) for one in (shape, read_shape(saved)))
    _refuse(
        saved.parent,
        [f"{saved.name}: {name} was {then[name]}, now {value}" for name, value in now.items() if then[name] != value],
    )


def shape_hash(shape: ModelShape) -> str:
    """Of what a model computes beside its weights."""
    return hashlib.sha256(repr(_without_tokens(shape)).encode()).hexdigest()[:16]


def _without_tokens(shape: ModelShape) -> ModelShape:
    """Special tokens are the tokenizer's matter here; initial weights are not drawn again."""
    return replace(shape, bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.0, generation="")


def fixed_settings(config: Config, command: str, dtype: torch.dtype, *, distributed_optimizer: bool) -> dict[str, Any]:
    """Values of the options that a run of this command keeps. "auto" counts as what it stands for on this machine."""
    found = values(config) | {
        "dtype": str(dtype).removeprefix("torch."),
        "parallel.distributed_optimizer": "on" if distributed_optimizer else "off",
        "algorithm.groups": config.algorithm.group_count,
    }
    read = read_by(command)
    if "reward.weights" in read:
        found["reward.weights"] = config.reward.weighted()
    return {key: found[key] for key in read if resume_rule(key) == "fixed"}


def _changed_sources(key: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sources, in order, whose rows are not the same; they may have other names."""
    changed = []
    for old, new in zip_longest(before, now):
        if old is None or new is None or old["sha256"] != new["sha256"]:
            changed.append(f"{key} was {_source(old)}, now {_source(new)}")
    return changed


def _source(found: Mapping[str, Any] | None) -> str:
    return f"{found['source']} ({found['rows']} rows, SHA-256 {found['sha256']})" if found else "no file"


def changed_options(before: Path, now: Config) -> str:
    """What a run that continues says of its config.yaml: options that changed, or that it cannot be read; or ""."""
    try:
        changed = changes(before, now)
    except ConfigError as error:
        return f"{error} Which options have changed cannot be told; it is written anew."
    return f"The run continues with changed options: {'; '.join(changed)}" if changed else ""
