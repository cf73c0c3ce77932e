"""From YAML, overrides and presets to one `Config`, and back into a file.

Unknown keys, wrong types and impossible combinations are collected and reported in one `ConfigError`, each with its
key, the numbers involved and the fix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from gipo_mc.config.environment import fingerprint, hide, hide_named, marked_environment, references
from gipo_mc.config.names import is_file, name_problems
from gipo_mc.config.scalars import misread_numbers
from gipo_mc.config.schema import Config
from gipo_mc.config.yaml_text import check_yaml, read_yaml
from gipo_mc.errors import ConfigError
from gipo_mc.presets import apply as apply_presets


def load_config(path: str | None, overrides: list[str], base: dict[str, Any] | None = None) -> Config:
    """Configuration from defaults <- `base` <- YAML file <- `key.sub=value` overrides.

    Raises ConfigError naming every problem at once.
    """
    merged = _merged(path, overrides, base or {})
    real = _resolved(merged, path)
    referring: dict[str, Any] = {}
    if "${" in str(merged):
        with marked_environment():
            marked = _resolved(merged, path)
        # Before anything can complain of a value: from here on it is hidden.
        referring = references(_flat(real), _flat(marked))
    config = _validate(real)
    config._referring = referring
    return config


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
    return _resolved(_merged(path, overrides, base), path)


def _merged(path: str | None, overrides: list[str], base: dict[str, Any]) -> dict[str, Any]:
    """All layers, over the defaults; references as they were written."""
    bad = [o for o in overrides if "=" not in o]
    if bad:
        raise ConfigError(
            f"Not understood: {' '.join(bad)}. Overrides are written key.sub=value, for example run.iterations=50."
        )
    with _problems_of(path):
        layers = [OmegaConf.create(base)]
        if path:
            if not is_file(path):
                raise ConfigError(f"There is no configuration file {path}. The runnable ones are in configs/.")
            layers.append(read_yaml(path))
        for override in overrides:
            key, _, value = override.partition("=")
            try:
                check_yaml(value, f"The value of {key}")
                _check_section(key, yaml.safe_load(value))
            except yaml.YAMLError as error:
                raise ConfigError(f"The value of {key} is not valid YAML: {_yaml_reason(error)}.") from error
        layers.append(OmegaConf.from_dotlist(overrides))
        _check_numbers(path, overrides)
        named = apply_presets([_plain(layer, path) for layer in layers])
        merged = _plain(OmegaConf.merge(*map(OmegaConf.create, named)), path)
        # With the defaults underneath, `${run.dir}` means something where nobody gives run.dir.
        return _filled(merged, _defaults())


def _resolved(merged: dict[str, Any], path: str | None) -> dict[str, Any]:
    try:
        with _problems_of(path):
            return OmegaConf.to_container(OmegaConf.create(merged), resolve=True)  # type: ignore[return-value]
    except ConfigError:
        hide_named(str(merged))
        raise


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


def _check_section(key: str, value: Any) -> None:
    """A value in a section's place would be dropped where another layer has the section."""
    if not isinstance(value, (dict, NoneType)) and isinstance(_defaults().get(key), dict):
        raise ConfigError(f"{key} is a section: write {key}.<option>=value, not {key}={str(value)[:60]}.")


@cache
def _defaults() -> dict[str, Any]:
    return Config().model_dump()


def _check_numbers(path: str | None, overrides: list[str]) -> None:
    """Raises ConfigError where YAML would read a number otherwise than the user wrote it."""
    texts = [*([Path(path).read_text(encoding="utf-8")] if path else []), *(o.partition("=")[2] for o in overrides)]
    labels = [*([f"{path}, "] if path else []), *(f"{o}, " for o in overrides)]
    found = [label + problem for label, text in zip(labels, texts, strict=True) for problem in misread_numbers(text)]
    if found:
        raise ConfigError("The configuration has problems:\n" + "\n".join(f"  - {line}" for line in found))


def _filled(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`given`, and what it lacks from `defaults`; what is given stays as it is, of whatever kind."""
    missing = {key: value for key, value in defaults.items() if key not in given}
    sections = {
        key: _filled(value, defaults[key])
        for key, value in given.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return given | sections | missing


def _plain(layer: Any, path: str | None) -> dict[str, Any]:
    plain = OmegaConf.to_container(layer, resolve=False)
    if not isinstance(plain, dict):
        raise ConfigError(f"The configuration {path} must hold sections such as 'run:', not a {type(plain).__name__}.")
    for key, value in plain.items():
        _check_section(str(key), value)
    return plain  # type: ignore[return-value]


def validate(raw: dict[str, Any]) -> Config:
    """`Config` from a plain dictionary; every problem in one ConfigError."""
    layers = map(OmegaConf.create, apply_presets([raw]))
    return _validate(OmegaConf.to_container(OmegaConf.merge(*layers)))  # type: ignore[arg-type]


def _validate(raw: dict[str, Any]) -> Config:
    try:
        config = Config.model_validate(raw)
        lines = name_problems(_flat(config.model_dump()))
    except ValidationError as error:
        lines = [_problem(detail) for detail in error.errors()]
    if lines:
        raise ConfigError("The configuration has problems:\n" + "\n".join(f"  - {line}" for line in lines))
    return config


#: Keys that earlier versions had, and what took their place.
_MOVED = {"rollout.micro_batch_size": "rollout.slots"}


def _problem(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such key{_suggestion(detail['loc'])}"
    if detail["type"] == "value_error":
        return "\n  - ".join(str(detail["ctx"]["error"]).splitlines())
    try:
        value = hide(repr(detail["input"]))  # before it is cut: a part of a secret would not be found
    except ValueError:  # Python writes no integer of more than 4,300 digits
        value = "a number of thousands of digits"
    return f"{key}={value if len(value) <= 200 else f'{value[:200]}...'}: {detail['msg']}"


def _suggestion(loc: tuple[Any, ...]) -> str:
    section: Any = Config
    for part in loc[:-1]:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = field.annotation if field else None
    if now := _MOVED.get(".".join(map(str, loc))):
        return f" any more; it is {now} now"
    names = list(getattr(section, "model_fields", {}))
    close = get_close_matches(str(loc[-1]), names, n=1)
    if close:
        return f"; did you mean {'.'.join([*map(str, loc[:-1]), close[0]])}?"
    return f"; known here: {', '.join(names)}" if names else ""


def changes(before: Path, now: Config) -> list[str]:
    """Options that differ from a configuration saved earlier, as "key: old -> new". Raises ConfigError where that
    cannot be read."""
    then, present = saved_values(before), _flat(_written(now))
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
    return _flat(found)


def values(config: Config) -> dict[str, Any]:
    """The value of every option by its key ("algorithm.groups"). A text that came from the environment is its reference
    and a hash: enough to compare."""
    found = _flat(config.model_dump())
    texts = {key: text for key, text in config._referring.items() if isinstance(found[key], (str, list))}
    return found | {key: f"{text} ({fingerprint(key, found[key])})" for key, text in texts.items()}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    items = [_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
    return {key: value for item in items for key, value in item.items()}


def as_yaml(config: Config) -> str:
    """The resolved configuration, as config.yaml holds it: what came from the environment stays a reference to it."""
    return OmegaConf.to_yaml(OmegaConf.create(_written(config)))


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
