"""Reading a checkpoint: only the slices that a rank owns, and one clear error for everything that does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gipo_mc.config import ParallelConfig
from gipo_mc.errors import CheckpointError, ConfigError, StorageError
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.weights import hf_export
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import INDEX, SafetensorsFolder, load_hf_weights
from gipo_mc.models.weights.mapping import Rank
from gipo_mc.models.weights.table import load_parameters
from gipo_mc.parallel import runtime
from tests.models.tiny import VARIANTS, save_lm, save_reward
from tests.ranks import parallel_config, run_ranks


def load(rank: int, folder: Path, head: Any, trainable: bool) -> dict[str, Tensor]:
    layout = runtime.initialize(ParallelConfig(), "cpu")
    shape = read_shape(folder)
    model = build_model(shape, layout, head=head, groups=2, dtype=torch.float32, trainable=trainable, seed=3)
    load_hf_weights(model, folder)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def failure(rank: int, folder: Path, head: Any, trainable: bool) -> str:
    with pytest.raises(CheckpointError) as error:
        load(rank, folder, head, trainable)
    return str(error.value)


def error_of(folder: Path, head: str = "lm", trainable: bool = True) -> str:
    return str(run_ranks(failure, 1, folder, head, trainable)[0])


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_unexpected_and_misshaped_tensors_are_named_together(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.2.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
        tensors["model.embed_tokens.weight"] = torch.zeros(130, 32)

    save_lm(tmp_path)
    rewrite(tmp_path, change)
    message = error_of(tmp_path)
    assert "missing: model.layers.2.mlp.up_proj.weight [48, 32]" in message
    assert "unexpected: model.layers.0.self_attn.q_proj.bias [32]" in message
    assert (
        "model.embed_tokens.weight is [130, 32], but the vocabulary of config.json (vocab_size) makes it [131, 32]"
        in message
    )
    assert str(tmp_path) in message


def test_rotary_constants_of_old_checkpoints_are_not_weights(tmp_path: Path) -> None:
    save_lm(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    assert run_ranks(load, 1, tmp_path, "lm", False)


def test_pickles_and_empty_folders_are_refused(tmp_path: Path) -> None:
    save_lm(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "safe_serialization=True" in error_of(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert "the weights are missing" in error_of(tmp_path)
    with pytest.raises(CheckpointError, match="There is no folder"):
        SafetensorsFolder(tmp_path / "nowhere")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "pretrained_model."])
def test_names_of_a_wrapped_model_are_refused_by_their_prefix(prefix: str, tmp_path: Path) -> None:
    save_lm(tmp_path)

    def wrap(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    rewrite(tmp_path, wrap)
    message = error_of(tmp_path)
    assert f"begin with {prefix!r}" in message and "transformers does not look for" in message
    assert ("merge_and_unload" in message) == (prefix == "base_model.model.")


@pytest.mark.parametrize("part", ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "base_layer."])
def test_names_with_a_wrapper_inside_are_refused_by_it(part: str, tmp_path: Path) -> None:
    save_lm(tmp_path)

    def wrap(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.1.")]:
            tensors[name.replace(".1.", f".1.{part}")] = tensors.pop(name)

    rewrite(tmp_path, wrap)
    message = error_of(tmp_path)
    assert f"hold '.{part}'" in message and "layers.1" in message and "missing" not in message


def test_a_trunk_without_its_head_is_named(tmp_path: Path) -> None:
    save_lm(tmp_path)

    def strip(tensors: dict[str, Tensor]) -> None:
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(tmp_path, strip)
    assert "lack 'model.' (embed_tokens.weight): this is the trunk alone" in error_of(tmp_path)


def test_doubles_are_not_called_codes(tmp_path: Path) -> None:
    save_lm(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: t.double() for name, t in tensors.items()}))
    message = error_of(tmp_path)
    assert "stores F64" in message and "codes" not in message and "F32, BF16 or F16" in message


def test_adapters_are_refused_alone_and_beside_a_model(tmp_path: Path) -> None:
    save_lm(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "beside a model" in error_of(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert "no weights of a model. Merge it" in error_of(tmp_path)


@pytest.mark.parametrize(
    "dtype, name", [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int64, "I64")]
)
def test_codes_are_not_trained_as_if_they_were_weights(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].to(dtype)

    save_lm(tmp_path)
    rewrite(tmp_path, change)
    assert f"stores {name} (1 tensors, model.layers.1.mlp.down_proj.weight first)" in error_of(tmp_path)


def test_a_projection_beside_tied_embeddings_has_to_be_the_embedding(tmp_path: Path) -> None:
    save_lm(tmp_path, **VARIANTS["tied"])
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    assert run_ranks(load, 1, tmp_path, "lm", True)
    other = embedding.clone()
    other[-1, -1] += 1
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": other}))
    message = error_of(tmp_path)
    assert "its lm_head.weight is not its model.embed_tokens.weight" in message and "tie_word_embeddings" in message
    assert run_ranks(load, 1, tmp_path, "reward", True), "which has no projection"


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "a.bin", 7]
)
def test_an_index_cannot_lead_out_of_its_folder(name: Any, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    save_lm(inside)
    (inside / "model.safetensors").rename(tmp_path / "model.safetensors")
    (inside / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CheckpointError, match="of the same folder"):
        SafetensorsFolder(inside)


@pytest.mark.parametrize("listed", [True, False], ids=["in another file", "nowhere"])
def test_a_tensor_that_the_index_does_not_place_in_its_file_is_refused(listed: bool, tmp_path: Path) -> None:
    """transformers reads all of a file: the last one with a name decides, whatever the index says."""
    save_lm(tmp_path, shard="20KB")
    index = json.loads((tmp_path / INDEX).read_text())
    own = index["weight_map"]["model.norm.weight"]
    file = next(name for name in sorted(index["weight_map"].values()) if name != own)
    save_file(load_file(tmp_path / file) | {"model.norm.weight": torch.full((32,), 9.0)}, tmp_path / file)
    if not listed:
        del index["weight_map"]["model.norm.weight"]
        (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=rf"{file} holds model\.norm\.weight, which .* places in {own if listed else 'no file'}"
    ):
        SafetensorsFolder(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    save_lm(tmp_path, shard="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert f"{shard} is not a readable safetensors file" in error_of(tmp_path)
    shard.unlink()
    assert f"{shard} is missing" in error_of(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": [1]}')
    assert "weight_map must map" in error_of(tmp_path)
    (tmp_path / INDEX).write_text("{")
    assert "not a valid index" in error_of(tmp_path)


def test_a_language_model_is_no_reward_model_unless_it_is_going_to_be_trained(tmp_path: Path) -> None:
    save_lm(tmp_path)
    message = error_of(tmp_path, "reward", trainable=False)
    assert "missing: score.weight [1, 32]" in message and "gipo-mc train reward" in message
    fresh = run_ranks(load, 1, tmp_path, "reward", True)[0]
    assert not fresh["reward_head.weight"].any(), "a loss of ln 2 a pair to begin with"
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(fresh["decoder.final_layernorm.weight"], stored["model.norm.weight"])


def test_a_critic_starts_from_the_reward_head(tmp_path: Path) -> None:
    save_reward(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    critic = run_ranks(load, 1, tmp_path, "critic", True)[0]
    assert torch.equal(critic["value_head.weight"], stored["score.weight"])
    assert critic["group_head.output.weight"].shape == (2, 32)


def test_a_reward_model_cannot_generate_and_has_one_label(tmp_path: Path) -> None:
    save_reward(tmp_path / "one")
    assert "not a language model" in error_of(tmp_path / "one", "lm")
    save_reward(tmp_path / "two", labels=2)
    assert "num_labels=1" in error_of(tmp_path / "two", "reward")


class Recorder:
    """A source that notes what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.inner = SafetensorsFolder(folder)
        self.read_elements = dict.fromkeys(self.inner.shapes, 0)

    def read(self, name: str, rows: slice, columns: slice = slice(None)) -> Tensor:
        tensor = self.inner.read(name, rows, columns)
        self.read_elements[name] += tensor.numel()
        return tensor


