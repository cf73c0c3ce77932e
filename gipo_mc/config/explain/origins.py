"""Where each value of a configuration comes from, and how two configurations differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gipo_mc.config.commands import read_by
from gipo_mc.config.environment import hide
from gipo_mc.config.explain.problems import flat
from gipo_mc.config.load import load_config, read_layers, saved_values, written
from gipo_mc.config.schema import options, resume_rule
from gipo_mc.errors import ConfigError


@dataclass(frozen=True)
class Shown:
    """One option. value: as config.yaml would hold it. default: of the schema. origin: "default", "built-in task", a
    file, a preset or the command line."""

    key: str
    value: Any
    default: Any
    origin: str


@dataclass(frozen=True)
class Difference:
    """An option that two configurations have different values of. rule: what a run that continues may do with it."""

    key: str
    before: Any
    after: Any
    rule: str


def shown_values(path: str | None, overrides: list[str], base: dict[str, Any] | None = None) -> list[Shown]:
    """Every option of the configuration that these make, in the order of the schema. Raises ConfigError as
    `load_config`."""
    config = load_config(path, overrides, base)
    layers, _ = read_layers(path, overrides, base or {})
    origins: dict[str, str] = {}
    for layer in layers:
        origins |= dict.fromkeys(flat(layer.values), layer.origin or "built-in task")
    values = written(config)
    return [
        Shown(key, values[key], field.get_default(call_default_factory=True), origins.get(key, "default"))
        for key, field in options().items()
    ]


def config_of(place: str) -> str:
    """The configuration that a name on a command line stands for: a file, or the config.yaml of a run's folder."""
    return str(Path(place) / "config.yaml") if Path(place).is_dir() else place


def differences(before: str, after: str, command: str = "") -> list[Difference]:
    """What differs between two configurations, each a file or a run's folder. command: whose run would continue with
    the second one; "": all of them. Raises ConfigError where one cannot be read."""
    reads = set(read_by(command))
    then, now = _values(before), _values(after)
    known = [key for key in options() if key in then or key in now]
    found = [*known, *sorted((then.keys() | now.keys()) - set(known))]
    return [
        Difference(key, then.get(key), now.get(key), _rule(key, reads))
        for key in found
        if then.get(key) != now.get(key) or (key in then) != (key in now)
    ]


def _values(place: str) -> dict[str, Any]:
    """Of a file, with the defaults; of a run, what its config.yaml says, which may be of another version."""
    path = config_of(place)
    if not Path(place).is_dir():
        return written(load_config(path, []))
    if not Path(path).is_file():
        raise ConfigError(f"{hide(place)} is a folder without a config.yaml: name a file, or the folder of a run.")
    return saved_values(Path(path))


def _rule(key: str, reads: set[str]) -> str:
    if key not in options():
        return "unknown"
    return resume_rule(key) if key in reads else "unread"
