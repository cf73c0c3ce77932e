"""From YAML, overrides and presets to one `Config`, and back into a file.

Unknown keys, wrong types and impossible combinations are collected and reported in one `ConfigError`, each with its
key, the numbers involved and the fix.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from gipo_mc.config.scalars import misread_numbers
from gipo_mc.config.schema import Config
from gipo_mc.errors import ConfigError
from gipo_mc.presets import apply as apply_presets


def load_config(path: str | None, overrides: list[str], base: dict[str, Any] | None = None) -> Config:
    """Configuration from defaults <- `base` <- YAML file <- `key.sub=value` overrides.

    Raises ConfigError naming every problem at once.
    """
    return _validate(_read(path, overrides, base or {}))


def names_nothing(path: str | None, overrides: list[str]) -> bool:
    """Does the user name neither a model nor training data? Other keys are not looked at. Raises ConfigError where the
    configuration cannot be read."""
    raw = _read(path, overrides, {})
    model, data = raw.get("model"), raw.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        return False
    return not (any(model.values()) or any(data.get(key) for key in ("prompts", "preferences", "demonstrations")))


def _read(path: str | None, overrides: list[str], base: dict[str, Any]) -> dict[str, Any]:
    """All layers merged and resolved, not validated."""
    layers = [OmegaConf.create(base)]
    try:
        if path:
            if not Path(path).is_file():
                raise ConfigError(f"There is no configuration file {path}. The runnable ones are in configs/.")
            layers.append(OmegaConf.load(path))  # type: ignore[arg-type]
        bad = [o for o in overrides if "=" not in o]
        if bad:
            raise ConfigError(
                f"Not understood: {' '.join(bad)}. Overrides are written key.sub=value, for example run.iterations=50."
            )
        layers.append(OmegaConf.from_dotlist(overrides))
        _check_numbers(path, overrides)
        named = apply_presets([_plain(layer, path) for layer in layers])
        merged = _plain(OmegaConf.merge(*map(OmegaConf.create, named)), path)
        # With the defaults underneath, `${run.dir}` means something where nobody gives run.dir.
        raw = OmegaConf.to_container(OmegaConf.create(_filled(merged, Config().model_dump())), resolve=True)
    except (OmegaConfBaseException, OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ConfigError(f"The configuration {path or ''} cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise ConfigError(f"The configuration {path} is not valid YAML: {error}") from error
        raise
    return raw  # type: ignore[return-value]


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
    return plain  # type: ignore[return-value]


def validate(raw: dict[str, Any]) -> Config:
    """`Config` from a plain dictionary; every problem in one ConfigError."""
    layers = map(OmegaConf.create, apply_presets([raw]))
    return _validate(OmegaConf.to_container(OmegaConf.merge(*layers)))  # type: ignore[arg-type]


def _validate(raw: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = [_problem(detail) for detail in error.errors()]
        raise ConfigError("The configuration has problems:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def _problem(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such key{_suggestion(detail['loc'])}"
    if detail["type"] == "value_error":
        return "\n  - ".join(str(detail["ctx"]["error"]).splitlines())
    return f"{key}={detail['input']!r}: {detail['msg']}"


def _suggestion(loc: tuple[Any, ...]) -> str:
    section: Any = Config
    for part in loc[:-1]:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = field.annotation if field else None
    names = list(getattr(section, "model_fields", {}))
    close = get_close_matches(str(loc[-1]), names, n=1)
    if close:
        return f"; did you mean {'.'.join([*map(str, loc[:-1]), close[0]])}?"
    return f"; known here: {', '.join(names)}" if names else ""


def changes(before: Path, now: Config) -> list[str]:
    """Options that differ from a configuration saved earlier, as "key: old -> new"; [] if it cannot be read (then there
    is nothing to compare with)."""
    try:
        old = OmegaConf.to_container(OmegaConf.load(before))
    except (OSError, ValueError, OmegaConfBaseException):
        return []
    then, present = _flat(old), values(now)
    return [f"{key}: {then[key]} -> {present[key]}" for key in present if key in then and then[key] != present[key]]


def values(config: Config) -> dict[str, Any]:
    """The value of every option by its key ("algorithm.groups")."""
    return _flat(config.model_dump())


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    items = [_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
    return {key: value for item in items for key, value in item.items()}


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config.model_dump())), encoding="utf-8")
