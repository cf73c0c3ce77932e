"""config.json and generation_config.json: what comes in goes out, and older versions of transformers read the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from gipo_mc.errors import CheckpointError, ConfigError
from gipo_mc.models.families import read_shape
from gipo_mc.models.hf_files import Tokens, save_config
from gipo_mc.models.shape import ModelShape
from tests.models import tiny

LINEAR = {"rope_type": "linear", "factor": 4.0}


def saved(shape: ModelShape, folder: Path, *arguments: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The two files."""
    folder.mkdir(exist_ok=True)
    save_config(shape, folder, *arguments)
    generation = folder / "generation_config.json"
    config = json.loads((folder / "config.json").read_text())
    return config, json.loads(generation.read_text()) if generation.exists() else None


@pytest.mark.parametrize("scaling", [None, LINEAR, tiny.LLAMA3_ROPE], ids=["plain", "linear", "llama3"])
@pytest.mark.parametrize("model_type", ["llama", *tiny.FAMILIES])
def test_the_rotary_embedding_stands_in_both_forms(
    model_type: str, scaling: dict[str, Any] | None, tmp_path: Path
) -> None:
    rope = {"rope_theta": 500000.0} | ({"rope_scaling": scaling} if scaling else {})
    shape = read_shape(tiny.config(model_type, **rope))
    config, _ = saved(shape, tmp_path, "lm")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config.get("rope_scaling") == scaling
    assert read_shape(tmp_path) == shape
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 500000.0
    # As a version that knows the older form alone wrote it.
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path) == shape


@pytest.mark.parametrize(
    "eos, generation, written, listed",
    [
        (5, None, 5, 5),
        (5, {"eos_token_id": [5, 7], "temperature": 0.6, "top_p": 0.9}, 5, [5, 7]),
        (9, None, 5, [5, 9]),  # trained with another tokenizer than the model came with
        (9, {"eos_token_id": 9, "do_sample": True}, 5, [9, 5]),
        ([9, 5], None, [9, 5], [5, 9]),
        (None, {"eos_token_id": None}, 5, 5),
    ],
)
def test_what_was_trained_ends_a_response_in_both_files_and_nothing_is_lost(
    eos: Any, generation: dict[str, Any] | None, written: Any, listed: Any, tmp_path: Path
) -> None:
    tiny.config(eos_token_id=eos).save_pretrained(tmp_path)
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    shape = read_shape(tmp_path)
    config, kept = saved(shape, tmp_path / "out", "lm", Tokens(5, shape.end_ids, 3))
    assert config["eos_token_id"] == written and config["pad_token_id"] == 3
    assert kept is not None and kept["eos_token_id"] == listed
    assert {name: value for name, value in (generation or {}).items() if name != "eos_token_id"}.items() <= kept.items()
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == listed
    again = read_shape(tmp_path / "out")
    assert set(again.end_ids) == {5, *shape.end_ids}
    assert saved(again, tmp_path / "again", "lm", Tokens(5, again.end_ids, 3)) == (config, kept)


def test_a_reward_model_is_a_classifier_with_one_label_and_a_generation_file_only_if_it_came_with_one(
    tmp_path: Path,
) -> None:
    shape = read_shape(tiny.config())
    config, generation = saved(shape, tmp_path / "one", "reward", Tokens(5, (5,), None))
    assert config["architectures"] == ["LlamaForSequenceClassification"] and generation is None
    assert AutoConfig.from_pretrained(tmp_path / "one").num_labels == 1
    assert read_shape(tmp_path / "one").pad_token_id is None
    _, generation = saved(replace(shape, generation='{"eos_token_id": 9}'), tmp_path / "two", "reward")
    assert generation == {"eos_token_id": 9}


def test_a_broken_generation_file_and_a_quantised_model_are_named(tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read as JSON"):
        read_shape(tmp_path)
    for ends in ("7", [7, "8"], True, 7.5):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        with pytest.raises(
            CheckpointError, match=r"generation_config\.json has eos_token_id=.* a whole number or a list"
        ):
            read_shape(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match=r"quantised model \(quantization_config .* quant_method gptq\)"):
        read_shape(tmp_path)
