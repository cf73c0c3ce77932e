"""What a run prints in an interpreter of its own: nothing but what this package says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.runs import save_models
from tests.source_rules import ROOT

#: Two commands one after the other: the second one continues the run.
_TWICE = """
import runpy, sys
script, *words = sys.argv[1:]
for iterations in "12":
    sys.argv = [script, *words, f"run.iterations={iterations}"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
assert "wandb" not in sys.modules  # Megatron would import it, wherever it is installed
"""


def test_nothing_of_others_reaches_the_console(tmp_path: Path) -> None:
    """Imports, a model, an optimizer, a save and a resume: where Megatron, torch and transformers had something to say.
    CUDA_HOME stands for a toolkit without a GPU."""
    models = save_models(tmp_path)
    options = ["run.name=run", f"run.dir={tmp_path}", "device=cpu", f"model.policy={models['policy']}"]
    options += ["data.demonstrations=[builtin]", "data.max_rows=16", "data.sequence_length=24", "train.batch_size=8"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", _TWICE, str(ROOT / "scripts" / "train_sft.py"), *options],
        capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    assert run.stdout.count("run: done") == 2, run.stdout
    assert "deprecated" not in run.stdout.lower() and "experimental" not in run.stdout, run.stdout
