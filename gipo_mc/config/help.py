"""What `--help` says of every option."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from gipo_mc.config.schema import Config
from gipo_mc.presets import PRESETS


def describe(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, meaning) of every option, in order: what `--help` shows."""
    rows: list[tuple[str, str, str]] = []
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += describe(annotation, f"{prefix}{name}.")
        else:
            default, meaning = field.get_default(call_default_factory=True), field.description or ""
            if annotation is str and f"{prefix}{name}" == "algorithm.name":
                meaning += f" ({', '.join(PRESETS)})"
            if get_origin(annotation) is Literal:
                meaning += f" ({', '.join(get_args(annotation))})"
            rows.append((f"{prefix}{name}", repr(default), meaning))
    return rows
