"""Checkpoints: written whole or not at all, verified before anything is read, loadable in any layout.

    checkpoints/step_00000120/
        shards/          models and optimizers, Megatron dist_checkpointing (torch_dist): global tensors, any layout
        <role>/          config.json and tokenizer of each model, so that a checkpoint can stand for a model
        state.json       step and everything small that the next iteration depends on
        MANIFEST.json    size and sums of every file, written last

A checkpoint appears by renaming a temporary folder whose files and folders are all on the disk, so a visible one is
complete; "latest" is the highest step whose manifest verifies, and no pointer file is trusted. Nothing is read before
the manifest has vouched for it, and what is read then can only become tensors and plain values
(`gipo_mc.parallel.sharded_files`): whoever made a checkpoint makes its manifest, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from torch.distributed.checkpoint import CheckpointException

from gipo_mc.config import saved_values
from gipo_mc.errors import CheckpointError, ConfigError
from gipo_mc.parallel import sharded_files
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.megatron.versions import INSTALLED, reads
from gipo_mc.parallel.runtime import lost_peer
from gipo_mc.run import manifest
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.jsonl import read_jsonl, write_atomically
from gipo_mc.run.manifest import FORMAT, STATE, verify
from gipo_mc.run.saves.places import SHARDS, place_of, steps
from gipo_mc.run.saves.removal import prune
from gipo_mc.run.saves.saving import begin

__all__ = ["SHARDS", "begin", "find", "latest", "load_shards", "load_state", "note", "prune", "save", "steps", "verify"]


def save(
    folder: Path, step: int, sharded: dict[str, Any], state: dict[str, Any], keep: int, extras: Callable[[Path], None]
) -> Path:
    """Write checkpoint `step` under `folder` on all ranks; returns its path.

    sharded: Megatron sharded state of every engine. state: JSON-able. extras: called on rank 0 with the folder to add
    files (model configuration, tokenizer). Afterwards older checkpoints are removed, see `prune`.
    Raises StorageError on every rank, leaving earlier checkpoints untouched.
    """
    saving = begin(folder, step, sharded, state, extras)
    final = saving.finish()
    prune(folder, keep)
    return final


def latest(
    folder: Path, *, together: bool = False, content: bool = True, keep: bool = False
) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint that verifies or None, why newer ones were passed over).

    Called on one rank; together: on every rank, which share the reading and get the same answer. content, keep: as of
    `verify`.
    """
    reasons: list[str] = []
    found: list[int] = on_main(lambda: steps(folder)) if together else steps(folder)
    for step in reversed(found):
        path = place_of(folder, step)
        try:
            verify(path, together=together, content=content, keep=keep)
            return path, reasons
        except CheckpointError as error:
            reasons.append(str(error))
    return None, reasons


def load_state(path: Path) -> dict[str, Any]:
    """state.json of a verified checkpoint. Raises CheckpointError for another format version, and where a later minor
    version of Megatron-core wrote it."""
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {state.get('format')}, this version reads {FORMAT}.")
    writer = state.get(manifest.WRITER)
    if writer is not None and not reads(writer):
        raise CheckpointError(
            f"{path} was written with megatron-core {str(writer)[:40]}, and {INSTALLED} is installed, which is not "
            "promised to read what a later one writes. Go on with that version (those from 0.17 on need Python 3.12), "
            "or from a checkpoint of before it."
        )
    return state


def load_shards(path: Path, sharded: dict[str, Any]) -> dict[str, Any]:
    """Fill Megatron sharded state from a verified checkpoint; every rank calls it. Raises CheckpointError, and a
    collective's own error where a rank is lost."""
    try:
        return sharded_files.read(sharded, path / SHARDS)
    except (dist_checkpointing.core.CheckpointingException, KeyError, ValueError, RuntimeError) as error:
        cause: BaseException = error
    except CheckpointException as error:  # derives from BaseException, and its own text is the traceback of every rank
        cause = next(iter(error.failures.values()))[0]
    if isinstance(cause, CheckpointError) or (isinstance(cause, RuntimeError) and lost_peer(cause)):
        raise cause  # the loss of a rank says nothing about the checkpoint
    reason = str(cause) if len(str(cause)) <= 300 else f"{str(cause)[:300]} ..."
    raise CheckpointError(
        f"{path} cannot be loaded into this configuration: {reason}. It was made for another model or algorithm; "
        "use another run.name, or set run.resume=false."
    ) from cause


def note(folder: RunFolder, step: int) -> None:
    """Remember beside the checkpoints that there is one. Nothing is ever read from where this points: it only tells
    `find` that there was something to continue from. Called on one rank."""
    write_atomically(folder.saved, json.dumps({"step": step}) + "\n")


def find(folder: RunFolder, *, content: bool = True) -> tuple[Path | None, list[str]]:
    """(where a run continues from or None for a new one, why newer checkpoints were passed over). Every rank calls it.
    content: as of `verify`.

    Raises CheckpointError where none of its checkpoints is usable, or where there were some and are none: a start from
    0 would erase what the run has logged.
    """
    newest, reasons = latest(folder.checkpoints, together=True, content=content, keep=True)
    if newest is None and reasons:
        raise CheckpointError(
            "No checkpoint of this run can be used:\n"
            + "\n".join(f"  - {reason}" for reason in reasons)
            + "\nPut intact copies back, or begin again with run.resume=false (moves this run aside) or a new run.name."
        )
    if newest is None and (evidence := on_main(lambda: _had_checkpoints(folder))):
        raise CheckpointError(
            f"{folder.checkpoints} holds no checkpoint, and there was one: {evidence}. A start from 0 would erase what "
            "the run has logged. Put the checkpoints back, or begin again with run.resume=false (moves this run aside) "
            "or a new run.name."
        )
    return newest, reasons


def _had_checkpoints(folder: RunFolder) -> str:
    """How it is known that the run had finished a checkpoint; empty: it is not."""
    if folder.saved.exists():
        try:
            return f"that of step {int(json.loads(folder.saved.read_text())['step'])} was written"
        except (OSError, ValueError, KeyError, TypeError):
            return f"{folder.saved} says so"
    # A run of before that file was kept.
    rows = read_jsonl(folder.metrics).rows if folder.metrics.exists() else []
    try:
        saved = saved_values(folder.config)
    except ConfigError:
        return ""
    if saved.get("checkpoint.async") is True:
        return ""  # it trains on while its first checkpoint is being written
    every = saved.get("checkpoint.every")
    last = int(rows[-1]["step"]) if rows else 0
    if isinstance(every, int) and 0 < every < last:
        return f"{folder.metrics} goes to step {last}, and checkpoint.every was {every}"
    return ""
