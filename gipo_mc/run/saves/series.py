"""The saves of a run, one at a time: each begins when the one before stands, or has failed and ended the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gipo_mc.config import CheckpointConfig
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.saving.snapshot import HostCopies
from gipo_mc.run import checkpoint
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.saves.room import check_room, saves_left
from gipo_mc.run.saves.saving import Saving


class Saves:
    """Every rank calls its methods, at the same points of a run, but for `abandon`."""

    def __init__(
        self,
        folder: RunFolder,
        config: CheckpointConfig,
        saving: Callable[[], AbstractContextManager[None]],
        shown: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        """saving: around what training waits for, so that it does not count as grace time. shown: shows that it does;
        not while a process is forked, which would be left without the thread that speaks."""
        self._folder, self._config, self._saving, self._shown = folder, config, saving, shown
        self._copies = HostCopies() if config.asynchronous else None
        self._open: Saving | None = None

    def newest(self) -> tuple[Path | None, list[str]]:
        """Where the run continues from, as `checkpoint.find` says it."""
        with self._shown("looking for a checkpoint"):
            return checkpoint.find(self._folder, content=self._config.verify == "content")

    def check_room(self, engines: Iterable[Engine], start: int, iterations: int, warn: Callable[[str], object]) -> None:
        """Before the first iteration after `start`: warns where the disk has no room for all checkpoints that may lie
        there at once. Raises StorageError where it has none for one."""
        size, saves = sum(engine.saved_bytes() for engine in engines), saves_left(self._config, start, iterations)
        if warning := on_main(lambda: check_room(self._folder.checkpoints, size, saves, self._config.keep)):
            warn(warning)

    def save(self, step: int, sharded: dict[str, Any], state: dict[str, Any], extras: Callable[[Path], None]) -> None:
        """Save as `checkpoint.save` does. With checkpoint.async the files are written while training goes on, and it is
        a checkpoint after one of the next calls. Raises StorageError, of the save before, too."""
        self.finish()
        with self._saving():
            on_main(self._folder.still_ours)
            self._open = checkpoint.begin(self._folder.checkpoints, step, sharded, state, extras, self._copies)
        if self._copies is None:
            self.finish()

    def look(self) -> None:
        """Make a checkpoint of a save whose files are there by now. Raises StorageError where they cannot be."""
        if self._open and self._open.written():
            self.finish()

    def finish(self) -> None:
        """Wait until the save that is open stands. Raises StorageError."""
        open_one = self._open
        if open_one is None:
            return
        with self._saving(), self._shown("saving"):
            on_main(self._folder.still_ours)
            self._open = None
            try:
                open_one.finish()
            except BaseException:  # a rank that was lost meanwhile, too, or Ctrl-C: its writer is not to go on
                open_one.abandon()
                raise
            checkpoint.prune(
                self._folder.checkpoints,
                self._config.keep,
                content=self._config.verify == "content",
                wait=self._copies is None,
            )
            on_main(lambda: checkpoint.note(self._folder, open_one.step))

    def abandon(self) -> None:
        """At an end without agreement of the ranks: what is open is dropped, and the checkpoint before stands."""
        if self._open:
            self._open.abandon()
            self._open = None
