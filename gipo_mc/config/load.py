"""From YAML, overrides and presets to one `Config`, and back into a file.

Unknown keys, wrong types and impossible combinations are collected and reported in one `ConfigError`, each with its
key, the numbers involved and the fix.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gipo_mc.config.environment import fingerprint, hide_named, marked_environment, references
from gipo_mc.config.explain.problems import flat, validated
from gipo_mc.config.names import is_file, shipped
from gipo_mc.config.scalars import misread
from gipo_mc.config.schema import Config, options
from gipo_mc.config.yaml_text import check_yaml, read_yaml
from gipo_mc.errors import ConfigError, did_you_mean_path
from gipo_mc.presets import apply as apply_presets


@dataclass(frozen=True)
class Layer:
    """Some values of a configuration, which lie over those of the layers before. origin: where they come from, in
    words; "" for the base that a command puts underneath."""

    origin: str
    values: dict[str, Any]


def load_config(path: str | None, overrides: list[str], base: dict[str, Any] | None = None) -> Config:
    """Configuration from defaults <- `base` <- YAML file <- `key.sub=value` overrides.

    Raises ConfigError naming every problem at once.
    """
    config, problems = examine(path, overrides, base)
    if problems or config is None:
        raise _refused(problems)
    return config


def examine(
    path: str | None, overrides: list[str], base: dict[str, Any] | None = None
) -> tuple[Config | None, list[str]]:
    """`load_config`'s configuration and every problem, a sentence each. Where there are some, it has the defaults in
    the place of what is wrong, or is None. Raises ConfigError where the file cannot be read, or a reference stands for
    nothing."""
    found, problems = read_layers(path, overrides, base or {})
    merged = _merged(found, path)
    container = _container(merged)
    real = _resolved(merged, container, path)
    referring: dict[str, Any] = {}
    if container is not None:
        with marked_environment():
            marked = _resolved(merged, container, path)
        # Before anything can complain of a value: from here on it is hidden.
        referring = references(flat(real), flat(marked))
    config, more = validated(real)
    if config is not None:
        config._referring = referring
    return config, [*problems, *more]


def names_nothing(path: str | None, overrides: list[str]) -> bool:
    """Does the user name neither a model nor training data? Other keys are not looked at. Raises ConfigError where the
    configuration cannot be read."""
    raw = _read(path, overrides, {})
    model, data = raw.get("model"), raw.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        return False
    return not (any(model.values()) or any(data.get(key) for key in ("prompts", "preferences", "demonstrations")))


def run_folder(path: str | None, overrides: list[str], base: dict[str, Any] | None = None) -> tuple[str, str]:
    """(run.dir, run.name) of a configuration that may have problems elsewhere; the defaults where they are unknown."""
    run: Any = None
    for attempt in ((path, overrides), (None, [o for o in overrides if o.startswith(("run.dir=", "run.name="))])):
        with suppress(ConfigError):
            run = _read(*attempt, base or {}).get("run")
            break
    found = run if isinstance(run, dict) else {}
    default = Config().run
    return str(found.get("dir") or default.dir), str(found.get("name") or default.name)


def _read(path: str | None, overrides: list[str], base: dict[str, Any]) -> dict[str, Any]:
    """All layers merged and resolved, not validated."""
    merged = _merged(read_layers(path, overrides, base)[0], path)
    return _resolved(merged, _container(merged), path)


def read_layers(path: str | None, overrides: list[str], base: dict[str, Any]) -> tuple[list[Layer], list[str]]:
    """Base, file and overrides, with the preset that the last of them names under that one; what was found wrong with
    them, a sentence each, is left out of them. References are as they were written.

    Raises ConfigError where the file cannot be read at all.
    """
    problems: list[str] = []
    layers, origins = [OmegaConf.create(base)], [""]
    with _problems_of(path):
        if path:
            if not is_file(path):
                near = did_you_mean_path(path) or "."
                raise ConfigError(
                    f"There is no configuration file {path}{near} The runnable ones are in {shipped('configs')}."
                )
            layers.append(read_yaml(path))
            origins.append(path)
        layers.append(OmegaConf.from_dotlist(_sound(overrides, problems)))
        origins.append("command line")
        problems += misread(path, overrides)
        plain = [_plain(layer, path, problems) for layer in layers]
        _complete_mappings(plain, overrides)
        named = apply_presets(plain)
        if len(named) > len(plain):
            owner = max(i for i, layer in enumerate(named) if "name" in (layer.get("algorithm") or {}))
            origins.insert(owner - 1, f"algorithm.name={named[owner]['algorithm']['name']}")
    return [Layer(origin, values) for origin, values in zip(origins, named, strict=True)], problems


def _sound(overrides: list[str], problems: list[str]) -> list[str]:
    """The overrides that can be read; what is wrong with the others is added to `problems`."""
    sound = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            said = f"Not understood: {override}. Overrides are written key.sub=value, for example run.iterations=50."
            is_file = override.endswith((".yaml", ".yml"))
            problems.append(said + f" A file is named with --config {override}." * is_file)
            continue
        try:
            check_yaml(value, f"The value of {key}")
            problem = _wrong_section(key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            problem = f"The value of {key} is not valid YAML: {_yaml_reason(error)}."
        if problem:
            problems.append(problem)
        else:
            sound.append(override)
    return sound


def _merged(layers: list[Layer], path: str | None) -> dict[str, Any]:
    """All layers, over the defaults; references as they were written."""
    with _problems_of(path):
        merged = OmegaConf.merge(*map(OmegaConf.create, _mappings_replaced([layer.values for layer in layers])))
        # With the defaults underneath, `${run.dir}` means something where nobody gives run.dir.
        return _filled(OmegaConf.to_container(merged, resolve=False), deepcopy(_defaults()))  # type: ignore[arg-type]


@cache
def _mapping_options() -> tuple[tuple[str, str], ...]:
    """Options that hold a mapping, as (section, name)."""
    keys = [key for key, field in options().items() if get_origin(field.annotation) is dict]
    return tuple((section, name) for section, _, name in (key.partition(".") for key in keys))


def _complete_mappings(layers: list[dict[str, Any]], overrides: list[str]) -> None:
    """Overrides of single entries (`data.columns.prompt=question`) alone change the mapping that is there: the last
    layer, theirs, gets its other entries."""
    for section, name in _mapping_options():
        key = f"{section}.{name}"
        whole = any(text.startswith((f"{key}=", f"{section}=")) for text in overrides)
        if whole or not any(text.startswith(f"{key}.") for text in overrides):
            continue
        given = [layer[section].get(name) for layer in layers if isinstance(layer.get(section), dict)]
        before, own = [{}, {}, *(found for found in given if isinstance(found, dict))][-2:]
        own |= {entry: value for entry, value in before.items() if entry not in own}


def _mappings_replaced(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers without the mappings that a later one gives, too: an option's mapping is one value, as a list is."""
    kept: list[dict[str, Any]] = []
    later: set[tuple[str, str]] = set()
    for layer in reversed(layers):
        sections = {
            key: {name: value for name, value in section.items() if (key, name) not in later}
            for key, section in layer.items()
            if isinstance(section, dict)
        }
        later |= {place for place in _mapping_options() if place[1] in sections.get(place[0], {})}
        kept.insert(0, layer | sections)
    return kept


