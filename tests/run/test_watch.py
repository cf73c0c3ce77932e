"""Signals, hangs and ranks that fall silent: saved where the state is whole, ended in time, and told truthfully."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.errors import ConfigError, DataError, GipoError, Requeue, StorageError
from gipo_mc.rl import gi_ppo
from gipo_mc.run import checkpoint
from gipo_mc.run import watch as watch_module
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.outcome import outcome_kept, refusal_noted
from gipo_mc.run.session import Session
from gipo_mc.run.watch import Watch
from gipo_mc.supervised import loop
from tests.ranks import LAYOUTS, exit_codes, run_ranks
from tests.run.test_resume import TRAINERS, _assert_equal, _config
from tests.runs import save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _status(run: Path) -> dict[str, Any]:
    return json.loads((run / "run_status.json").read_text())  # type: ignore[no-any-return]


#: Stage -> where its function is looked up.
PLACES: dict[str, tuple[Any, str]] = {
    "loading": (Session, "resume"),
    "rollout": (gi_ppo, "roll_out"),
    "update": (gi_ppo, "update_policy"),
    "save": (Session, "save"),
    "evaluation": (gi_ppo, "evaluate_policy"),
    "step": (loop, "run_backward"),
    "held out": (loop, "evaluate"),
}


def _during(stage: str, call: int, act: Callable[[], None]) -> None:
    """Call `act` while the `call`-th call (0, 1, ...) of a stage's function goes on, in this process."""
    place, name = PLACES[stage]
    function, calls = getattr(place, name), 0

    def disturbed(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if calls == call:
            act()
        calls += 1
        return function(*args, **options)

    setattr(place, name, disturbed)


def _train(rank: int, kind: str, config: Any, stage: str, call: int, ranks: tuple[int, ...]) -> str:
    """Train; the given ranks get two signals within 20 ms in a call of the stage."""

    def signals() -> None:
        if rank in ranks:
            for number in (signal.SIGUSR1, signal.SIGTERM):
                os.kill(os.getpid(), number)

    if stage:
        _during(stage, call, signals)
    try:
        TRAINERS[kind](config)
    except GipoError as error:
        return f"{error.exit_code}: {error}"
    return "done"


#: Stage, its call, and the step that is saved afterwards (0: none). Checkpoints are due after 2, 4 and 5 steps.
RL_STOPS = [("loading", 0, 0), ("rollout", 1, 1), ("save", 0, 2), ("update", 0, 3), ("evaluation", 0, 4)]
STOPS = [("loading", 0, 0), ("step", 0, 1), ("save", 0, 2), ("step", 0, 3), ("held out", 0, 4)]


@pytest.mark.parametrize(
    ("kind", "name", "ranks"), [("rl", "1", (0,)), ("rl", "TP2", (1,)), ("sft", "DP2", (0, 1)), ("dpo", "1", (0,))]
)
def test_a_run_that_is_stopped_in_every_stage_ends_as_the_undisturbed_one(
    tmp_path: Path, models: dict[str, str], kind: str, name: str, ranks: tuple[int, ...]
) -> None:
    layout, world = LAYOUTS[name], LAYOUTS[name].get("tensor", 1) * LAYOUTS[name].get("data", 1)
    steps = 5 if world == 1 else 3
    length = (f"run.iterations={steps}", "data.evaluation=[builtin:easy]")
    straight = _config(kind, tmp_path, models, "straight", layout, *length)
    assert run_ranks(_train, world, kind, straight, "", 0, ()) == ["done"] * world
    config, run = _config(kind, tmp_path, models, "run", layout, *length), tmp_path / "run"
    stops = RL_STOPS if kind == "rl" else STOPS
    for stage, call, saved in stops if world == 1 else stops[1:3]:
        said = run_ranks(_train, world, kind, config, stage, call, ranks)
        assert all(text.startswith("75: Asked to stop by ") for text in said), (stage, said)
        assert checkpoint.steps(run / "checkpoints")[-1:] == ([saved] if saved else [])
        status = _status(run)
        assert (status["state"], status["exit_code"], status["step"]) == ("requeue", 75, saved)
        stands = f"continues from the checkpoint of step {saved}." if saved else "No step was saved yet"
        assert stands in status["message"], (stage, status["message"])
    assert run_ranks(_train, world, kind, config, "", 0, ()) == ["done"] * world
    _assert_equal(run, tmp_path / "straight", steps)
    assert _status(run)["state"] == "done"


def _ends(rank: int, config: Any, folder: Path, stage: str, act: Callable[[int], None]) -> None:
    """Train as a command does; the exit code is that of the process."""
    with (folder / f"stderr-{rank}").open("w") as stream:
        sys.stderr = stream
        if stage:
            _during(stage, 1, lambda: act(rank))
        try:
            gi_ppo.train(config)
        except GipoError as error:
            stream.write(f"raised: {error}")
            stream.flush()
            os._exit(error.exit_code)


def _stop_and_stay(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_where_no_step_ends_within_the_grace_time_the_last_checkpoint_stands(
    tmp_path: Path, models: dict[str, str]
) -> None:
    config = _config("rl", tmp_path, models, "run", LAYOUTS["TP2"], "run.grace_seconds=1", "checkpoint.every=1")
    begin = time.monotonic()
    assert exit_codes(_ends, 2, config, tmp_path, "update", _stop_and_stay) == [75, 75]
    assert time.monotonic() - begin < 15
    status = _status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("requeue", 75)
    assert "no step ended within 1 seconds (run.grace_seconds)" in status["message"]
    assert "continues from the checkpoint of step 2." in status["message"]


def _slow_save(rank: int, config: Any) -> str:
    """Train; the signal comes as the save that is due after step 2 begins, which then takes longer than the grace."""
    write = checkpoint.begin

    def slow(folder: Path, step: int, *rest: Any) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.5)
        return write(folder, step, *rest)

    checkpoint.begin = slow
    try:
        gi_ppo.train(config)
    except GipoError as error:
        return f"{error.exit_code}: {error}"
    return "done"


def test_a_save_that_was_due_takes_its_time(tmp_path: Path, models: dict[str, str]) -> None:
    config = _config("rl", tmp_path, models, "run", {}, "run.grace_seconds=0.5", "eval.prompts=0")
    (said,) = run_ranks(_slow_save, 1, config)
    assert said.startswith("75: Asked to stop by SIGTERM. The same command continues from the checkpoint of step 2.")


def _at_a_terminal(folder: Path, config: Any, ignored: bool) -> int:
    """The exit code of a run whose terminal is closed in its third iteration, and what it wrote in `folder`."""
    sys.stdout.flush()
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)

            def wait() -> None:
                (folder / "third").touch()
                time.sleep(1)

            _during("rollout", 2, wait)
            if ignored:  # nohup sends the output elsewhere, too
                os.dup2(os.open(folder / "nohup.out", os.O_WRONLY | os.O_CREAT), 1)
                os.dup2(1, 2)
            gi_ppo.train(config)
        except GipoError as error:
            os._exit(error.exit_code)
        except BaseException:
            (folder / "error").write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 60
    while not (folder / "third").exists() and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 2**16)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_asks_a_run_to_stop_unless_it_is_under_nohup(
    tmp_path: Path, models: dict[str, str], ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    config = _config("rl", tmp_path, models, "run", {}, "eval.prompts=0", "run.iterations=4", "checkpoint.every=0")
    code = _at_a_terminal(tmp_path, config, ignored)
    assert not (tmp_path / "error").exists(), (tmp_path / "error").read_text()
    assert code == (0 if ignored else 75)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [4 if ignored else 2]


def _stay(rank: int) -> None:
    if rank == 1:
        time.sleep(60)


@pytest.mark.parametrize("reward", ["python:tests.reward_functions:never", ""])
def test_a_hang_ends_at_the_time_out_with_the_stack_of_each_rank(
    tmp_path: Path, models: dict[str, str], reward: str
) -> None:
    """A reward function that never returns, and a rank that takes no part in a collective; 3 seconds are 3 seconds."""
    hang = [f"model.reward={reward}"] if reward else []
    config = _config("rl", tmp_path, models, "run", {}, "parallel.timeout_minutes=0.05", "eval.prompts=0", *hang)
    begin = time.monotonic()
    assert exit_codes(_ends, 2, config, tmp_path, "" if reward else "update", _stay) == [7, 7]
    assert 3 < time.monotonic() - begin < 20
    status, said = _status(tmp_path / "run"), [(tmp_path / f"stderr-{rank}").read_text() for rank in (0, 1)]
    assert (status["state"], status["exit_code"]) == ("failed", 7)
    assert "parallel.timeout_minutes" in status["message"]
    assert all(f"Rank {rank} is here:" in said[rank] for rank in (0, 1)), said
    if reward:
        assert "python:tests.reward_functions:never did not return within 3 seconds" in status["message"]
        assert "reward_functions.py" in said[0] and "on_main" in said[1]
    else:
        assert "time.sleep(60)" in said[1]


def _lives(rank: int, folder: Path) -> str:
    """What run_status.json says of the time, once it says something else than at the start."""
    watch_module.BEAT, watch_module.LOOK = 0.01, 0.01
    run = RunFolder(folder)
    run.write_status("running")
    run._status["updated"] = "at the start"
    run._put_status()
    watch = Watch(run, lambda *_: None, 1.0)
    deadline = time.monotonic() + 10
    while run.read_status()["updated"] == "at the start" and time.monotonic() < deadline:
        time.sleep(0.02)
    watch.close()
    return str(run.read_status()["updated"])


def test_a_run_gives_signs_of_life(tmp_path: Path) -> None:
    assert run_ranks(_lives, 1, tmp_path) != ["at the start"]


def _end_with(rank: int, folder: Path, message: str) -> None:
    with (folder / "stderr").open("w") as sys.stderr:
        Watch(RunFolder(folder), lambda *_: None, 1.0)._end("failed", 3, message)


def test_what_the_watch_says_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    """It repeats what another rank said of its data."""
    assert exit_codes(_end_with, 1, tmp_path, "row 3: \x1b[2J\u202e") == [3]
    assert (tmp_path / "stderr").read_text() == "\nerror: row 3: \\x1b[2J\\u202e\n"


# ------------------------------------------------------------------------------------ the first error stands
class FullDisk:
    """A watch whose run folder cannot be written."""

    begun = True

    def close(self) -> None:
        pass

    def what_stands(self) -> str:
        return "No step was saved yet."

    def write_status(self, *_: object) -> None:
        raise StorageError("run_status.json cannot be written: no space left")


def _hits_a_full_disk(rank: int, error: BaseException) -> BaseException | None:
    watch: Any = FullDisk()
    try:
        with outcome_kept(watch):
            raise error
    except BaseException as found:
        return found


@pytest.mark.parametrize("error", [DataError("a bad row"), Requeue("saved"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_status_that_cannot_be_written_hides_no_error(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    (found,) = run_ranks(_hits_a_full_disk, 1, error)
    assert type(found) is type(error)
    assert "warning: run_status.json cannot be written: no space left" in capfd.readouterr().err


def test_a_refused_start_is_refused_for_its_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(RunFolder, "write_status", full)
    with pytest.raises(ConfigError, match="no such key"), refusal_noted(lambda: RunFolder(tmp_path)):
        raise ConfigError("there is no such key")
