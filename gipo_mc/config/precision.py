"""Options that decide how precisely a model is computed, beside its dtype."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gipo_mc.config.section import Section, on_or_off


class PrecisionConfig(Section):
    fp32_logits: bool = Field(False, description="float32 logits of a bfloat16 model, in training and generation")
    fp8: Literal["off", "hybrid"] = Field(
        "off", description="FP8 in the layers' matrix products (E4M3, gradients E5M2); needs CUDA, TransformerEngine"
    )

    @field_validator("fp8", mode="before")
    @classmethod
    def _yaml_bool(cls, value: object) -> object:
        return on_or_off(value)
