"""A run of tests/run/test_resume.py in another interpreter, for the tests of two versions of Megatron-core.

python -m tests.run.versions.other_python FOLDER LAYOUT NAME INTERRUPT_AFTER trains NAME in FOLDER with the models there
(made if there are none), and prints Megatron's version and how the run ended.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gipo_mc.parallel.megatron.versions import INSTALLED
from tests.ranks import LAYOUTS
from tests.run.test_resume import _config, _run
from tests.runs import save_models
from tests.source_rules import ROOT


def train(folder: Path, layout: str, name: str, interrupt_after: int = -1) -> str:
    """How the run ended: "done", "interrupted", or its exit code and error."""
    models = {key: str(folder / key) for key in ("policy", "reward")}
    if not (folder / "policy").exists():
        models = save_models(folder)
    more = ("parallel.distributed_optimizer=on",) if layout == "DP2" else ()
    return _run("rl", LAYOUTS[layout], _config("rl", folder, models, name, LAYOUTS[layout], *more), interrupt_after)


def train_with(python: str, folder: Path, layout: str, name: str, interrupt_after: int = -1) -> tuple[str, str]:
    """(version of Megatron-core, how the run ended), by another interpreter, whose kernels were built in place."""
    words = [str(folder), layout, name, str(interrupt_after)]
    answer = subprocess.run(
        [python, "-m", "tests.run.versions.other_python", *words], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    version, _, outcome = answer.stdout.splitlines()[-1].partition(" ")
    return version, outcome


if __name__ == "__main__":
    ended = train(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
    print(INSTALLED, " ".join(ended.split()))
