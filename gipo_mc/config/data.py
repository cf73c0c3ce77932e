"""The section `data`: which rows there are, and how they become text and token ids."""

from __future__ import annotations

from datetime import date
from typing import Literal, get_args

from pydantic import Field, field_validator

from gipo_mc.config.section import LARGE, Section, changeable, fixed_by_content, line_breaks_are_meant, on_or_off

#: auto, the names of gipo_mc/data/formats/, and the built-in task's rows.
RowFormat = Literal[
    "auto",
    "tldr",
    "safe_rlhf",
    "helpsteer",
    "ultrafeedback",
    "sharegpt",
    "alpaca",
    "messages",
    "pairs",
    "hh",
    "builtin",
]


#: Fields of a row that data.columns may find under another name.
RowField = Literal["prompt", "chosen", "rejected", "messages", "domain", "system", "conversation"]


class DataConfig(Section):
    prompts: list[str] = fixed_by_content(
        default_factory=list, description="[files or hub names] of RL prompts, or builtin"
    )
    preferences: list[str] = fixed_by_content(default_factory=list, description="preference pairs (reward model, DPO)")
    demonstrations: list[str] = fixed_by_content(default_factory=list, description="demonstrations (SFT)")
    evaluation: list[str] = changeable(default_factory=list, description="held-out rows of the same kind")
    format: RowFormat = Field("auto", description="row format; auto: by the fields of each source's first row")
    domains: list[str] = fixed_by_content(
        default_factory=list, description="label of each file; empty: from the row or file"
    )
    columns: dict[RowField, str] = fixed_by_content(
        default_factory=dict,
        description=f"own names of columns, {{prompt: question}}; fields: {', '.join(get_args(RowField))}",
    )
    prompt_length: int = Field(256, ge=1, le=LARGE, description="longest prompt in tokens; longer ones are left out")
    sequence_length: int = Field(512, ge=2, le=LARGE, description="longest prompt + response (SFT, reward model, DPO)")
    on_error: Literal["strict", "quarantine"] = Field("strict", description="malformed rows: stop, or skip")
    max_rows: int = Field(0, ge=0, le=10**12, description="use only this many rows of each file; 0: all")
    chat_template: bool = Field(False, description="render dialogues with the tokenizer's chat template")
    template_date: str = Field("2024-07-26", description="the date that a chat template writes, YYYY-MM-DD")
    reward_chat_template: Literal["auto", "on", "off"] = Field(
        "auto", description="render for a reward model with its own chat template; auto: as the policy's data"
    )
    special_tokens_in_text: Literal["auto", "refuse", "text", "allow"] = Field(
        "auto",
        description="text that spells a special token: leave out; characters; the token; auto: text, templated refuse",
    )
    response_separator: str = Field(
        "", description="text between prompt and response; empty: the space of HH and TL;DR"
    )
    join: Literal["separator", "exact"] = Field(
        "separator", description="plain prompt and response: stripped, with the separator; or exactly as they stand"
    )
    turns: Literal["last", "all"] = Field("last", description="SFT learns a dialogue's last assistant turn, or each")

    @field_validator("response_separator")
    @classmethod
    def _line_breaks(cls, value: str) -> str:
        return line_breaks_are_meant(value)

    @field_validator("prompts", "preferences", "demonstrations", "evaluation", "domains", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _fields_are_known(cls, value: object) -> object:
        unknown = [str(key) for key in value if key not in get_args(RowField)] if isinstance(value, dict) else []
        if unknown:
            raise ValueError(
                f"data.columns has {', '.join(unknown)}, which is no field of a row: write field: column, the fields "
                f"being {', '.join(get_args(RowField))}"
            )
        return value

    @field_validator("reward_chat_template", mode="before")
    @classmethod
    def _yaml_bool(cls, value: object) -> object:
        return on_or_off(value)

    @field_validator("template_date", mode="before")
    @classmethod
    def _is_date(cls, value: object) -> object:
        try:
            return date.fromisoformat(str(value)).isoformat()  # YAML reads a bare date as one
        except ValueError:
            raise ValueError(f"data.template_date={value!r} is no date: write one like 2024-07-26") from None

    def problems(self) -> list[str]:
        """Combinations of keys that have no meaning, each with the fix."""
        if self.join == "exact" and self.chat_template:
            return ["data.join=exact is for plain text, and data.chat_template=true has the template join: set one"]
        if self.join == "exact" and self.response_separator:
            return ["data.join=exact puts no data.response_separator between prompt and response: set one of the two"]
        return []
