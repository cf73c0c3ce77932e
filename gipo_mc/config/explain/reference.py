"""All keys of the configuration as Markdown, for docs/configuration.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gipo_mc.config.explain.json_schema import values_of
from gipo_mc.config.explain.units import UNITS
from gipo_mc.config.schema import Config, options, resume_rule

BEGIN, END = "<!-- table keys -->", "<!-- end of table keys -->"
_RESUME = {"fixed": "stays", "changeable": "may change", "content": "same content"}


def reference_lines() -> list[str]:
    """A table for each section."""
    whole = Config.model_json_schema()
    single: list[str] = []
    sections: list[str] = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            single.append(_row(name, whole["properties"][name]))
            continue
        fields = whole["$defs"][section.__name__]["properties"]
        sections += ["", f"### {name}", "", *_HEAD, *(_row(f"{name}.{key}", raw) for key, raw in fields.items())]
    return ["### Outside sections", "", *_HEAD, *single, *sections]


_HEAD = ("| key | values | default | unit | on resume | meaning |", "| --- | --- | --- | --- | --- | --- |")


def with_reference(page: str) -> str:
    """A page with the tables of now between its markers."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return "\n".join([before + BEGIN, "", *reference_lines(), "", END]) + after


def write_reference(path: Path) -> None:
    """Renew the tables of a page."""
    path.write_text(with_reference(path.read_text(encoding="utf-8")), encoding="utf-8")


def _row(key: str, raw: dict[str, Any]) -> str:
    default = options()[key].get_default(call_default_factory=True)
    shown = default if isinstance(default, str) else json.dumps(default)
    cells = (
        f"`{key}`",
        _values(values_of(key, raw)),
        f"`{shown}`" if shown else "",
        UNITS.get(key, ""),
        _RESUME[resume_rule(key)],
        raw["description"],
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(core: dict[str, Any]) -> str:
    """Which values there are, in words."""
    if core["type"] == "array":
        return f"list of {_values(core['items'])}"
    if core["type"] == "object":
        return f"map of field to {_values(core['additionalProperties'])}"
    if "enum" in core:
        return ", ".join(f"`{word}`" for word in core["enum"])
    kind = {"string": "text", "boolean": "true, false", "integer": "whole number", "number": "number"}[core["type"]]
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join([kind, *(f"{sign} {core[bound]:,}" for bound, sign in bounds.items() if bound in core)])
