"""The run folder: where everything a run leaves behind lies, owned by one job at a time.

config.yaml (resolved), about.json (what ran, in words), metrics.jsonl, distributions.jsonl, samples.jsonl,
warnings.jsonl, reference_rewards.jsonl, tensorboard/, trackers/, checkpoints/, run_status.json, report.html.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from gipo_mc.errors import ConfigError, StorageError
from gipo_mc.run.jsonl import holder_of, lock_file, read_file, storage_errors, write_atomically
from gipo_mc.run.saves.places import of_run
from gipo_mc.run.terminal.voice import tell

State = Literal["running", "done", "failed", "requeue"]
#: Seconds without a sign of life after which a run that says "running" is not believed.
SILENCE = 300.0
#: Seconds that a rank waits while others of its job write their word on a refused start, which takes milliseconds.
_LINE_SECONDS = 2.0
#: What belongs to one run, and is set aside together when a folder is started anew.
_CONTENTS = (
    *("config.yaml", "about.json", "metrics.jsonl", "distributions.jsonl", "samples.jsonl", "warnings.jsonl"),
    *("reference_rewards.jsonl", "tensorboard", "trackers", "checkpoints", "run_status.json", "report.html"),
    ".saved.json",
)


class RunFolder:
    """Paths of a run and, when made by `open`, the exclusive lock on them.

    `RunFolder(path)` alone is a view without a lock: what ranks other than 0 and the readers of a run use.
    """

    def __init__(self, path: Path | str, command: str = "", started: str = "") -> None:
        self.path = Path(path)
        self.command = command
        self.set_aside: Path | None = None
        self._made: list[Path] = []  # by `open`, the folder before those that it lies in
        self._lock: int | None = None
        self._holder = b""
        self._started = started or now()
        self._status: dict[str, Any] = {}
        self._writes = threading.Lock()

    @classmethod
    def open(cls, dir: Path | str, name: str, command: str, resume: bool) -> RunFolder:
        """Create or reopen `dir/name` (an empty name: `dir/command`) and lock it until `close` or the process ends.

        Call it on rank 0 only. With `resume` false, an earlier run in the folder is moved to `previous-<n>/` inside
        it (attribute `set_aside`): nothing is deleted. So, with a line to the user, is another command's start that
        ended and left no metric, reference reward or checkpoint. Raises StorageError where another job has the folder
        or it cannot be written, ConfigError where it belongs to another command, holds a model, lies in checkpoints,
        or the name leaves `dir`.
        """
        folder = cls(of_run(dir, name or command), command)
        with storage_errors(folder.path):
            folder._made = [place for place in (folder.path, *folder.path.parents) if not place.exists()]
            folder.path.mkdir(parents=True, exist_ok=True)
        folder._acquire()
        try:
            if not resume:
                folder._set_aside()
            folder._check_command()
            with storage_errors(folder.path):
                folder.checkpoints.mkdir(exist_ok=True)
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def about(self) -> Path:
        return self.path / "about.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def distributions(self) -> Path:
        return self.path / "distributions.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def warnings(self) -> Path:
        return self.path / "warnings.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        return self.path / "trackers"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def saved(self) -> Path:
        """Tells that there were checkpoints, should they be gone; written by `gipo_mc.run.checkpoint`."""
        return self.path / ".saved.json"

    @property
    def status(self) -> Path:
        return self.path / "run_status.json"

    def results(self) -> list[tuple[str, str]]:
        """What a person looks for when the run is done, and where it is; of the report, the command that writes it."""
        report = shlex.join(["gipo-mc", "report", str(self.path)])
        return [("metrics", str(self.metrics)), ("checkpoints", str(self.checkpoints)), ("report", report)]

    def write_status(self, state: State, exit_code: int | None = None, message: str = "", step: int = 0) -> None:
        """Replace run_status.json atomically. torchrun reduces every exit code to 1: this file keeps the real one.

        exit_code: of the command, None while it runs. step: last completed iteration.
        """
        with self._writes:
            self._status = {
                "state": state,
                "exit_code": exit_code,
                "message": message,
                "step": step,
                "command": self.command,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": self._started,
                "updated": now(),
            }
            self._put_status()

    def beat(self) -> None:
        """Write the status again, with the time: a sign of life. Another thread may call it."""
        with self._writes:
            if self._status.get("state") == "running":
                self._status["updated"] = now()
                self._put_status()

    def _put_status(self) -> None:
        self.still_ours()
        write_atomically(self.status, json.dumps(self._status, indent=2) + "\n")

    def still_ours(self) -> None:
        """Raises StorageError where another job has taken the folder in spite of the lock: some network file systems
        give locks that hold on one host only. Nothing may be written then."""
        if self._lock is None:
            return
        with suppress(OSError):  # what is written next says what the file system has
            if read_file(self.path / ".lock") != self._holder:
                raise StorageError(
                    f"The run folder {self.path} was taken over by {holder_of(self.path / '.lock')}: its file system "
                    "gives locks that other hosts do not see. This job leaves it to that one: start one at a time."
                )

    def note(self, state: State, exit_code: int, message: str) -> None:
        """Write the status of a start that never came to run here. Does nothing where there is no such folder, another
        job has it, or it belongs to another command. torchrun ends the ranks of a refused start by a signal: what one
        of them said of the refusal stands."""
        if not os.path.isdir(self.path):  # unlike Path.is_dir, also where the name is too long for one
            return
        if self._lock is None and not self._acquired_among_ranks():
            return
        try:
            earlier = self.read_status()
            refused = earlier.get("state") == "failed" and str(earlier.get("updated")) >= self._started
            if state == "requeue" and refused:
                return
            self.command = self.command or str(earlier.get("command") or "")
            if earlier.get("command", self.command) == self.command:
                step = earlier.get("step")
                if earlier.get("state") == "done":
                    message = f"{message}\nThe run that was done here, at step {step}, is as it was."
                self.write_status(state, exit_code, message, step if isinstance(step, int) else 0)
        finally:
            self.close()

    def take_back(self) -> None:
        """Remove the folder of a start that was refused, if `open` made it and it holds nothing but this start's."""
        left = (self.checkpoints, self.status, self.path / ".lock")
        with suppress(OSError, StorageError):
            if self._made and self._lock is not None and set(self.path.iterdir()) <= set(left):
                self.still_ours()
                self.checkpoints.rmdir()  # an error, which ends this, where there is a checkpoint
                for file in left[1:]:
                    file.unlink()
                for place in self._made:
                    place.rmdir()

    def _acquired_among_ranks(self) -> bool:
        """The lock, for which ranks of one job that note the same stand in line. False: another job has it."""
        deadline = time.monotonic() + (_LINE_SECONDS if os.environ.get("WORLD_SIZE", "1") != "1" else 0.0)
        while True:
            try:
                self._acquire()
                return True
            except StorageError:
                if time.monotonic() > deadline or not os.path.isdir(self.path):  # another rank may take it back
                    return False
                time.sleep(0.02)

    def read_status(self) -> dict[str, Any]:
        """run_status.json, or {} where there is none or it is no JSON object (it only informs)."""
        try:
            status = json.loads(read_file(self.status))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def write_about(self, lines: Sequence[tuple[str, str]]) -> None:
        """Keep (label, value) lines on what runs (models, layout, device, data) for the report, in order; a label may
        come more than once."""
        write_atomically(self.about, json.dumps([list(line) for line in lines], indent=2) + "\n")

    def close(self) -> None:
        """Give the lock back. The lock file stays: removing it would let two jobs lock two different files."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _acquire(self) -> None:
        descriptor = lock_file(self.path / ".lock", self._not_locked)
        try:
            holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": self._started})
            self._holder = holder.encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, self._holder, 0)
        except OSError as error:
            os.close(descriptor)
            raise StorageError(self._not_locked(error)) from error
        self._lock = descriptor

    def _not_locked(self, error: OSError) -> str:
        if isinstance(error, BlockingIOError):
            return (
                f"The run folder {self.path} is in use by {holder_of(self.path / '.lock')}. Wait for it or stop it, or "
                "choose another folder with run.name."
            )
        return (
            f"The run folder {self.path} cannot be locked: {error.strerror}. Its file system may not offer locks, or "
            "is full or read-only: choose another disk with run.dir."
        )

    def belongs_to_another(self) -> str:
        """A sentence where the folder has the run of another command, which `open` refuses; else ""."""
        status = self.read_status()
        before = str(status.get("command") or self.command)
        if before == self.command:
            return ""
        files = (self.metrics, self.path / "reference_rewards.jsonl", self.saved)
        kept = any(path.exists() and path.stat().st_size for path in files)
        # One that says "running" may be on a host that does not see the lock.
        awaited = status.get("state") in ("running", "requeue") and not fell_silent(status)
        if kept or awaited or any(self.checkpoints.glob("*")):
            return (
                f"The run folder {self.path} belongs to {before}, this is {self.command}: choose another run.name, "
                "or set run.resume=false to move the earlier run aside."
            )
        return ""

    def _check_command(self) -> None:
        if refused := self.belongs_to_another():
            raise ConfigError(refused)
        before = str(self.read_status().get("command") or self.command)
        if before != self.command:  # a start that failed before it left anything
            self._set_aside()
            tell(f"{self.path} had a start of {before} that left nothing: moved to {self.set_aside}.")

    def _set_aside(self) -> None:
        present = [self.path / name for name in _CONTENTS if (self.path / name).exists()]
        if not present:
            return
        number = 1
        while (target := self.path / f"previous-{number}").exists():
            number += 1
        with storage_errors(target):
            target.mkdir()
            for item in present:
                item.rename(target / item.name)
        self.set_aside = target


def fell_silent(status: Mapping[str, Any]) -> str:
    """A sentence on an attempt that says "running" and is not, as far as can be seen from here; else "".

    On its own host its process is looked for; elsewhere the last sign of life counts. One from the future is none: a
    clock was set back.
    """
    if status.get("state") != "running":
        return ""
    gone = status.get("host") == socket.gethostname() and not _is_alive(status.get("pid"))
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(str(status.get("updated")))
        quiet = abs(age.total_seconds()) > SILENCE
    except (ValueError, TypeError):
        quiet = True
    return without_a_word(status) if gone or quiet else ""


def without_a_word(status: Mapping[str, Any]) -> str:
    """A sentence on an attempt of this status that ended without leaving another."""
    return (
        f"The attempt of {status.get('started')} (process {status.get('pid')} on {status.get('host')}) ended without a "
        f"word after step {status.get('step')}: killed, or its machine was lost. Its last sign of life is of "
        f"{status.get('updated')}."
    )


def _is_alive(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def now() -> str:
    """The time, as run_status.json has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
