"""The index of sharded files (torch_dist's `.metadata`), read as data.

torch and Megatron store the index as a pickle and read it with `pickle.load`, which runs whatever a file says. Here the
names that a pickle gives resolve to inert records of what was passed to them, so that reading builds records, plain
values, sizes and dtypes only; what loading needs of them is then checked and put into torch's own classes. A file may
lie anywhere in the index's own folder and nowhere else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.disk import write_synced
from gipo_mc.parallel.saving.files import Written
from gipo_mc.parallel.saving.plan import Chunk

FILE = ".metadata"
#: Modules whose names an index gives: torch's classes of the index, and of the plans that Megatron stores with it.
_NAMED = ("torch.distributed.checkpoint", "megatron.core.dist_checkpointing", "torch.serialization", "pathlib")


def write_index(folder: Path, chunks: Iterable[Chunk], files: Iterable[Written]) -> None:
    """Write the index of all ranks' files: what torch and Megatron write, without what changes from save to save.
    chunks: in order, each once. Raises OSError."""
    tensors: dict[str, Any] = {}
    # The same objects for the same names: a pickle stores an object that it knows already by its number.
    indexes: dict[tuple[str, tuple[int, ...]], MetadataIndex] = {}
    for chunk in chunks:
        if chunk.dtype is None:
            tensors[chunk.key] = BytesStorageMetadata()
            indexes[chunk.key, chunk.offset] = MetadataIndex(chunk.key)
            continue
        entry = tensors.setdefault(
            chunk.key, TensorStorageMetadata(TensorProperties(dtype=chunk.dtype), torch.Size(chunk.shape), [])
        )
        offset = torch.Size(chunk.offset)
        indexes[chunk.key, chunk.offset] = MetadataIndex(chunk.key, offset, len(entry.chunks))
        entry.chunks.append(ChunkStorageMetadata(offset, torch.Size(chunk.sizes)))
    places = {
        indexes[key, tuple(offset)]: _StorageInfo(file.name, begin, length)
        for file in files
        for key, offset, begin, length in file.places
    }
    write_synced(folder / FILE, pickle.dumps(Metadata(tensors, storage_data=places)))


def read_index(folder: Path) -> Metadata:
    """The index of `folder`: sizes, dtypes and chunks of tensors, and the place of each chunk in a file.

    Entries that are no tensors are left out. Raises CheckpointError where the file names anything that is none of an
    index, or is no index; nothing of it has run then.
    """
    path = folder / FILE
    try:
        with path.open("rb") as stream:
            record = _IndexReader(stream).load()
        return _metadata(record)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except Exception as error:  # a pickle can raise anything
        raise CheckpointError(
            f"{path} is no index of sharded files ({type(error).__name__}: {error}): the checkpoint is damaged."
        ) from error


class _Record:
    """Stands for an object of the index: what it was made from. `state` is its attributes, where it has any."""

    def __new__(cls, *arguments: Any) -> _Record:
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _IndexReader(pickle.Unpickler):
    """`pickle.Unpickler` for which every name is a record, a size or a dtype."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name == "Size":
            return tuple
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if any(module == known or module.startswith(f"{known}.") for known in _NAMED):
            return type(name, (_Record,), {})  # a new class each time: what a pickle sets on it reaches nobody else
        raise CheckpointError(
            f"names {module}.{name}, which is no part of an index of sharded files: somebody else wrote it, and it "
            "was not read. Use a checkpoint of this program."
        )


def _metadata(index: Any) -> Metadata:
    tensors = {
        _is(name, str): _tensor(entry)
        for name, entry in _is(_field(index, "Metadata", "state_dict_metadata"), dict).items()
        if type(entry).__name__ == "TensorStorageMetadata"
    }
    places: dict[MetadataIndex, _StorageInfo] = {}
    for key, info in _is(_field(index, "Metadata", "storage_data"), dict).items():
        name = _is(_field(key, "MetadataIndex", "fqn"), str)
        if name in tensors:
            offset = _sizes(_field(key, "MetadataIndex", "offset"))
            places[MetadataIndex(name, offset, key.state.get("index"))] = _place(info)
    return Metadata(tensors, storage_data=places)  # type: ignore[arg-type]


def _tensor(entry: Any) -> TensorStorageMetadata:
    dtype = _is(_is(entry.state["properties"].state, tuple)[0], torch.dtype)
    chunks = [
        ChunkStorageMetadata(
            _sizes(_field(chunk, "ChunkStorageMetadata", "offsets")),
            _sizes(_field(chunk, "ChunkStorageMetadata", "sizes")),
        )
        for chunk in _is(entry.state["chunks"], list)
    ]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _sizes(entry.state["size"]), chunks)


def _place(info: Any) -> _StorageInfo:
    file = _is(_field(info, "_StorageInfo", "relative_path"), str)
    offset, length = (_is(_field(info, "_StorageInfo", name), int) for name in ("offset", "length"))
    if Path(file).name != file or file in ("", "..") or offset < 0 or length < 0:
        raise CheckpointError(f"names {file!r}, which is outside its folder: the checkpoint is damaged.")
    if info.state.get("transform_descriptors"):
        raise CheckpointError("holds transformed files, which this program does not write.")
    return _StorageInfo(file, offset, length)


def _field(record: Any, kind: str, name: str) -> Any:
    if not isinstance(record, _Record) or type(record).__name__ != kind:
        raise ValueError(f"{kind} is expected, there is {type(record).__name__}")
    return record.state[name]


def _sizes(value: Any) -> torch.Size:
    return torch.Size([_is(size, int) for size in _is(value, tuple)])


def _is(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{kind.__name__} is expected, there is {type(value).__name__}")
    return value