def _refused(problems: list[str]) -> ConfigError:
    return ConfigError("The configuration has problems:\n" + "\n".join(f"  - {line}" for line in problems))


def _container(merged: dict[str, Any]) -> Any:
    """What looks references up, or None where there are none: it takes as long as all else together."""
    return OmegaConf.create(merged) if "${" in str(merged) else None


def _resolved(merged: dict[str, Any], container: Any, path: str | None) -> dict[str, Any]:
    if container is None:
        return merged
    try:
        with _problems_of(path):
            return OmegaConf.to_container(container, resolve=True)  # type: ignore[return-value]
    except ConfigError as error:
        hide_named(str(merged))
        lines = [line for key, value in flat(merged).items() if "${" in str(value) for line in _bad(container, key)]
        raise _refused(lines) if len(lines) > 1 else error from None


def _bad(container: Any, key: str) -> list[str]:
    """Why the reference that an option holds stands for nothing, a line; none where it does."""
    try:
        value = OmegaConf.select(container, key)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        return [f"{key}: {str(error).splitlines()[0] if str(error) else 'it refers to itself in a circle'}"]
    return []


@contextmanager
def _problems_of(path: str | None) -> Iterator[None]:
    """What the libraries raise for a configuration that cannot be read, as a ConfigError."""
    where = f"The configuration {path}" if path else "The configuration"
    try:
        yield
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply, or refers to itself in a circle.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {_yaml_reason(error)}.") from error
    except (OmegaConfBaseException, OSError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error


def _yaml_reason(error: yaml.YAMLError) -> str:
    """What is wrong, and where, in one line: without the quoted text, which makes no sense once lines are joined."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        said = [error.context, error.problem]
        return ", ".join(filter(None, said)) + (f" (line {mark.line + 1}, column {mark.column + 1})" if mark else "")
    return str(error).split("\n")[0]


def _wrong_section(key: str, value: Any) -> str:
    """A sentence where a value stands in a section's place: it would be dropped where another layer has the section."""
    if not isinstance(value, (dict, NoneType)) and isinstance(_defaults().get(key), dict):
        return f"{key} is a section: write {key}.<option>=value, not {key}={str(value)[:60]}."
    return ""


@cache
def _defaults() -> dict[str, Any]:
    return Config().model_dump()


def _filled(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`given`, and what it lacks from `defaults`; what is given stays as it is, of whatever kind."""
    missing = {key: value for key, value in defaults.items() if key not in given}
    sections = {
        key: _filled(value, defaults[key])
        for key, value in given.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return given | sections | missing


def _plain(layer: Any, path: str | None, problems: list[str]) -> dict[str, Any]:
    plain = OmegaConf.to_container(layer, resolve=False)
    if not isinstance(plain, dict):
        raise ConfigError(f"The configuration {path} must hold sections such as 'run:', not a {type(plain).__name__}.")
    wrong = {str(key): said for key, value in plain.items() if (said := _wrong_section(str(key), value))}
    problems += wrong.values()
    run = plain.get("run")
    if isinstance(run, dict) and isinstance(run.get("dir"), str):
        # No shell does it in a file, or behind the = of an override. Here, so that `${run.dir}` stands for the same.
        run["dir"] = os.path.expanduser(run["dir"])
    return {key: value for key, value in plain.items() if str(key) not in wrong}  # type: ignore[misc]


def validate(raw: dict[str, Any]) -> Config:
    """`Config` from a plain dictionary; every problem in one ConfigError."""
    layers = map(OmegaConf.create, apply_presets([raw]))
    config, problems = validated(OmegaConf.to_container(OmegaConf.merge(*layers)))  # type: ignore[arg-type]
    if problems or config is None:
        raise _refused(problems)
    return config


def changes(before: Path, now: Config) -> list[str]:
    """Options that differ from a configuration saved earlier, as "key: old -> new". Raises ConfigError where that
    cannot be read."""
    then, present = saved_values(before), written(now)
    return [f"{key}: {then[key]} -> {present[key]}" for key in present if key in then and then[key] != present[key]]


def saved_values(path: Path) -> dict[str, Any]:
    """The value of every option in a run's config.yaml, by its key. Raises ConfigError where it cannot be read."""
    try:
        found = OmegaConf.to_container(read_yaml(str(path)))
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError, ConfigError, RecursionError) as error:
        text = _yaml_reason(error) if isinstance(error, yaml.YAMLError) else str(error)
        reason = " ".join(text.split())[:200] or type(error).__name__
        raise ConfigError(f"{path} cannot be read ({reason}).") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path} cannot be read (it holds no sections).")
    return flat(found)


def values(config: Config) -> dict[str, Any]:
    """The value of every option by its key ("algorithm.groups"). A text that came from the environment is its reference
    and a hash: enough to compare."""
    found = flat(config.model_dump())
    texts = {key: text for key, text in config._referring.items() if isinstance(found[key], (str, list, dict))}
    return found | {key: f"{text} ({fingerprint(key, found[key])})" for key, text in texts.items()}


def as_yaml(config: Config) -> str:
    """The resolved configuration, as config.yaml holds it: what came from the environment stays a reference to it."""
    return OmegaConf.to_yaml(OmegaConf.create(_written(config)))


def written(config: Config) -> dict[str, Any]:
    """The value of every option by its key, as config.yaml holds it."""
    return flat(_written(config))


def _written(config: Config, tree: Any = None, prefix: str = "") -> Any:
    """References to the environment as they were written, and what only looks like a reference escaped."""
    if prefix in config._referring:
        return config._referring[prefix]
    if prefix == "":
        tree = config.model_dump()
    if isinstance(tree, dict):
        return {key: _written(config, value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(item) for item in tree]
    return _escaped(tree)


def _escaped(value: Any) -> Any:
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
