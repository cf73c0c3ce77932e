"""Commands as a user starts them: wrong input is one clear sentence and the exit code of the contract."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import Config
from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.rl import gi_ppo
from gipo_mc.run.command import BuiltinTask, run_command
from gipo_mc.run.folder import fell_silent
from gipo_mc.run.outcome import how_it_ended
from gipo_mc.supervised import reward_model, sft
from tests.ranks import run_ranks
from tests.runs import save_models
from tests.scripts import Script, run_script

ROOT = Path(__file__).parents[2]
TRAINERS = {"sft": sft.train, "reward": reward_model.train, "rl": gi_ppo.train}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    models = save_models(folder)
    train_bpe_tokenizer(["a b"], 300, folder / "tokenizer")
    return models | {"tokenizer": str(folder / "tokenizer")}


def _command(rank: int, kind: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """(exit code, stderr) of a command in this rank's process."""
    errors = folder / f"stderr-{rank}"
    with errors.open("w") as stream:
        sys.stderr = stream
        code = run_command("test", TRAINERS[kind], argv=arguments)
    return code, errors.read_text()


def _fails(tmp_path: Path, kind: str, *arguments: str, ranks: int = 1) -> tuple[int, str]:
    base = [f"run.dir={tmp_path}/runs", "run.name=run", "device=cpu", "parallel.timeout_minutes=1", "data.max_rows=16"]
    results = run_ranks(_command, ranks, kind, [*base, *arguments], tmp_path)
    assert {code for code, _ in results} == {results[0][0]}, "ranks end with different codes"
    said = [text for _, text in results if "error:" in text]
    assert len(said) == 1 and said[0].count("error:") == 1, f"said by {len(said)} ranks: {said}"
    assert "Traceback" not in said[0]
    return results[0][0], said[0]


def _status(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "runs" / "run" / "run_status.json").read_text())  # type: ignore[no-any-return]


def _rl(models: dict[str, str], **changes: str) -> list[str]:
    values = {
        "model.policy": models["policy"],
        "model.reward": "python:gipo_mc.data.synthetic:proxy",
        "data.prompts": "[builtin]",
        "data.prompt_length": "8",
        "rollout.max_new_tokens": "4",
        "rollout.batch_size": "8",
        "algorithm.mini_batch_size": "8",
        "run.iterations": "1",
        "eval.prompts": "0",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]


