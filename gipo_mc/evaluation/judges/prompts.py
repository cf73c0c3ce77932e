"""What a language model is asked: built-in prompts, or a file of the same form.

A prompt is YAML: `user` (and `system`) with the slots <<prompt>>, <<first>> and <<second>>, <<mark>> for digits that no
response can know, so that none can pretend to end where it does not; `verdict`, the line that the answer is to end
with, with <<choice>> in it; `choices`, what stands there and what it means; `orders`, `about`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from gipo_mc.config.explain.problems import worded
from gipo_mc.config.names import is_file
from gipo_mc.config.section import Section
from gipo_mc.config.yaml_text import read_values
from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.judge_config import Orders
from gipo_mc.evaluation.responses import text_hash

Position = Literal["first", "second", "tie"]
_FOLDER = files("gipo_mc.evaluation") / "templates" / "judge"
_SLOT = re.compile(r"<<(\w+)>>")
#: What JSON can carry and servers or terminals cannot: all but tab and line break, and halves of surrogate pairs.
_UNSENDABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _File(Section):
    about: str = Field("", description="where the protocol comes from, for readers")
    orders: Orders = Field("both", description="both or seeded")
    system: str = Field("", description="the system message; empty: none is sent")
    user: str = Field(description="the user's message, with the slots")
    verdict: str = Field(description="the last line of an answer, with <<choice>>")
    choices: dict[str, Position] = Field(description="what stands at <<choice>>: first, second or tie")

    @field_validator("choices")
    @classmethod
    def _are_choices(cls, value: dict[str, Position]) -> dict[str, Position]:
        if sorted(value.values()) not in (["first", "second"], ["first", "second", "tie"]):
            raise ValueError("choices: one each for first and second, and one for tie where ties are allowed")
        if any(not re.fullmatch("[A-Za-z0-9]+", choice) for choice in value):
            raise ValueError("choices: letters and digits only")
        return value

    @model_validator(mode="after")
    def _has_slots(self) -> _File:
        found = _SLOT.findall(self.system + self.user)
        if missing := {"prompt", "first", "second"} - set(found):
            raise ValueError(f"user has no <<{'>>, <<'.join(sorted(missing))}>>")
        if unknown := set(found) - {"prompt", "first", "second", "mark"}:
            raise ValueError(f"there is no slot <<{'>>, <<'.join(sorted(unknown))}>>")
        if self.verdict.count("<<choice>>") != 1 or "\n" in self.verdict.strip():
            raise ValueError("verdict is one line with one <<choice>>")
        return self


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt that was read and checked. version: 16 digits, another one for any other wording or reading."""

    name: str
    orders: Orders
    system: str
    user: str
    verdict: str
    choices: Mapping[str, Position]

    @property
    def version(self) -> str:
        return text_hash(self.system, self.user, self.verdict, sorted(self.choices.items()))

    def messages(self, prompt: str, first: str, second: str) -> list[dict[str, str]]:
        """The question about two responses. Each slot is filled once: what a response holds stays text."""
        texts = {"prompt": prompt.strip(), "first": first, "second": second}
        texts = {name: _UNSENDABLE.sub("\ufffd", text) for name, text in texts.items()}
        texts["mark"] = text_hash(prompt, first, second)[:8]

        def filled(template: str) -> str:
            return _SLOT.sub(lambda slot: texts[slot[1]], template)

        system = [{"role": "system", "content": filled(self.system)}] if self.system.strip() else []
        return [*system, {"role": "user", "content": filled(self.user)}]

    def lines(self) -> list[str]:
        """The lines that an answer may end with."""
        return [self.line(choice) for choice in self.choices]

    def line(self, choice: str) -> str:
        """The last line of an answer that makes this choice."""
        return self.verdict.strip().replace("<<choice>>", choice)

    def reminder(self) -> str:
        """What is said to a model whose answer has no verdict."""
        return "Your answer did not end with a verdict. Write one line and nothing else: " + " or ".join(self.lines())


def built_in() -> list[str]:
    """Names of the prompts that come with the package."""
    return sorted(Path(entry.name).stem for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_prompt(name: str) -> JudgePrompt:
    """A built-in prompt, or the one in a file. Raises ConfigError."""
    if name in built_in():
        return _read(str(_FOLDER / f"{name}.yaml"), name)
    if not is_file(name):
        raise ConfigError(
            f"prompt={name}: there is no such prompt and no such file. Built in are {', '.join(built_in())}."
        )
    return _read(name, Path(name).stem)


def _read(path: str, name: str) -> JudgePrompt:
    raw = read_values(path, f"The prompt {path} is not valid YAML")
    if not isinstance(raw, dict):
        raise ConfigError(f"The prompt {path} must hold user, verdict and choices, as the built-in ones do.")
    try:
        found = _File.model_validate({str(key): value for key, value in raw.items()})
    except ValidationError as error:
        problems = [
            str(detail["ctx"]["error"]) if detail["type"] == "value_error" else f"{_key(detail)}: {worded(detail)}"
            for detail in error.errors()
        ]
        raise ConfigError(
            f"The prompt {path} has problems:\n" + "\n".join(f"  - {line}" for line in problems)
        ) from error
    return JudgePrompt(name, found.orders, found.system, found.user, found.verdict, found.choices)


def _key(detail: Any) -> str:
    return ".".join(str(part) for part in detail["loc"])