def record(rank: int, parallel: ParallelConfig, folder: Path) -> dict[str, int]:
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(folder)
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=True, initialize=False)
    source = Recorder(folder)
    load_parameters(model, source)
    return source.read_elements


def test_a_rank_reads_its_own_slices_and_nothing_else(tmp_path: Path) -> None:
    save_lm(tmp_path, shard="20KB", **VARIANTS["llama3"])
    sizes = {name: torch.Size(dims).numel() for name, dims in SafetensorsFolder(tmp_path).shapes.items()}
    parallel, ranks = parallel_config(tensor=2, pipeline=2)
    read = run_ranks(record, ranks, parallel, tmp_path)  # rank = 2 * stage + tensor rank
    for name, size in sizes.items():
        by_stage = [read[0][name] + read[1][name], read[2][name] + read[3][name]]
        copies = 2 if "norm" in name else 1  # norms are the same on both tensor ranks
        assert sorted(by_stage) == [0, copies * size], name


def test_shares_are_contiguous_and_complete() -> None:
    assert [Rank(index, 4).share(12) for index in range(4)] == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)]


def export_to(rank: int, folder: Path, target: Path, head: Any, full_disk: bool) -> str:
    layout = runtime.initialize(ParallelConfig(pipeline=2), "cpu")
    model = build_model(read_shape(folder), layout, head=head, groups=2, dtype=torch.float32, trainable=False)
    if full_disk and rank == 1:

        def no_space(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        hf_export.save_file = no_space  # type: ignore[assignment]
    with pytest.raises((StorageError, ConfigError)) as error:
        export_hf_weights(model, target)
    return str(error.value)


def test_a_full_disk_on_one_rank_is_said_by_all(tmp_path: Path) -> None:
    save_lm(tmp_path / "in")
    messages = run_ranks(export_to, 2, tmp_path / "in", tmp_path / "out", "lm", True)
    assert messages[0] == messages[1] and "No space left" in messages[0] and "bytes needed" in messages[0]
    assert not list((tmp_path / "out").glob(".tmp-*")) and not (tmp_path / "out" / "config.json").exists()


def test_an_impossible_folder_and_a_critic_are_refused(tmp_path: Path) -> None:
    save_lm(tmp_path / "in")
    (tmp_path / "file").write_text("")
    assert "cannot be created" in run_ranks(export_to, 2, tmp_path / "in", tmp_path / "file" / "out", "lm", False)[0]
    assert "group head" in run_ranks(export_to, 2, tmp_path / "in", tmp_path / "out", "critic", False)[0]
