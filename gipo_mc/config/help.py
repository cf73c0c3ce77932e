"""What `--help` says: the options that a command reads, section by section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args, get_origin

from gipo_mc.config.commands import read_by
from gipo_mc.config.schema import options, resume_rule
from gipo_mc.config.section import ResumeRule
from gipo_mc.presets import PRESETS

#: Behind the meaning of an option: what a run that continues may do with it.
MARKS: dict[ResumeRule, str] = {"fixed": "", "changeable": " *", "content": " +"}
MARKS_MEAN = "* may change when a run continues; + may be moved or renamed, with the same content; all others stay"


def describe(keys: Sequence[str]) -> list[tuple[str, str, str]]:
    """(key, default, meaning) of these options."""
    rows: list[tuple[str, str, str]] = []
    for key in keys:
        field = options()[key]
        default, meaning = field.get_default(call_default_factory=True), field.description or ""
        if key == "algorithm.name":
            meaning += f" ({', '.join(PRESETS)})"
        if get_origin(field.annotation) is Literal:
            meaning += f" ({', '.join(get_args(field.annotation))})"
        rows.append((key, repr(default), meaning + MARKS[resume_rule(key)]))
    return rows


def help_lines(command: str) -> Iterator[str]:
    """What `--help` shows of the options that `command` reads: a block for each section."""
    rows = describe(read_by(command))
    width = max(len(key) for key, _, _ in rows)
    yield "options of a configuration: key, meaning, [default]"
    yield f"({MARKS_MEAN})"
    before = ""
    for key, default, meaning in rows:
        section = key.rpartition(".")[0]
        if section != before:
            yield f"\n{section}" if section else ""
        before = section
        yield f"  {key:<{width}}  {meaning} [{default}]"
    yield "\nThese are the options that this command reads. A file may hold those of other commands, too; all of them"
    yield "stand in gipo_mc/config/ (schema.py, data.py, memory.py, precision.py, reward.py, rl.py)."