class RecordedTask:
    """A built-in task that only says what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.task = BuiltinTask(self._base, lambda config: self.calls.append(f"prepare seed {config.run.seed}"))

    def _base(self) -> dict[str, Any]:
        self.calls.append("base")
        return {"run": {"seed": 7}}

    def train(self, config: Config) -> None:
        self.calls.append(f"train seed {config.run.seed}")


@pytest.mark.parametrize("word", ["run.name=x", "device=cpu", "algorithm.name=ppo", "data.max_rows=5"])
def test_the_built_in_task_is_prepared_where_nothing_names_a_model_or_data(word: str) -> None:
    recorded = RecordedTask()
    assert run_command("test", recorded.train, argv=[word], builtin=recorded.task) == 0
    assert recorded.calls == ["base", "prepare seed 7", "train seed 7"]


@pytest.mark.parametrize(
    "word",
    [
        *(f"model.{name}=runs/builtin_sft" for name in ("policy", "reference", "critic", "reward", "tokenizer")),
        *(f"data.{name}=[builtin]" for name in ("prompts", "preferences", "demonstrations")),
    ],
)
def test_a_configuration_that_names_a_model_or_data_never_touches_the_built_in_task(word: str) -> None:
    recorded = RecordedTask()
    assert run_command("test", recorded.train, argv=[word], builtin=recorded.task) == 0
    assert recorded.calls == ["train seed 1"]


def test_an_exit_inside_a_run_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("test", lambda config: sys.exit(0), argv=["device=cpu"]) == 1
    said = capsys.readouterr().err
    assert "error: exit(0) was called at " in said and "test_command.py:" in said


def test_a_run_whose_reader_has_gone_ends_as_other_commands_do(capsys: pytest.CaptureFixture[str]) -> None:
    def prints(config: Config) -> None:
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904 - as rich.console does

    assert run_command("test", prints, argv=["device=cpu"]) == 141
    assert capsys.readouterr().err == ""
    stop = SystemExit(1)
    stop.__context__ = BrokenPipeError()
    assert how_it_ended(stop)[:2] == ("failed", 141)


def test_a_command_leaves_no_thread_and_no_open_file() -> None:
    """Programs and tests call several commands one after the other."""

    def held() -> tuple[set[str], int]:
        return {thread.name for thread in threading.enumerate()}, len(os.listdir("/proc/self/fd"))

    recorded = RecordedTask()
    handler, before = signal.getsignal(signal.SIGTERM), held()
    for _ in range(2):
        assert run_command("test", recorded.train, argv=["device=cpu"], builtin=recorded.task) == 0
    assert held() == before and signal.getsignal(signal.SIGTERM) is handler
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("ranks", [1, 2])
def test_bad_configuration_is_refused_before_anything_starts(
    tmp_path: Path, models: dict[str, str], ranks: int
) -> None:
    code, said = _fails(tmp_path, "rl", *_rl(models), "algorithm.betapolicy=1", "rollout.topp=2", ranks=ranks)
    assert code == 2 and "algorithm.betapolicy: there is no such key; did you mean algorithm.beta_policy?" in said
    assert "rollout.topp" in said and "did you mean rollout.top_p" in said
    assert not (tmp_path / "runs").exists()


def test_a_layout_that_does_not_divide_the_ranks(tmp_path: Path, models: dict[str, str]) -> None:
    code, said = _fails(tmp_path, "rl", *_rl(models), "parallel.tensor=2", "parallel.pipeline=2", ranks=2)
    assert code == 2 and "parallel.tensor=2 x parallel.pipeline=2 = 4 does not divide the 2 ranks" in said


def test_tensor_parallelism_that_does_not_divide_the_heads(tmp_path: Path, models: dict[str, str]) -> None:
    """4 heads and 2 key-value heads on 3 ranks."""
    code, said = _fails(tmp_path, "rl", *_rl(models), "parallel.tensor=3", ranks=3)
    assert code == 2 and "parallel.tensor=3" in said and "4" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("kind", "arguments", "code", "words"),
    [
        ("sft", ["data.demonstrations=[{tmp}/nowhere.jsonl]"], 3, ["nowhere.jsonl"]),
        ("sft", ["data.demonstrations=[{tmp}/bad.jsonl]", "data.format=pairs"], 3, ["bad.jsonl:2"]),
        (
            "sft",
            ["data.demonstrations=[builtin]", "model.tokenizer={tokenizer}"],
            2,
            ["/tokenizer) has ids up to", "vocabulary of 22"],
        ),
        ("sft", ["data.demonstrations=[builtin]", "model.policy={tmp}/gone"], 2, ["model.policy", "gone"]),
        ("sft", ["data.demonstrations=[builtin]", "model.policy={tmp}/empty"], 4, ["no checkpoint yet"]),
        ("sft", ["data.demonstrations=[builtin]", "model.policy="], 2, ["policy is empty", "runs the built-in task"]),
        ("sft", ["model.policy=no/where"], 2, ["policy=no/where: there is no such folder", "the hub is out of reach"]),
        ("rl", ["model.reward=''"], 2, ["model.reward is empty"]),
        ("rl", ["model.reward={policy}"], 4, ["score"]),
        ("rl", ["model.reward=python:nowhere:f"], 2, ["python:nowhere:f", "PYTHONPATH"]),
        ("rl", ["model.reward=python:math:pi"], 2, ["float, not a function"]),
        ("rl", ["model.reward=python:tests.reward_functions:one_short"], 3, ["7 rewards for 8 responses"]),
        (
            "rl",
            ["model.reward=python:tests.reward_functions:not_a_number", "algorithm.invalid_patience=1"],
            5,
            ["Responses without a usable reward: 1 (", "the reward nan"],
        ),
        (
            "rl",
            ["model.reward=python:tests.reward_functions:none_at_all", "run.iterations=2"],
            5,
            ["No optimizer step of the 2 iterations changed the policy", "Responses without a usable reward: 8 ("],
        ),
        (
            "rl",
            ["model.reward=python:tests.reward_functions:huge", "algorithm.invalid_patience=1"],
            5,
            ["Responses without a usable reward: 8 (", "the reward -1e+30"],
        ),
        ("rl", ["model.reward=python:tests.reward_functions:words"], 3, ["returned 'good' for response 0: a number"]),
        ("rl", ["model.reward=python:tests.reward_functions:nothing"], 3, ["returned None for response 1: a number"]),
        ("rl", ["model.reward=python:tests.reward_functions:beyond"], 3, ["for response 0: a number is expected"]),
        ("rl", ["model.reward=python:tests.reward_functions:leaves"], 3, ["SystemExit: 0"]),
        (
            "rl",
            ["model.reward=python:tests.reward_functions:broken"],
            3,
            ["ZeroDivisionError", "With reward.on_error=skip", "No step was saved yet: the same command begins again."],
        ),
    ],
)
def test_wrong_input_is_one_sentence_and_its_exit_code(
    tmp_path: Path, models: dict[str, str], kind: str, arguments: list[str], code: int, words: list[str]
) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + '\n{"prompt": "a", "chosen": \n')
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    places = {"tmp": str(tmp_path), **models}
    base = (
        _rl(models)
        if kind == "rl"
        else [f"model.policy={models['policy']}", "train.batch_size=4", "data.sequence_length=24"]
    )
    found, said = _fails(tmp_path, kind, *base, *(argument.format(**places) for argument in arguments))
    assert found == code, said
    for word in words:
        assert word in said
    began = "python:tests." in arguments[0]
    assert (tmp_path / "runs").exists() == began, "a start that is refused takes its folder back"
    if not began:
        (tmp_path / "runs" / "run").mkdir(parents=True)
        assert _fails(tmp_path, kind, *base, *(argument.format(**places) for argument in arguments)) == (found, said)
    status = _status(tmp_path)
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert words[0] in status["message"]


def test_an_error_on_two_ranks_is_said_once(tmp_path: Path, models: dict[str, str]) -> None:
    bad = ["model.reward=python:tests.reward_functions:one_short", "parallel.tensor=2"]
    assert _fails(tmp_path, "rl", *_rl(models), *bad, ranks=2)[0] == 3


def test_a_second_job_on_the_same_run_folder_is_refused(tmp_path: Path, models: dict[str, str]) -> None:
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said = _fails(tmp_path, "rl", *_rl(models), ranks=2)
    assert code == 6 and "in use by" in said and "run.name" in said
    assert not (folder / "run_status.json").exists(), "the status belongs to the job that has the folder"


# ------------------------------------------------------------------------------------------------ as real processes
def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def test_torchrun_reports_the_error_once_and_the_status_keeps_the_code(tmp_path: Path, models: dict[str, str]) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\nnot json\n")
    arguments = ["run.name=run", f"run.dir={tmp_path}/runs", "device=cpu", f"model.policy={models['policy']}"]
    arguments += [f"data.demonstrations=[{tmp_path}/bad.jsonl]", "data.format=pairs", "train.batch_size=4"]
    arguments += ["data.sequence_length=24"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "runs" / "run").mkdir(parents=True)
    done = subprocess.run(
        [*torchrun, str(ROOT / "scripts" / "train_sft.py"), *arguments],
        capture_output=True, text=True, timeout=120, env=_environment(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, "torchrun knows no other code"
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "bad.jsonl:1" in said[0]
    assert _status(tmp_path)["exit_code"] == 3


@pytest.mark.parametrize("reward", ["length", "vanishes"])
def test_an_attempt_that_ended_without_a_word_is_told_at_the_next_start(
    tmp_path: Path, models: dict[str, str], reward: str
) -> None:
    """Killed from outside, and ended by os._exit(0) in a reward function, which no code of the process can see."""
    arguments = [*_rl(models), f"run.dir={tmp_path}/runs", "run.name=run", "device=cpu", "data.max_rows=16"]
    script = ROOT / "scripts" / "train_gi_ppo.py"
    paid = f"model.reward=python:tests.reward_functions:{reward}"
    killed = Script(
        script, *arguments, paid, "run.iterations=100000", environment={"PYTHONPATH": str(ROOT)}, cwd=tmp_path
    )
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and killed.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    if killed.poll() is None:
        os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(10) and killed.poll() == (0 if reward == "vanishes" else -signal.SIGKILL)
    status = _status(tmp_path)
    assert (status["state"], status["exit_code"]) == ("running", None)
    words = fell_silent(status)
    assert "ended without a word after step" in words and f"process {killed.pid}" in words
    told = run_script(ROOT / "scripts" / "run_status.py", str(metrics.parent))
    assert told.returncode == 1 and words in told.stdout
    done = run_script(script, *arguments, cwd=tmp_path)
    assert done.returncode == 0 and words in " ".join(done.stdout.split()), done
    assert "  checkpoints  " in done.stdout, "what the next command starts from"
    assert words in (metrics.parent / "warnings.jsonl").read_text()
    told = run_script(ROOT / "scripts" / "run_status.py", str(metrics.parent))
    assert told.returncode == 0 and "done, exit code 0, step 1." in told.stdout
    later = run_script(ROOT / "scripts" / "run_status.py", str(metrics.parent), "--since", str(time.time() + 60))
    assert later.returncode == 1 and "of an earlier start" in later.stdout
