"""scripts/slurm/train.sbatch in a shell where Slurm's programs, and Python, are stand-ins that note what they are
given: how long a run has to save, what is queued again, and how often."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gipo_mc.tools.slurm.job import LEAD, MARGIN
from gipo_mc.tools.verbs import launch
from tests.source_rules import ROOT

SCRIPT = ROOT / "scripts" / "slurm" / "train.sbatch"
Job = Callable[..., tuple[int, str]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Runs the script as a job: (its exit code, what Slurm's programs were called with)."""
    programs, called = tmp_path / "bin", tmp_path / "called"
    programs.mkdir()
    for name, text in (
        ("srun", f'echo "srun $*" >>{called}; $STEP'),
        ("scontrol", f'[ "$1" = -o ] && echo "JobId=7 $STATE" || echo "scontrol $*" >>{called}'),
        ("scancel", f'echo "scancel $*" >>{called}'),
        ("py", 'exit "$STATUS"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)

    def run(
        status: int = 0,
        step: str = "true",
        asked: bool = False,
        script: Path = SCRIPT,
        words: Sequence[str] = (),
        **variables: str,
    ) -> tuple[int, str]:
        called.write_text("")
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": "py", "SLURM_JOB_ID": "7"}
        environment |= {"STATUS": str(status), "STEP": step, "STATE": "JobState=RUNNING", **variables}
        with (tmp_path / "output").open("w") as output:
            shell = subprocess.Popen(
                ["bash", str(script), *(words or ["run", "train.py"])],
                cwd=tmp_path, env=environment, stdout=output, stderr=output,
            )  # fmt: skip
            if asked:
                deadline = time.monotonic() + 30
                while "srun" not in called.read_text() and time.monotonic() < deadline:
                    time.sleep(0.05)
                shell.send_signal(signal.SIGUSR1)
            code = shell.wait(timeout=60)
        return code, called.read_text()

    return run


def _given(called: str) -> tuple[str, str]:
    """(grace time of the run, time-out of torchrun)"""
    found = re.search(r"--shutdown-timeout=(\S+) .* run.grace_seconds=(\S+)", called)
    assert found, called
    return found[2], found[1]


def test_the_grace_time_is_what_the_signal_leaves(job: Job, tmp_path: Path) -> None:
    assert _given(job()[1]) == (str(LEAD - MARGIN), str(LEAD))
    (longer := tmp_path / "longer.sbatch").write_text(SCRIPT.read_text().replace("B:USR1@120", "B:USR1@600"))
    assert _given(job(script=longer)[1]) == ("580", "600")
    assert _given(job(LEAD="300")[1]) == ("280", "300")
    assert _given(job(script=longer, GRACE="200")[1]) == ("200", "600")
    assert _given(job(GRACE="130")[1]) == ("130", "140"), "torchrun does not kill ranks that have their grace time"


def test_launch_says_the_lead_where_the_script_reads_it(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(ROOT / "configs" / "hh_tiny.yaml"), "--gpus", "1", "device=cpu", "--slurm"]
    assert launch.main([*words, "--sbatch=--signal=B:USR1@600"]) == 0
    (script := tmp_path / "job.sbatch").write_text(capsys.readouterr().out)
    assert _given(job(script=script)[1]) == ("580", "600")


@pytest.mark.parametrize("given", ["USR1@600", "B:USR1", "B:USR1@20", "B:HUP@600", "R:USR1@600", "600"])
def test_a_signal_after_which_nothing_would_be_saved_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(ROOT / "configs" / "hh_tiny.yaml"), "--gpus", "1", "device=cpu", "--slurm"]
    assert launch.main([*words, f"--sbatch=--signal={given}"]) == 2
    said = capsys.readouterr().err
    assert f"--signal={given}: the script saves after" in said and "--sbatch=--signal=B:USR1@SECONDS" in said


def test_a_job_that_is_asked_to_stop_asks_all_its_steps_and_is_queued_again(job: Job) -> None:
    code, called = job(status=75, step="sleep 2", asked=True)
    assert code == 75
    assert called.splitlines()[1:] == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_a_save_that_does_not_end_in_time_does_not_end_the_night(job: Job, tmp_path: Path) -> None:
    """Status 1: the run still says that it runs."""
    began = time.monotonic()
    code, called = job(status=1, step="sleep 30", asked=True, LEAD="12")
    assert (code, called.splitlines()[-1]) == (75, "scontrol requeue 7") and time.monotonic() - began < 20
    assert "do not end in time" in (tmp_path / "output").read_text()


def test_a_job_that_is_cancelled_is_not_queued_again(job: Job) -> None:
    for state, again in (
        ("JobState=COMPLETING Reason=None", False),
        ("JobState=CANCELLED Reason=None", False),
        ("JobState=COMPLETING Reason=TimeLimit", True),
    ):
        code, called = job(status=75, STATE=state)
        assert code == 75 and ("requeue" in called) is again, state


def test_what_is_queued_again_is_asked_to_stop_or_in_a_list(job: Job) -> None:
    for status in (0, 1, 2, 5, 7, 9):
        assert job(status) == (status, job(status)[1]) and "requeue" not in job(status)[1]
    assert "requeue 7" in job(7, AGAIN="75 7")[1] and "requeue" not in job(2, AGAIN="75 7")[1]


def test_a_job_that_gets_nowhere_is_not_queued_again_for_ever(job: Job, tmp_path: Path) -> None:
    def queued(restart: int) -> bool:
        return "requeue" in job(75, REQUEUES="2", **({"SLURM_RESTART_COUNT": str(restart)} if restart else {}))[1]

    assert [queued(number) for number in range(3)] == [True, True, False]
    assert "2 times without a new checkpoint" in (tmp_path / "output").read_text()
    for step in (10, 20):
        (tmp_path / "runs" / "run" / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
        assert queued(step) and queued(step) and not queued(step)
    assert queued(0), "a job that was submitted anew begins to count"
