"""The index of sharded files is read as data: what torch reads, and nothing that a pickle says."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from gipo_mc.errors import CheckpointError
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.shard_index import read_index
from tests.models import tiny
from tests.ranks import parallel_config, run_ranks


def _write(rank: int, folder: Path) -> None:
    layout = runtime.initialize(parallel_config(tensor=2)[0], "cpu")
    shape = read_shape(tiny.config(num_hidden_layers=2))
    model = build_model(shape, layout, head="lm", dtype=torch.bfloat16, trainable=True, seed=1)
    if rank == 0:
        folder.mkdir()
    dist.barrier()
    sharded_files.write(model.sharded_state_dict(prefix="m."), folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "shards"
    run_ranks(_write, 2, folder)
    return folder


class Trap:
    """A pickle of this makes a file when it is read as pickles are."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def test_the_index_is_what_torch_reads(shards: Path) -> None:
    expected = FileSystemReader(shards).read_metadata()
    tensors = {k: v for k, v in expected.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
    found = read_index(shards)
    assert found.state_dict_metadata == tensors and len(tensors) > 5
    assert found.storage_data == {k: v for k, v in expected.storage_data.items() if k.fqn in tensors}
    assert {v.relative_path[:4] for v in found.storage_data.values()} == {"__0_", "__1_"}
    assert set(sharded_files.dtypes(shards).values()) == {torch.bfloat16}


def test_a_pickle_that_would_run_does_not(tmp_path: Path) -> None:
    index, marker = tmp_path / ".metadata", tmp_path / "marker"
    for trap in (Trap(marker), {"a": [Trap(marker)]}, Metadata({}, planner_data=Trap(marker), storage_data={})):
        index.write_bytes(pickle.dumps(trap))
        with pytest.raises(CheckpointError, match=r"\.metadata names (io|_io|builtins)\.open, which is no part"):
            read_index(tmp_path)
        assert not marker.exists()
    FileSystemReader(tmp_path).read_metadata()
    assert marker.exists(), "the trap is one: torch's own reader runs it"


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("torch", "load"), ("torch.hub", "load"), ("torchx", "a")]
)
def test_names_that_are_no_part_of_an_index_are_refused(tmp_path: Path, module: str, name: str) -> None:
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{name}\n(S'true'\ntR.".encode())
    with pytest.raises(CheckpointError, match=rf"names {module}\.{name}"):
        read_index(tmp_path)


def test_a_name_of_torch_is_a_record_that_does_nothing(tmp_path: Path) -> None:
    """`BUILD` could set attributes of a class that others use."""
    before = dict(vars(TensorStorageMetadata))
    code = b"ctorch.distributed.checkpoint.metadata\nTensorStorageMetadata\n(N(S'size'\nI1\ndtb."
    (tmp_path / ".metadata").write_bytes(code)
    with pytest.raises(CheckpointError, match="is no index of sharded files"):
        read_index(tmp_path)
    assert dict(vars(TensorStorageMetadata)) == before


@pytest.mark.parametrize("file", ["../secret", "/etc/hostname", "inner/../../x", "..", ""])
def test_a_chunk_cannot_lie_outside(shards: Path, tmp_path: Path, file: str) -> None:
    index = FileSystemReader(shards).read_metadata()
    next(iter(v for k, v in index.storage_data.items() if "weight" in k.fqn)).relative_path = file
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_index(tmp_path)


def test_a_damaged_index_is_a_sentence(shards: Path, tmp_path: Path) -> None:
    whole = (shards / ".metadata").read_bytes()
    for data in (b"", b"\x80", whole[:100], whole[:-1], pickle.dumps([1]), pickle.dumps(None), b"]" * 10_000):
        (tmp_path / ".metadata").write_bytes(data)
        with pytest.raises(CheckpointError, match="is no index of sharded files"):
            read_index(tmp_path)
    with pytest.raises(CheckpointError, match="is no index"):
        read_index(tmp_path / "nowhere")


def test_what_the_index_calls_an_object_is_not_read() -> None:
    """Behind `read_index`, which leaves such entries out: torch would unpickle them."""
    item: Any = SimpleNamespace(storage_index=SimpleNamespace(fqn="x"))
    with pytest.raises(CheckpointingException, match="x is an object in the checkpoint, not a tensor"):
        sharded_files._Planner().load_bytes(item, None)
