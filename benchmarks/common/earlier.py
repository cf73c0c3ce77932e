"""An earlier commit, to be measured beside the working tree."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def earlier_build(commit: str, place: Path) -> Iterator[Path]:
    """The tree of `commit` in the new folder `place`, with this build's native module; it is gone afterwards."""
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", "--quiet", str(place), commit], check=True)
    try:
        for extension in (ROOT / "gipo_mc").glob("_C*.so"):
            shutil.copy(extension, place / "gipo_mc")
        yield place
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(place)], check=True)
