"""Under torchrun: run_status.json has the run's code; ranks that are lost come back; ranks without torchrun end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from gipo_mc.config import Config
from gipo_mc.errors import NumericsError
from gipo_mc.run import checkpoint
from gipo_mc.run.command import run_command
from gipo_mc.run.session import Session
from gipo_mc.supervised import sft
from tests.ranks import LAYOUTS, run_ranks
from tests.run.test_resume import _assert_equal
from tests.runs import save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _options(models: dict[str, str], folder: Path, *more: str, iterations: int = 2) -> list[str]:
    base = ["run.name=run", f"run.dir={folder}", "device=cpu", f"model.policy={models['policy']}", "train.batch_size=8"]
    rows = ["data.demonstrations=[builtin]", "data.max_rows=64", "data.sequence_length=24"]
    return [*base, *rows, f"run.iterations={iterations}", *more]


def _status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "run_status.json").read_text())  # type: ignore[no-any-return]


# ---------------------------------------------------------- torchrun's agent over forks, which have imported everything
def _disturbed(act: Callable[[], None]) -> None:
    """Call `act` when the first step is logged, in this process."""
    log = Session.log

    def logged(self: Session, *args: Any, **options: Any) -> None:
        log(self, *args, **options)
        act()

    Session.log = logged  # type: ignore[method-assign]


def _fail(error: BaseException) -> None:
    raise error


#: Exit code -> what happens on the ranks at the end of the first step.
FAULTS: dict[int, Callable[[], None]] = {
    1: lambda: _fail(ZeroDivisionError("a bug")),
    5: lambda: _fail(NumericsError("not finite")),
    7: lambda: os.kill(os.getpid(), signal.SIGKILL) if os.environ["RANK"] == "1" else None,
    75: lambda: os.kill(os.getpid(), signal.SIGTERM) if os.environ["RANK"] == "1" else None,
    130: lambda: _fail(KeyboardInterrupt()),
}


def _rank(code: int, options: list[str]) -> None:
    # As in a process of torchrun's; this one is a fork of the agent, and would end with it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _prctl_pr_set_pdeathsig(0)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if code in FAULTS:
        _disturbed(FAULTS[code])
    try:
        found = run_command("test", sft.train, argv=options)
    except ZeroDivisionError:
        found = 1
    if found:
        os._exit(found)


def _agent(code: int, options: list[str], restarts: int = 0) -> None:
    """`torchrun --standalone --nproc-per-node 2 --max-restarts ...`, which knows the codes 0 and 1."""
    config = LaunchConfig(
        1,
        1,
        2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="test",
        max_restarts=restarts,
        start_method="fork",
    )
    try:
        elastic_launch(config, _rank)(code, options)
    except ChildFailedError:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 75, 130])
def test_the_status_keeps_every_exit_code(tmp_path: Path, models: dict[str, str], code: int) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run_status.json").write_text(
        json.dumps({"state": "done", "exit_code": 0, "step": 2, "command": "train_sft"})
    )
    options = _options(models, tmp_path)
    if code == 2:
        options.append("train.nonsense=1")
    elif code == 3:
        options.append("data.demonstrations=[nowhere.jsonl]")
    elif code == 4:
        (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    elif code == 6:
        (run / "checkpoints").write_text("in the way")
    agent = multiprocessing.get_context("fork").Process(target=_agent, args=(code, options))
    agent.start()
    agent.join(60)
    assert agent.exitcode == int(code != 0)
    status = _status(tmp_path)
    assert status["exit_code"] == code, status
    assert status["state"] == {0: "done", 75: "requeue"}.get(code, "failed")
    if code == 7:
        assert "the process of rank 1 has ended. No step was saved yet: the same command" in status["message"]
    assert status["step"] == (1 if code in FAULTS else 2 if code in (0, 2) else status["step"])


# ------------------------------------------------------------------------------------------------------------- losses
def _wait_for(what: str, seen: Callable[[], Any], agent: multiprocessing.Process) -> None:
    deadline = time.monotonic() + 90
    while not seen():
        assert time.monotonic() < deadline and agent.exitcode is None, f"{what} did not come"
        time.sleep(0.05)


def _train(rank: int, options: list[str]) -> None:
    from gipo_mc.config import load_config

    config: Config = load_config(None, options)
    sft.train(config)


def _children(pid: int | None) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_lost_rank_comes_back_and_ranks_without_torchrun_save_and_end(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 is killed once, and the agent starts all again; then SIGUSR1 kills that and leaves the ranks alone."""
    length, run = 80, tmp_path / "run"
    options = _options(models, tmp_path, "checkpoint.every=5", iterations=length)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    agent = multiprocessing.get_context("fork").Process(target=_agent, args=(0, options, 1))
    agent.start()
    _wait_for("the first checkpoint", lambda: checkpoint.steps(run / "checkpoints"), agent)
    first = _children(agent.pid)
    os.kill(first[1], signal.SIGKILL)
    saved = checkpoint.steps(run / "checkpoints")[-1]
    _wait_for("a restart", lambda: _status(tmp_path)["pid"] not in first and _status(tmp_path)["step"] > saved, agent)
    second = _children(agent.pid)
    os.kill(agent.pid or 0, signal.SIGUSR1)
    agent.join(30)
    assert agent.exitcode == -signal.SIGUSR1
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in second) and time.monotonic() < deadline:
        time.sleep(0.05)
    status = _status(tmp_path)
    assert (status["state"], status["exit_code"]) == ("requeue", 75), status
    assert status["message"].startswith("Asked to stop by the death of torchrun") and status["step"] < length
    assert checkpoint.steps(run / "checkpoints")[-1] == status["step"]

    ranks = LAYOUTS["DP2"]["data"]
    run_ranks(_train, ranks, [*options, "checkpoint.every=0"])
    run_ranks(_train, ranks, [*options, "checkpoint.every=0", "run.name=straight"])
    _assert_equal(run, tmp_path / "straight", length)
