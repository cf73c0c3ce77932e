"""Ctrl-C ends a command in one line with exit code 130, whatever it meets: imports, a library in C, a destructor,
native code that waits for another rank. So does a signal that asks to stop before a run began, with its own code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.run.terminal import ctrl_c
from gipo_mc.run.terminal.ending import ended
from tests.runs import save_models
from tests.scripts import Script
from tests.source_rules import ROOT


@pytest.fixture
def listens() -> Iterator[None]:
    """To Ctrl-C, which is ignored where the tests run in the background."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("listens")
def test_ctrl_c_that_a_library_turned_into_another_error_is_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def built() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise AttributeError("module 'yaml' has no attribute 'error'") from None
        return 0

    assert ended(built) == 130
    assert capsys.readouterr().err.split() == ["Interrupted."]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("listens")
def test_an_error_long_after_ctrl_c_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        monkeypatch.setattr(ctrl_c, "COMES_OF_IT", 0.0)
        time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ended(work)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("words", [["-m", "gipo_mc", "doctor"], ["scripts/plan.py"], ["scripts/train_sft.py"]])
def test_ctrl_c_while_a_command_is_imported_is_one_line(words: list[str], ignored: bool, tmp_path: Path) -> None:
    """As behind nohup where it is ignored: then it goes on, here to an error of the test's."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'gipo_mc.tools.command':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            raise RuntimeError('went on')\n"
        "sys.meta_path.insert(0, Pressed())\n"
        f"signal.signal(signal.SIGINT, signal.{'SIG_IGN' if ignored else 'default_int_handler'})\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, "went on" in done.stderr) == ((1, True) if ignored else (130, False)), done.stderr
    assert done.stdout == "" and (ignored or done.stderr == "\nInterrupted.\n")


_IN_A_DESTRUCTOR = """
import os, signal, sys
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import importing

class Module:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def work():
    with importing():
        Module()
        print("went on")
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "other":
    signal.signal(signal.SIGINT, lambda *_: print("heard"))
sys.exit(ended(work))
"""


@pytest.mark.parametrize("answer, code, out", [("own", 130, []), ("other", 0, ["heard", "went", "on"])])
def test_ctrl_c_in_a_destructor_of_what_is_imported_is_not_lost(answer: str, code: int, out: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _IN_A_DESTRUCTOR, answer], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (code, out)
    assert done.stderr == ("" if code == 0 else "\nInterrupted.\n")


_DROPPED = """
import os, signal, sys, time
from gipo_mc.run.terminal.ending import ended

class Module:
    def __del__(self):
        if sys.argv[1] == "error":
            raise ValueError("its own")
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def work():
    Module()
    if sys.argv[1] == "long":
        time.sleep(60)
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(ended(work))
"""


@pytest.mark.parametrize(
    "answer, code, said", [("long", 130, "\nInterrupted.\n"), ("over", 0, ""), ("error", 0, "ValueError: its own")]
)
def test_ctrl_c_that_a_destructor_drops_comes_again_behind_it(answer: str, code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", _DROPPED, answer], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and (said in done.stderr if answer == "error" else said == done.stderr)


@pytest.mark.parametrize(
    "words",
    [
        "generate model.policy=nothing --prompt x",
        "evaluate judge --ours nothing --against x=nothing --out e --set data.evaluation=[builtin]",
        "evaluate judge --ours f.jsonl --against x=f.jsonl --out e --judge judge.yaml",
    ],
)
def test_what_takes_long_to_import_is_left_at_once(words: str, tmp_path: Path) -> None:
    """Where Ctrl-C raised KeyboardInterrupt in these imports, libraries would abort the process, or drop it."""
    (tmp_path / "judge.yaml").write_text("name: a\nkind: reward\nmodel: nothing\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Asked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'transformers', 'megatron'):\n"
        "            answer = signal.getsignal(signal.SIGINT)\n"
        "            os.write(2, f'{name}: {getattr(answer, \"__name__\", answer)}\\n'.encode())\n"
        "sys.meta_path.insert(0, Asked())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "gipo_mc", *words.split()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    asked = [line for line in done.stderr.splitlines() if line.startswith(("torch: ", "transformers: ", "megatron: "))]
    assert done.returncode == 2 and len(asked) == 3, done.stderr
    assert all(line.endswith(": _quit") for line in asked)


# ---------------------------------------------------------------------------------------------------- of a run
@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _words(models: dict[str, str]) -> list[str]:
    return [
        f"model.policy={models['policy']}",
        "model.reward=python:gipo_mc.data.synthetic:proxy",
        "data.prompts=[builtin]",
        "data.prompt_length=8",
        "rollout.max_new_tokens=4",
        "rollout.batch_size=8",
        "algorithm.mini_batch_size=8",
        "eval.prompts=0",
    ]


def _status(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "runs" / "run" / "run_status.json").read_text())


def test_ctrl_c_ends_a_run_with_a_sentence(tmp_path: Path, models: dict[str, str]) -> None:
    arguments = [*_words(models), "run.iterations=100000", f"run.dir={tmp_path}/runs", "run.name=run", "device=cpu"]
    run = Script(ROOT / "scripts" / "train_gi_ppo.py", *arguments, "data.max_rows=16", cwd=tmp_path)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        assert run.poll() is None, run.ended().stderr
        time.sleep(0.1)
    run.interrupt()
    assert run.wait(60), "where a destructor drops it, too"
    done = run.ended()
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    stands = "No step was saved yet: the same command begins again."
    assert f"Interrupted. {stands} Ctrl-C saves nothing; SIGTERM (kill PID) saves" in done.stderr
    status = _status(tmp_path)
    assert status["state"] == "failed" and status["exit_code"] == 130 and status["step"] >= 1


def test_a_signal_before_the_run_begins_ends_it_and_leaves_no_done_of_an_earlier_start(
    tmp_path: Path, models: dict[str, str]
) -> None:
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "run_status.json").write_text(json.dumps({"state": "done", "exit_code": 0, "step": 9}))
    done = _asked_while_it_waits_for_another_rank(signal.SIGTERM, tmp_path, models)
    assert done.returncode == 75 and "before the run began" in done.stderr, done
    status = _status(tmp_path)
    assert (status["state"], status["exit_code"], status["step"]) == ("requeue", 75, 9)


def test_ctrl_c_reaches_a_rank_that_waits_for_another(tmp_path: Path, models: dict[str, str]) -> None:
    done = _asked_while_it_waits_for_another_rank(signal.SIGINT, tmp_path, models)
    assert done.returncode == 130 and done.stderr.endswith("\nInterrupted.\n"), done


def _asked_while_it_waits_for_another_rank(
    number: signal.Signals, tmp_path: Path, models: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Rank 0 waits, in native code, for a rank 1 that never comes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = [*_words(models), f"run.dir={tmp_path}/runs", "run.name=run", "device=cpu", "parallel.tensor=2"]
    started = Script(ROOT / "scripts" / "train_gi_ppo.py", *arguments, environment=alone, cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not _listens(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(started.pid, number)
    assert started.wait(20)
    return started.ended()


def _listens(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0
