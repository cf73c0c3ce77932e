"""Checkpoints: written whole or not at all, verified before anything is read, loadable in any layout.

    checkpoints/step_00000120/
        shards/          models and optimizers, Megatron dist_checkpointing (torch_dist): global tensors, any layout
        <role>/          config.json and tokenizer of each model, so that a checkpoint can stand for a model
        state.json       step and everything small that the next iteration depends on
        MANIFEST.json    size and SHA-256 of every file, written last

A checkpoint appears by renaming a temporary folder, so a visible one is complete; "latest" is the highest step whose
manifest verifies, and no pointer file is trusted. The manifest is verified before anything is unpickled
(torch_dist's `.metadata` is a pickle).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint import CheckpointException

from gipo_mc.errors import CheckpointError, StorageError
from gipo_mc.parallel import sharded_files
from gipo_mc.parallel.collectives import on_main

FORMAT = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
SHARDS = "shards"
_PREFIX = "step_"


def save(
    folder: Path, step: int, sharded: dict[str, Any], state: dict[str, Any], keep: int, extras: Callable[[Path], None]
) -> Path:
    """Write checkpoint `step` under `folder` on all ranks; returns its path.

    sharded: Megatron sharded state of every engine. state: JSON-able. extras: called on rank 0 with the folder to add
    files (model configuration, tokenizer). Older checkpoints beyond `keep` are removed afterwards.
    Raises StorageError on every rank, leaving earlier checkpoints untouched.
    """
    final = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f".tmp-{step:08d}"

    def prepare() -> None:
        def work() -> None:
            for stale in folder.glob(".tmp-*"):  # of a save that was cut off
                shutil.rmtree(stale, ignore_errors=True)
            (temporary / SHARDS).mkdir(parents=True)

        _guard(temporary, work)

    def publish() -> None:
        def work() -> None:
            extras(temporary)
            (temporary / STATE).write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
            files = {name: _describe(temporary / name) for name in _files(temporary)}
            manifest = temporary / MANIFEST
            with manifest.open("w") as stream:
                json.dump({"format": FORMAT, "step": step, "files": files}, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            _sync_folder(folder)
            for old in steps(folder)[:-keep]:
                shutil.rmtree(folder / f"{_PREFIX}{old:08d}")

        _guard(temporary, work)

    on_main(prepare)
    error = None
    try:
        sharded_files.write(sharded, temporary / SHARDS)
    except (OSError, RuntimeError, CheckpointException) as problem:
        # What a full disk raises depends on the writer: torch's CheckpointException around a RuntimeError, or either.
        error = " ".join(f"{type(problem).__name__}: {problem}".split())[-400:]
    _agree(error, temporary)
    on_main(publish)
    return final


def latest(folder: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint that verifies or None, why newer ones were passed over). Called on one rank."""
    reasons: list[str] = []
    for step in reversed(steps(folder)):
        path = folder / f"{_PREFIX}{step:08d}"
        try:
            verify(path)
            return path, reasons
        except CheckpointError as error:
            reasons.append(str(error))
    return None, reasons


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending, verified or not."""
    names = [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*")] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest. Raises CheckpointError naming the first that differs."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files: dict[str, dict[str, Any]] = dict(manifest["files"])
        stated = (manifest["format"], manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has no readable {MANIFEST} ({error}): it is incomplete.") from error
    if STATE not in files:
        raise CheckpointError(f"{path / MANIFEST} does not name {STATE}: the checkpoint is damaged.")
    for name, expected in files.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{path / MANIFEST} names {name!r}, which is outside the checkpoint.")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: the checkpoint is damaged.")
        if _describe(file) != expected:
            raise CheckpointError(f"{file} does not match its SHA-256 in {MANIFEST}: the checkpoint is damaged.")
    state = json.loads((path / STATE).read_text())
    if stated != (state["format"], state["step"]):
        raise CheckpointError(f"{path / MANIFEST} does not agree with {STATE}: the checkpoint is damaged.")


def load_state(path: Path) -> dict[str, Any]:
    """state.json of a verified checkpoint. Raises CheckpointError for another format version."""
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {state.get('format')}, this version reads {FORMAT}.")
    return state


def load_shards(path: Path, sharded: dict[str, Any]) -> dict[str, Any]:
    """Fill Megatron sharded state from a verified checkpoint; every rank calls it. Raises CheckpointError."""
    try:
        # Megatron loads optimizer scalars with torch.load; the manifest has vouched for the file.
        return sharded_files.read(sharded, path / SHARDS)
    except (dist_checkpointing.core.CheckpointingException, KeyError, ValueError, RuntimeError) as error:
        reason = str(error)
        cause: BaseException = error
    except CheckpointException as error:  # derives from BaseException
        # Its own text is the traceback of every rank.
        reason = str(next(iter(error.failures.values()))[0])
        cause = error
    if len(reason) > 300:
        reason = f"{reason[:300]} ..."
    raise CheckpointError(
        f"{path} cannot be loaded into this configuration: {reason}. It was made for another model or algorithm; "
        "use another run.name, or set run.resume=false."
    ) from cause


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _agree(error: str | None, temporary: Path) -> None:
    """All ranks learn of a failed write, so that none waits for the others."""
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    found = [f"rank {rank}: {message}" for rank, message in enumerate(errors) if message]
    if found:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"The checkpoint {temporary} could not be written ({'; '.join(found)}). Earlier ones are kept."
        )


def _guard(path: Path, work: Callable[[], Any]) -> None:
    try:
        work()
    except OSError as error:
        parent = next(p for p in path.parents if p.exists())
        free = shutil.disk_usage(parent).free
        shutil.rmtree(path, ignore_errors=True)
        raise StorageError(
            f"The checkpoint {path} could not be written: {error.strerror} ({free / 1e9:.2f} GB free). Earlier "
            "checkpoints are kept; free space, or choose another run.dir."
        ) from error
