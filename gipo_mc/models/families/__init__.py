"""Families of models, a file each. Config.json decides which one a checkpoint belongs to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from gipo_mc.config import check_regular
from gipo_mc.errors import CheckpointError, ConfigError
from gipo_mc.models.families.base import Family
from gipo_mc.models.families.llama import Llama
from gipo_mc.models.families.mistral import Mistral
from gipo_mc.models.families.qwen2 import Qwen2
from gipo_mc.models.families.qwen3 import Qwen3
from gipo_mc.models.shape import ModelShape, bullets

#: model_type of config.json -> family. docs/recipes/model_family.md says how to add one.
FAMILIES: dict[str, Family] = {family.model_type: family for family in (Llama(), Mistral(), Qwen2(), Qwen3())}


def family_of(shape: ModelShape) -> Family:
    """The family of a shape."""
    return FAMILIES[shape.family]


def read_shape(source: str | Path | PreTrainedConfig) -> ModelShape:
    """The shape of a Hugging Face folder or config.

    Of a folder with its generation_config.json, where it has one.
    Raises CheckpointError if there is no readable config.json, ConfigError for another kind of model, listing the
    supported ones, for a quantised one, or listing every feature of the model that is not supported.
    """
    if isinstance(source, PreTrainedConfig):
        name = source.name_or_path or "the model"
        return _family(source.model_type, name).shape(source, name)
    folder = Path(source)
    raw = _read_config(folder)
    family = _family(raw.get("model_type"), str(folder / "config.json"))
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "not named") if isinstance(quantised, dict) else quantised
        raise ConfigError(
            f"{folder} holds a quantised model (quantization_config in its config.json, quant_method {method}): its "
            "numbers are codes, which cannot be trained here. Give the model it was made from, with F32, BF16 or F16 "
            "weights."
        )
    try:
        config = type(family.new_config()).from_dict(raw)
    except Exception as error:  # transformers validates with several exception types of its own
        raise CheckpointError(f"{folder / 'config.json'} is not a valid {family.hf_name} config: {error}") from error
    try:
        shape = family.shape(config, str(folder))
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"{folder / 'config.json'} has a field of the wrong kind: {error}") from error
    if wrong := shape.absurd():
        raise CheckpointError(f"{folder / 'config.json'} describes no model:\n" + bullets(wrong))
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return shape
    fields = _read_json(generation)
    ends = fields.get("eos_token_id")
    if any(type(one) is not int for one in (ends if isinstance(ends, list) else [] if ends is None else [ends])):
        raise CheckpointError(f"{generation} has eos_token_id={ends!r}: a whole number or a list of them is expected.")
    return replace(shape, generation=json.dumps(fields, sort_keys=True))


def hf_config(shape: ModelShape, **overrides: Any) -> PreTrainedConfig:
    """The Hugging Face config of a shape, with fields of the caller's (architectures, dtype, num_labels)."""
    return family_of(shape).hf_config(shape, **overrides)


def _family(model_type: Any, where: str) -> Family:
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{where} describes model_type={model_type!r}, which cannot be trained here. Supported are dense models of "
            f"the families {', '.join(FAMILIES)}; mixtures of experts are not."
        )
    return FAMILIES[model_type]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    check_regular(folder)
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json: give a Hugging Face checkpoint, a folder with config.json and *.safetensors."
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    return raw if isinstance(raw, dict) else {}
