"""Which sources of a configuration are read for what.

An empty list in the configuration falls back: demonstrations and prompts to the preferences (their chosen responses,
their shared prompts), prompts to the demonstrations, and with no source at all everything to the built-in task.
"""

from __future__ import annotations

from typing import Literal

from gipo_mc.config import DataConfig
from gipo_mc.errors import ConfigError

Kind = Literal["prompts", "demonstrations", "preferences"]
Part = Literal["train", "evaluation"]

_FALLBACKS: dict[Kind, tuple[Kind, ...]] = {
    "prompts": ("prompts", "preferences", "demonstrations"),
    "demonstrations": ("demonstrations", "preferences"),
    "preferences": ("preferences",),
}
BUILTIN = "builtin"


def sources_of(data: DataConfig, kind: Kind, part: Part = "train") -> list[str]:
    """The sources that `kind` is read from, after those fall-backs. Raises ConfigError."""
    given = any((data.prompts, data.preferences, data.demonstrations))
    if part == "evaluation":
        if data.evaluation or given:
            return list(data.evaluation)
        return [f"{BUILTIN}:easy", f"{BUILTIN}:hard"] + ([f"{BUILTIN}:ood"] if kind == "prompts" else [])
    for name in _FALLBACKS[kind]:
        if sources := getattr(data, name):
            return list(sources)
    if given:
        raise ConfigError(f"data.{kind} names no source: give files or hub names, or 'builtin'.")
    return [BUILTIN]
