"""The configuration as JSON Schema (draft 7), which editors read to complete keys, show meanings and mark errors.

Made from the pydantic classes alone, and committed as `gipo_mc/config/schemas/*.json`, one for each trainer. All keys
are in each of them, because a file may hold those of other commands; what the command does not read is not suggested.

What the classes take beside the plain type of an option (nothing for an empty name, one file for a list of one, a bare
on or off) is found by trying it. An option may also be a reference, `${policy.lr}`, whose value is known at the start
only. The schema is stricter than the loader in one way: numbers in quotes, and yes for true, are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gipo_mc.config.commands import read_by
from gipo_mc.config.explain.units import UNITS
from gipo_mc.config.schema import Config, resume_rule
from gipo_mc.presets import PRESETS

#: Name of a schema, and of the verb of `gipo-mc train` -> the command whose keys it suggests.
KINDS = {"gi-ppo": "train_gi_ppo", "sft": "train_sft", "reward": "train_reward", "dpo": "train_dpo"}
FOLDER = Path(__file__).parent.parent / "schemas"
#: A value that OmegaConf puts in when the configuration is loaded.
REFERENCE = {"$ref": "#/definitions/reference"}
ON_RESUME = {
    "fixed": "Stays when a run continues.",
    "changeable": "May change when a run continues.",
    "content": "May be moved or renamed when a run continues, with the same content.",
}
#: What of pydantic's schema of a field says which values it takes.
_VALUES = (
    *("type", "enum", "const", "items", "minLength", "pattern", "propertyNames", "additionalProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
)


def schema_file(kind: str) -> Path:
    """Where the schema of this kind is kept."""
    return FOLDER / f"{kind}.json"


def schema_text(kind: str) -> str:
    """The schema of this kind as its file holds it."""
    return json.dumps(json_schema(kind), indent=1, ensure_ascii=False) + "\n"


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of the configuration of one of `KINDS`."""
    suggested = set(read_by(KINDS[kind]))
    whole = Config.model_json_schema()
    found: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            fields = whole["$defs"][section.__name__]["properties"]
            found[name] = _section(name, section, fields, suggested)
        else:
            found[name] = _option(name, name, Config, whole["properties"][name], suggested)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"Configuration of gipo-mc train {kind}",
        "type": "object",
        "properties": found,
        "additionalProperties": False,
        "definitions": {"reference": {"type": "string", "pattern": r"\$\{"}},
    }


def _section(name: str, section: type[BaseModel], fields: dict[str, Any], suggested: set[str]) -> dict[str, Any]:
    options = {key: _option(f"{name}.{key}", key, section, raw, suggested) for key, raw in fields.items()}
    if name == "algorithm":
        same = "The same as algorithm.name: give one of the two."
        options["preset"] = options["name"] | {"title": "algorithm.preset", "description": same}
    unread = not any(f"{name}.{key}" in suggested for key in fields)
    return {
        "title": name,
        "type": "object",
        "properties": options,
        "additionalProperties": False,
        **({"doNotSuggest": True} if unread else {}),
    }


def _option(key: str, name: str, section: type[BaseModel], raw: dict[str, Any], suggested: set[str]) -> dict[str, Any]:
    core = values_of(key, raw)
    also = _also_taken(core, name, section)
    items = core.get("items", {})
    if "enum" in items or items.get("type") in ("number", "integer"):
        core["items"] = {"anyOf": [core["items"], REFERENCE]}
    ways = [core, *also]
    if core.get("type") != "string" or "enum" in core:
        ways += [] if key == "algorithm.name" else [REFERENCE]
    return {
        "title": key,
        "description": _meaning(key, raw) + ("" if key in suggested else " Not read by this command."),
        "default": _default(section, name),
        **(ways[0] if len(ways) == 1 else {"anyOf": ways}),
        **({} if key in suggested else {"doNotSuggest": True}),
        **({"x-unit": UNITS[key]} if key in UNITS else {}),
        "x-on-resume": resume_rule(key),
    }


def values_of(key: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Which values an option takes, of pydantic's schema of its field."""
    core = {word: raw[word] for word in _VALUES if word in raw}
    if key == "algorithm.name":
        core["enum"] = list(PRESETS)
        core["enumDescriptions"] = [f"{preset.title}: {preset.meaning}" for preset in PRESETS.values()]
    return core


def _also_taken(core: dict[str, Any], name: str, section: type[BaseModel]) -> list[dict[str, Any]]:
    """What else the loader takes in the place of such a value."""
    items = core.get("items", {})
    one = items.get("enum", ["a"])[0]
    found = []
    if core["type"] == "array" and _takes(section, name, one):
        found.append(items)
    if core["type"] != "boolean":
        found += [{"const": yes} for yes in (True, False) if _takes(section, name, yes)]
    return found + [{"type": "null"}] * _takes(section, name, None)


def _takes(section: type[BaseModel], name: str, value: Any) -> bool:
    try:
        section.model_validate({name: value})
    except ValidationError:
        return False
    return True


def _default(section: type[BaseModel], name: str) -> Any:
    return section.model_fields[name].get_default(call_default_factory=True)


def _meaning(key: str, raw: dict[str, Any]) -> str:
    text = raw["description"]
    unit = f" Unit: {UNITS[key]}." if key in UNITS else ""
    default = f" Default: {json.dumps(raw['default'])}." if raw.get("default") not in (None, "", []) else ""
    return f"{text[0].upper()}{text[1:]}.{unit}{default} {ON_RESUME[resume_rule(key)]}"
