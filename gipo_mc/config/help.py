"""What `--help` says of every option."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from gipo_mc.config.schema import options, resume_rule
from gipo_mc.config.section import ResumeRule
from gipo_mc.presets import PRESETS

#: Behind the meaning of an option: what a run that continues may do with it.
MARKS: dict[ResumeRule, str] = {"fixed": "", "changeable": " *", "content": " +"}
MARKS_MEAN = "* may change when a run continues; + may be moved or renamed, with the same content; all others stay"


def describe() -> list[tuple[str, str, str]]:
    """(key, default, meaning) of every option, in order: what `--help` shows."""
    rows: list[tuple[str, str, str]] = []
    for key, field in options().items():
        default, meaning = field.get_default(call_default_factory=True), field.description or ""
        if key == "algorithm.name":
            meaning += f" ({', '.join(PRESETS)})"
        if get_origin(field.annotation) is Literal:
            meaning += f" ({', '.join(get_args(field.annotation))})"
        rows.append((key, repr(default), meaning + MARKS[resume_rule(key)]))
    return rows
