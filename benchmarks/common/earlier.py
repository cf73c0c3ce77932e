"""An earlier commit, to be measured beside the working tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def earlier_build(commit: str, place: Path, *, own_kernels: bool = False) -> Iterator[Path]:
    """The tree of `commit` in the new folder `place`, with this build's native module; it is gone afterwards.

    own_kernels: build the module of that commit instead, for the CPU alone: a minute or two.
    """
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", "--quiet", str(place), commit], check=True)
    try:
        if own_kernels:
            build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            subprocess.run(build, cwd=place, env=os.environ | {"GIPO_MC_CUDA": "0"}, check=True)
        else:
            for extension in (ROOT / "gipo_mc").glob("_C*.so"):
                shutil.copy(extension, place / "gipo_mc")
        yield place
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(place)], check=True)
