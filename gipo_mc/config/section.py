"""What a section of the configuration is made of: strict fields, and what a run that continues may do with each."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

#: More than this of anything that a step holds is a slip of the hand.
LARGE = 2**20
#: What a run that continues may do with an option.
ResumeRule = Literal["fixed", "changeable", "content"]


def changeable(*default: Any, **field: Any) -> Any:
    """A field that may have another value when a run continues. Arguments: those of pydantic's `Field`."""
    return Field(*default, json_schema_extra={"on_resume": "changeable"}, **field)


def fixed_by_content(*default: Any, **field: Any) -> Any:
    """A field that names files or models, which may be moved or renamed when a run continues, but hold the same."""
    return Field(*default, json_schema_extra={"on_resume": "content"}, **field)


class Section(BaseModel):
    """Strict base: unknown keys are errors, fields are documented by their `description`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_is_empty_of_its_kind(cls, value: object, info: ValidationInfo) -> object:
        """`data.evaluation=` on a command line."""
        kind = get_origin(cls.model_fields[str(info.field_name)].annotation)
        return kind() if value is None and kind in (list, dict) else value

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}  # also "int | None"
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("number", "it must be a number, not yes or no")
        return value


def line_breaks_are_meant(text: str) -> str:
    """Raises where a text holds the two characters \\n: YAML and shells give them for a line break that is not written
    in double quotes, and no text of a model would match."""
    if any(escape in text for escape in ("\\n", "\\r", "\\t")):
        raise PydanticCustomError(
            "escape",
            "it holds a backslash and a letter, not a line break: write it in double quotes inside the quotes of the "
            "shell, as in 'rollout.stop=[\"\\n\\nHuman:\"]'",
        )
    return text


def on_or_off(value: object) -> object:
    """YAML reads a bare on or off as a boolean."""
    return ("on" if value else "off") if isinstance(value, bool) else value
