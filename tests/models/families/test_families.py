"""Mistral, Qwen2 and Qwen3 against transformers: logits, rewards, gradients, training and export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gipo_mc.config import Config, ParallelConfig, load_config
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.errors import ConfigError
from gipo_mc.models.families import FAMILIES, family_of, hf_config, read_shape
from gipo_mc.models.weights.parity import Check, check_checkpoint
from gipo_mc.models.weights.table import OUTPUT
from gipo_mc.parallel import runtime
from gipo_mc.supervised import sft
from gipo_mc.tools.conversion import to_hf
from tests.models import tiny
from tests.models.families.test_llama import write
from tests.models.test_layouts import gradient_errors, stage_gradients, transformers_gradients
from tests.ranks import LAYOUTS, parallel_config, run_ranks

#: As published, in the keys that matter.
MISTRAL_7B_V03 = {
    "model_type": "mistral",
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
QWEN25_05B = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}
QWEN3_06B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
    "attention_bias": False,
    "tie_word_embeddings": True,
}


#: config.json and the width of a head, which it may leave out.
PUBLISHED = ((MISTRAL_7B_V03, 128), (QWEN25_05B, 64), (QWEN3_06B, 128))


def test_published_configs(tmp_path: Path) -> None:
    for fields, head_dim in PUBLISHED:
        shape = read_shape(write(tmp_path, fields))
        assert (shape.family, shape.head_dim) == (fields["model_type"], head_dim)
        assert shape.rope_theta == fields["rope_theta"]
        assert (shape.norm_eps, shape.tied) == (fields["rms_norm_eps"], fields["tie_word_embeddings"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_there_and_back(family: str, tmp_path: Path) -> None:
    original = tiny.config(family, rope_theta=20000.0)
    shape = read_shape(original)
    hf_config(shape, architectures=[FAMILIES[family].causal_lm]).save_pretrained(tmp_path)
    assert read_shape(tmp_path) == shape and shape.family == family
    assert type(hf_config(shape)) is type(original)
    rotary = family_of(shape).hf_class(FAMILIES[family].hf_name + "Model")(original).rotary_emb
    assert torch.equal(family_of(shape).rotary_frequencies(shape), rotary.inv_freq)


WITHOUT_WINDOW = {key: value for key, value in MISTRAL_7B_V03.items() if key != "sliding_window"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (MISTRAL_7B_V03 | {"sliding_window": 2048}, "set sliding_window to null and max_position_embeddings to 2048"),
        (WITHOUT_WINDOW, "sliding_window=4096 (4096 where config.json does not have the key)"),
        (QWEN25_05B | {"use_sliding_window": True}, "set use_sliding_window to false and max_position_embeddings to"),
        (QWEN3_06B | {"use_sliding_window": True, "sliding_window": 9}, "max_position_embeddings to 9 in config.json"),
        (QWEN3_06B | {"layer_types": ["sliding_attention"] * 28}, "layer_types holds sliding_attention"),
        (QWEN3_06B | {"attention_bias": True}, "attention_bias=true"),
        (QWEN3_06B | {"model_type": "qwen3_moe"}, ", ".join(FAMILIES) + "; mixtures of experts are not"),
        ({"model_type": "gemma2"}, "model_type='gemma2', which cannot be trained here"),
    ],
)
def test_what_is_not_supported_is_refused_with_a_sentence(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_shape(write(tmp_path, fields))
    assert said in str(error.value) and str(tmp_path) in str(error.value)


@dataclass(frozen=True)
class Examined:
    """What a rank found at one layout."""

    checks: list[Check]
    gradients: dict[str, Tensor]


def examine(rank: int, parallel: ParallelConfig, lm: Path, reward: Path) -> Examined:
    layout = runtime.initialize(parallel, "cpu")
    checks = [check for folder in (lm, reward) for check in check_checkpoint(folder, layout, length=19)]
    return Examined(checks, stage_gradients(layout, lm, "lm"))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(family: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A language model with a tokenizer, and a reward model."""
    folder = tmp_path_factory.mktemp(family)
    builtin_tokenizer().save_pretrained(folder / "lm")
    return tiny.save_lm(folder / "lm", family), tiny.save_reward(folder / "reward", family)


@pytest.fixture(scope="module")
def examined(folders: tuple[Path, Path]) -> dict[str, list[Examined]]:
    """Layout -> what each rank found."""
    found = {}
    for name in ("1", "TP2", "PP2", "TP2xPP2", "TP2+SP"):
        parallel, ranks = parallel_config(**LAYOUTS[name])
        found[name] = run_ranks(examine, ranks, parallel, *folders)
    return found


def test_logits_rewards_and_weights_agree_with_transformers(examined: dict[str, list[Examined]], family: str) -> None:
    for name, ranks in examined.items():
        for rank in ranks:
            assert len(rank.checks) == 9 and all(check.passed for check in rank.checks), (name, rank.checks)
    written = [check.found for check in examined["1"][0].checks]
    assert {FAMILIES[family].causal_lm, FAMILIES[family].sequence_classifier} <= set(written)


def test_gradients_are_those_of_transformers_in_every_layout(
    examined: dict[str, list[Examined]], folders: tuple[Path, Path]
) -> None:
    expected = transformers_gradients(folders[0])
    for name, ranks in examined.items():
        seen = set()
        for rank in ranks:
            errors = gradient_errors(rank.gradients, expected)
            assert max(errors.values()) <= 1e-5, (name, errors)
            seen |= set(errors)
        assert seen - {"lm_head copy"} == set(expected) - {OUTPUT}, name


def sft_config(folder: Path, policy: Path) -> Config:
    return load_config(
        None,
        [],
        {
            "run": {"dir": str(folder), "name": "run", "iterations": 2},
            "device": "cpu",
            "model": {"policy": str(policy)},
            "data": {"demonstrations": ["builtin"], "prompt_length": 8, "sequence_length": 24, "max_rows": 32},
            "parallel": {"tensor": 2},
            "policy": {"lr": 1e-2},
            "train": {"batch_size": 8},
        },
    )


def train_and_export(rank: int, folder: Path, policy: Path) -> list[Check]:
    tiny.let_this_rank_write()
    sft.train(sft_config(folder, policy))
    layout = runtime.initialize(ParallelConfig(tensor=2), "cpu")
    to_hf(str(folder / "run"), folder / "exported", layout)
    return check_checkpoint(folder / "exported", layout, length=19)


def test_a_trained_model_keeps_its_family(folders: tuple[Path, Path], family: str, tmp_path: Path) -> None:
    for check in run_ranks(train_and_export, 2, tmp_path, folders[0])[0]:
        assert check.passed, check
    step = tmp_path / "run" / "checkpoints" / "step_00000002"
    for path in (step / "model" / "config.json", tmp_path / "exported" / "config.json"):
        fields = json.loads(path.read_text())
        assert (fields["model_type"], fields["architectures"]) == (family, [FAMILIES[family].causal_lm])
    before, after = (load_file(path / "model.safetensors") for path in (folders[0], tmp_path / "exported"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items()), "everything is trained"
