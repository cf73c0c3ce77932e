"""On a real Slurm of two nodes, which are one machine (scripts/slurm/test_cluster.sh): a job that is asked to stop is
queued again and ends as the undisturbed one; `srun` without torchrun; codes that Slurm shows."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gipo_mc.config import load_config
from gipo_mc.run import checkpoint
from gipo_mc.run.folder import RunFolder
from gipo_mc.supervised import sft
from tests.ranks import run_ranks
from tests.run.test_resume import _assert_equal
from tests.runs import save_models
from tests.source_rules import ROOT

PLACES = "/usr/sbin:/usr/bin"
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=PLACES)]
pytestmark = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0,
    reason=f"needs root and {', '.join(MISSING) or 'Slurm'}: scripts/slurm/test_cluster.sh install",
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of Slurm's commands."""
    # Not in pytest's folder: the path of munge's socket has a limit.
    place = tempfile.mkdtemp(prefix="slurm-")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(probe.getsockname()[1], 65000)
    environment = os.environ | {
        "PATH": f"/usr/sbin:/usr/bin:{os.environ['PATH']}",
        "SLURM_CONF": f"{place}/slurm.conf",
        "SLURM_TEST_PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    script = str(ROOT / "scripts" / "slurm" / "test_cluster.sh")
    try:
        subprocess.run([script, "start", place, "2"], env=environment, check=True, timeout=60)
        yield environment
    finally:
        subprocess.run([script, "stop", place], env=environment, timeout=60)
        time.sleep(1)  # they write their state
        shutil.rmtree(place, ignore_errors=True)


def _options(models: dict[str, str], iterations: int) -> list[str]:
    rows = ["data.demonstrations=[builtin]", "data.max_rows=64", "data.sequence_length=24", "train.batch_size=8"]
    return ["device=cpu", f"model.policy={models['policy']}", *rows, f"run.iterations={iterations}"]


def _train(rank: int, overrides: list[str]) -> None:
    sft.train(load_config(None, overrides))


def _call(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def _wait_for(what: str, seen: object) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if seen():  # type: ignore[operator]
            return
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come")


def _state(slurm: dict[str, str], job: str) -> str:
    found = _call(slurm, "scontrol", "show", "job", job)
    return " ".join(re.findall(r"(?:JobState|Restarts|ExitCode)=\S+", found))


def test_a_job_that_is_asked_to_stop_is_queued_again_and_ends_as_the_undisturbed_one(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """SIGUSR1 to the batch shell, as `--signal=B:USR1@120` sends it before the time limit; a rank on each node."""
    options = _options(save_models(tmp_path / "models"), 40)
    environment = slurm | {"RUNS": str(tmp_path), "RANKS": "1", "GRACE": "20", "PYTHON": sys.executable}
    output, metrics = tmp_path / "output", tmp_path / "run" / "metrics.jsonl"
    # With a step before it, as a script of one's own may have.
    script = (ROOT / "scripts" / "slurm" / "train.sbatch").read_text().replace("\ntrap stop", "\nsrun true\ntrap stop")
    (tmp_path / "own.sbatch").write_text(script)
    words = ["sbatch", "--parsable", "--nodes=2", f"--output={output}", str(tmp_path / "own.sbatch"), "run"]
    job = _call(environment, *words, "scripts/train_sft.py", *options)
    _wait_for("the first steps", lambda: metrics.exists() and metrics.stat().st_size)
    _call(slurm, "scancel", "--batch", "--signal=USR1", job)
    _wait_for("the end", lambda: re.search("JobState=(COMPLETED|FAILED)", _state(slurm, job)))
    assert _state(slurm, job) == "JobState=COMPLETED Restarts=1 ExitCode=0:0", output.read_text()
    assert "requeue, exit code 75" in output.read_text() and "run: done" in output.read_text()
    assert len(checkpoint.steps(tmp_path / "run" / "checkpoints")) == 2, "one of the stop, one of the end"

    straight = [f"run.dir={tmp_path}", "run.name=straight", *options]
    run_ranks(_train, 2, straight)
    _assert_equal(tmp_path / "run", tmp_path / "straight", 40)


def test_a_job_that_is_cancelled_stays_so(slurm: dict[str, str], tmp_path: Path) -> None:
    environment = slurm | {"RUNS": str(tmp_path), "RANKS": "1", "GRACE": "20", "PYTHON": sys.executable}
    output, metrics = tmp_path / "output", tmp_path / "run" / "metrics.jsonl"
    options = _options(save_models(tmp_path / "models"), 10000)
    words = ["sbatch", "--parsable", f"--output={output}", "scripts/slurm/train.sbatch", "run", "scripts/train_sft.py"]
    job = _call(environment, *words, *options)
    _wait_for("the first steps", lambda: metrics.exists() and metrics.stat().st_size)
    _call(slurm, "scancel", job)
    _wait_for("the end", lambda: "JobState=CANCELLED" in _state(slurm, job))
    # The script says so, unless Slurm kills it before (KillWait).
    assert "This job is queued again." not in output.read_text() and "Restarts=0" in _state(slurm, job)


def test_srun_without_torchrun_joins_the_tasks_and_a_failed_job_shows_its_code(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    options = [*_options(save_models(tmp_path / "models"), 2), f"run.dir={tmp_path}", "run.name=run"]
    said = _call(
        slurm, "srun", "--nodes=1", "--ntasks=2", "--overcommit", sys.executable, "scripts/train_sft.py", *options
    )
    assert "data 2 x pipeline 1" in said and said.count("run: done") == 1
    assert RunFolder(tmp_path / "run").read_status()["exit_code"] == 0
    words = ["srun", "--ntasks=1", sys.executable, "scripts/train_sft.py", *options, "train.nonsense=1"]
    refused = subprocess.run(words, env=slurm, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2, refused.stderr
    status = RunFolder(tmp_path / "run").read_status()
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 2, 2), "the last start was refused"


def test_a_start_that_is_refused_shows_its_code_where_there_is_no_run_folder_yet(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """torchrun makes 1 of every code; nothing was trained under this name."""
    environment = slurm | {"RUNS": str(tmp_path / "runs"), "RANKS": "1", "PYTHON": sys.executable}
    output = tmp_path / "output"
    words = ["sbatch", "--wait", f"--output={output}", "scripts/slurm/train.sbatch", "new", "scripts/train_sft.py"]
    done = subprocess.run(
        [*words, "train.nonsense=1"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr + output.read_text()
    assert "train.nonsense: there is no such key" in output.read_text()
