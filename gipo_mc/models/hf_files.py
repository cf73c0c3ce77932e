"""config.json and generation_config.json of a saved model, written so that transformers 4.57 reads what 5 does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gipo_mc.models.families import family_of, hf_config
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import HeadKind

CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True)
class Tokens:
    """Special ids of the model that is saved.

    eos_id: the one that ends the responses it was trained on. end_ids: all that end a response, that one included.
    pad_id: of config.json; of a reward model it says where the reward is read.
    """

    eos_id: int
    end_ids: tuple[int, ...]
    pad_id: int | None


def save_config(shape: ModelShape, folder: Path, head: HeadKind, tokens: Tokens | None = None, **fields: Any) -> None:
    """Write both files into `folder`, which is there. Raises OSError.

    tokens: None leaves the special ids as `shape` has them. fields: further fields of config.json (dtype).
    A reward model is its family's sequence classifier with one label, everything else its language model. What
    generation_config.json held before stays in it; end ids that it does not name are added.
    """
    family = family_of(shape)
    if head == "reward":
        fields = {"architectures": [family.sequence_classifier], "num_labels": 1, **fields}
    else:
        fields = {"architectures": [family.causal_lm], **fields}
    if tokens:
        fields["pad_token_id"] = tokens.pad_id
        if tokens.eos_id not in _listed(shape.eos_token_id):
            fields["eos_token_id"] = tokens.eos_id
    hf_config(shape, **fields).save_pretrained(folder)
    path = folder / CONFIG
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _write(path, written | _older_rope(shape))
    generation: dict[str, Any] = json.loads(shape.generation) if shape.generation else {}
    if tokens and head == "lm":
        defaults = {"bos_token_id": shape.bos_token_id, "pad_token_id": tokens.pad_id}
        generation |= {name: value for name, value in defaults.items() if generation.get(name) is None}
        ends = [*_listed(generation.get("eos_token_id")), tokens.eos_id, *tokens.end_ids]
        generation["eos_token_id"] = _joined(ends)
    if generation:
        _write(folder / GENERATION, generation)


def _older_rope(shape: ModelShape) -> dict[str, Any]:
    """The fields in which versions before 5 look for the rotary embedding; version 5 reads the same from them."""
    scaling = dict(shape.rope_scaling)
    return {"rope_theta": shape.rope_theta} | ({"rope_scaling": scaling} if scaling else {})


def _listed(ids: Any) -> list[int]:
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list | tuple) else [ids]


def _joined(ids: list[int]) -> int | list[int]:
    """Each id once; a single one as a number, as most readers expect it."""
    once = list(dict.fromkeys(ids))
    return once[0] if len(once) == 1 else once


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
