"""Host memory: of this process, and its peaks over several, pages that they share counted once. Linux."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path


class Watcher:
    """The memory of processes that have put their number into `folder` as a file's name, and of what they forked.

    state, peak: the most bytes seen after a file `state` was there, and after a file `saving` was there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.state, self.peak = folder, 0, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.02):
            now = sum(proportional(pid) for pid in self._ranks())
            if (self._folder / "saving").exists():
                self.peak = max(self.peak, now)
            elif (self._folder / "state").exists():
                self.state = max(self.state, now)

    def _ranks(self) -> list[int]:
        pids = [int(file.name) for file in self._folder.iterdir() if file.name.isdigit()]
        for pid in pids:  # grows while it is walked
            with contextlib.suppress(OSError):
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return pids


def proportional(pid: int) -> int:
    """Bytes of a process, pages that others have, too, counted for its share."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def resident_bytes(what: str) -> int:
    """Of this process: "VmRSS", now; "VmHWM", the highest since it began or its peak was cleared."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))
