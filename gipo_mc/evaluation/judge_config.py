"""What a judge is: one YAML file for each, checked before anything is asked.

kind: openai                          kind: reward               kind: python
base_url: http://localhost:8000/v1    model: runs/other_reward   function: my_module:my_judge
model: my-judge
prompt: helpful
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from gipo_mc.config.environment import has_password
from gipo_mc.config.explain.problems import worded
from gipo_mc.config.names import is_file, shipped
from gipo_mc.config.scalars import misread_numbers
from gipo_mc.config.section import Section, on_or_off
from gipo_mc.config.yaml_text import read_values
from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.games import PEOPLE

#: "both": two games a pair, each response first once. "seeded": one, in an order that seed and texts decide.
Orders = Literal["both", "seeded"]
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_LABEL = re.compile(r"[\w.+-][\w.+ -]{0,59}")


class JudgeConfig(Section):
    """What all kinds have."""

    name: str = Field("", description="the evaluator's label in every table; empty: the file's name")
    max_invalid: float = Field(0.05, ge=0, le=1, description="share of questions that may stay without a verdict")

    @field_validator("name")
    @classmethod
    def _is_label(cls, value: str) -> str:
        if value and not _LABEL.fullmatch(value):
            raise ValueError(f"name={value[:60]!r}: a label has at most 60 letters, digits, spaces and any of . + - _")
        return value


class AskedConfig(JudgeConfig):
    """What those have that are shown two responses in an order, and may answer otherwise the next time."""

    orders: Orders | None = Field(None, description="both or seeded [what the prompt says; both]")
    repeats: int = Field(1, ge=1, le=100, description="how often each question is asked, each an answer of its own")


class OpenAIJudgeConfig(AskedConfig):
    """A server that speaks OpenAI's chat completions."""

    kind: Literal["openai"]
    base_url: str = Field(description="address of the server up to /v1, without user or password")
    model: str = Field(min_length=1, description="name of the model as the server knows it")
    prompt: str = Field("helpful", min_length=1, description="a built-in prompt, or a file")
    key_variable: str = Field(
        "", description="environment variable that holds the key; empty: none is sent. The key itself never stands here"
    )
    temperature: float | None = Field(0.0, ge=0, le=2, description="null: not sent, the server's own")
    max_tokens: int = Field(1024, ge=1, le=10**6, description="most tokens of an answer, hidden reasoning included")
    seed: int | None = Field(None, ge=0, lt=2**63, description="sent where given; a repeat adds its number")
    extra: dict[str, Any] = Field(default_factory=dict, description="more fields of the request's body, as they stand")
    workers: int = Field(8, ge=1, le=256, description="requests under way at a time")
    timeout_seconds: float = Field(120.0, gt=0, le=3600, description="one request may take this long")
    retries: int = Field(6, ge=0, le=100, description="tries after the first, where the server is busy or failed")
    longest_wait_seconds: float = Field(
        120.0, ge=0, le=86400, description="where the server asks for a longer pause than this, the command ends"
    )
    price_input: float | None = Field(None, ge=0, description="dollars a million tokens of the request, for --dry-run")
    price_output: float | None = Field(None, ge=0, description="dollars a million tokens of the answer")

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if has_password(value) or "@" in parts.netloc:
            raise ValueError("base_url holds a user or a password: name an environment variable with key_variable")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url={value[:200]!r} is no address: write one like http://localhost:8000/v1")
        return value.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _is_variable(cls, value: str) -> str:
        if value and not _VARIABLE.fullmatch(value):
            # The value is not quoted: somebody may have written the key itself.
            raise ValueError("key_variable is no name of an environment variable, such as OPENAI_API_KEY")
        return value

    @field_validator("extra")
    @classmethod
    def _no_second_value(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "seed", "n", "stream"}
        if twice := sorted(known & value.keys()):
            raise ValueError(f"extra holds {', '.join(twice)}, which the judge sends itself: set the key of that name")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("extra holds what JSON cannot carry, a date for example: put it in quotes") from None
        return value


class RewardJudgeConfig(JudgeConfig):
    """A reward model: the response with the higher reward wins. It sees no order, so there is one game a pair."""

    kind: Literal["reward"]
    model: str = Field(min_length=1, description="run or Hugging Face folder of a reward model, not training's own")
    chat_template: Literal["auto", "on", "off"] = Field(
        "auto",
        description="write dialogues with its tokenizer's chat template; auto: as its own run did, or if it has one",
    )
    margin: float = Field(0.0, ge=0, description="rewards that differ by no more than this are a tie")
    batch: int = Field(32, ge=1, le=2**20, description="pairs scored at a time")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it is run; auto: CUDA if there is one")

    @field_validator("chat_template", mode="before")
    @classmethod
    def _yaml_bool(cls, value: object) -> object:
        return on_or_off(value)


class PythonJudgeConfig(AskedConfig):
    """A Python function f(prompts, first, second) -> "A", "B" or "tie" for each, None where it has no verdict."""

    kind: Literal["python"]
    function: str = Field(
        pattern=r"^[\w.]+:\w+$",
        description="module:function; the module is in the current folder, on PYTHONPATH or installed",
    )
    batch: int = Field(64, ge=1, le=2**20, description="pairs a call")


AnyJudge = OpenAIJudgeConfig | RewardJudgeConfig | PythonJudgeConfig
_KINDS: dict[str, type[AnyJudge]] = {
    "openai": OpenAIJudgeConfig,
    "reward": RewardJudgeConfig,
    "python": PythonJudgeConfig,
}


def load_judge(path: str) -> AnyJudge:
    """The judge in a YAML file; its name is the file's where it gives none. Raises ConfigError with every problem."""
    if not is_file(path):
        raise ConfigError(f"--judge {path}: there is no such file. Examples are in {shipped('configs/judges')}.")
    raw = read_values(path, f"--judge {path} is not valid YAML")
    problems = misread_numbers(Path(path).read_text(encoding="utf-8"))
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"--judge {path}: `kind:` must be one of {', '.join(_KINDS)}, not {kind!r}.")
    try:
        judge = _KINDS[kind].model_validate({str(key): value for key, value in raw.items()})
    except ValidationError as error:
        problems += [_problem(detail, _KINDS[kind]) for detail in error.errors()]
    if problems:
        raise ConfigError(f"--judge {path} has problems:\n" + "\n".join(f"  - {line}" for line in problems))
    judge = judge if judge.name else judge.model_copy(update={"name": Path(path).stem})
    if judge.name == PEOPLE:
        raise ConfigError(
            f"--judge {path}: a judge cannot be called {PEOPLE}, the name of people's votes in every table. Give it "
            "another `name:`."
        )
    return judge


def _problem(detail: Any, kind: type[AnyJudge]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such key; known here: {', '.join(kind.model_fields)}"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    return f"{key}: {worded(detail)}"
