"""One save: a temporary folder, each rank's files, the index, the manifest, and the name that makes it a checkpoint."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from gipo_mc.config import hide
from gipo_mc.errors import StorageError
from gipo_mc.parallel import sharded_files
from gipo_mc.parallel.collectives import any_rank, on_main
from gipo_mc.parallel.disk import sync, write_synced
from gipo_mc.parallel.megatron.versions import INSTALLED
from gipo_mc.parallel.saving.background import Background
from gipo_mc.parallel.saving.files import Written, write_chunks
from gipo_mc.parallel.saving.plan import Plan, plan
from gipo_mc.parallel.saving.snapshot import HostCopies
from gipo_mc.parallel.sharded_files import WriteFailed, on_main_or_fail
from gipo_mc.run import manifest
from gipo_mc.run.saves.places import SHARDS, TEMPORARY, place_of, standing
from gipo_mc.run.saves.removal import remove


class Writer(Protocol):
    """Writes this rank's files."""

    def done(self) -> bool:
        """Has it ended, well or not?"""
        ...

    def result(self) -> Any:
        """What it wrote, once it has ended; raises what went wrong."""
        ...

    def kill(self) -> None:
        """Let it end now."""
        ...


class Saving:
    """A save whose files are being written. Made by `begin`; every rank calls `finish`, or `abandon`."""

    def __init__(self, step: int, final: Path, temporary: Path, whole: Plan, writer: Writer) -> None:
        self.step, self.final, self._temporary, self._whole, self._writer = step, final, temporary, whole, writer

    def written(self) -> bool:
        """Have all ranks ended their writing, well or not? Every rank calls it."""
        return not any_rank(not self._writer.done())

    def finish(self) -> Path:
        """Wait for the files and make the checkpoint of them; returns its path. Every rank calls it.

        Raises StorageError on every rank, leaving earlier checkpoints untouched and nothing of this one.
        """
        with _given_up(self.final, self._temporary, self._whole.needed):
            files = sharded_files.gathered(lambda: [Written(*one) for one in self._writer.result()])
            on_main_or_fail(lambda: self._publish(files))
        return self.final

    def abandon(self) -> None:
        """Write no more of it; earlier checkpoints stand. The folder goes before the next save."""
        self._writer.kill()

    def _publish(self, files: list[Written]) -> None:
        sharded_files.write_index(self._temporary / SHARDS, self._whole.chunks, files)
        written = {f"{SHARDS}/{one.name}": manifest.Entry(one.size, manifest.WRITTEN, one.sums) for one in files}
        manifest.write(self._temporary, self.step, manifest.describe(self._temporary, written))
        for inner in [path for path in self._temporary.rglob("*") if path.is_dir()]:
            sync(inner)
        sync(self._temporary)
        if self.final.exists():  # one that was passed over because it is damaged
            remove(self.final)
        self._temporary.rename(self.final)
        sync(self.final.parent)
        sync(self.final.parent.parent)
        manifest.remember(self.final)


def begin(
    folder: Path,
    step: int,
    sharded: dict[str, Any],
    state: dict[str, Any],
    extras: Callable[[Path], None],
    background: HostCopies | None = None,
) -> Saving:
    """Begin checkpoint `step` under `folder`; every rank calls it.

    background: the files are written while this goes on, from the state as it is now; memory for what cannot be written
    where it lies. None: they are written by `finish`. Raises StorageError on every rank.
    """
    final = place_of(folder, step)
    # A name of its own: a process that was killed may not be quite gone.
    nonce: str = on_main(lambda: secrets.token_hex(4))
    temporary = folder / f"{TEMPORARY}{step:08d}-{nonce}"
    whole = plan(sharded)
    head = {"format": manifest.FORMAT, "step": step, manifest.WRITER: INSTALLED}
    content = hide(json.dumps({**head, **state}, indent=1)).encode()

    def prepare() -> None:
        _prepare(final, temporary, whole.needed)
        extras(temporary)
        write_synced(temporary / manifest.STATE, content)
        sharded_files.write_common(whole.common, temporary / SHARDS)

    with _given_up(final, temporary, whole.needed):
        on_main_or_fail(prepare)
    rank, shards = dist.get_rank(), temporary / SHARDS
    if background is None:
        return Saving(step, final, temporary, whole, _Now(lambda: write_chunks(whole.own, shards, rank)))
    own = background.of(whole.own)
    return Saving(step, final, temporary, whole, _forked(lambda: write_chunks(own, shards, rank)))


def _forked(work: Callable[[], list[Written]]) -> Writer:
    try:
        return Background(work)
    except OSError as error:  # one rank alone: all are told when they ask for the result
        reason = OSError(error.errno, f"{error.strerror}, for a process that writes in the background")

        def fails() -> list[Written]:
            raise reason

        return _Now(fails)


class _Now:
    """A writer that works while its result is waited for."""

    def __init__(self, work: Callable[[], list[Written]]) -> None:
        self.result = work

    def done(self) -> bool:
        return True

    def kill(self) -> None:
        """Nothing of it goes on."""


def _prepare(final: Path, temporary: Path, needed: int) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for stale in temporary.parent.glob(f"{TEMPORARY}*"):  # of a save or a removal that was cut off
        shutil.rmtree(stale, ignore_errors=True)
    disk = shutil.disk_usage(temporary.parent)
    if disk.total and disk.free < needed:
        raise StorageError(
            f"The checkpoint {final} needs {needed:,} bytes or a little more, and {disk.free:,} are free on its disk: "
            "nothing was written. Earlier checkpoints are kept; free space, or choose another run.dir."
        )
    (temporary / SHARDS).mkdir(parents=True)


@contextmanager
def _given_up(final: Path, temporary: Path, needed: int) -> Iterator[None]:
    """Where a rank cannot write, every rank gives the save up. Raises StorageError."""
    try:
        yield
    except WriteFailed as error:
        reason = str(error)
        on_main(lambda: _give_up(final, temporary, needed, reason))


def _give_up(final: Path, temporary: Path, needed: int, reason: str) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    free = shutil.disk_usage(standing(final)).free
    raise StorageError(
        f"The checkpoint {final} could not be written ({reason}). It needs {needed:,} bytes or a little more, and "
        f"{free:,} are free on its disk. Earlier checkpoints are kept; free space, or choose another run.dir."
    )
