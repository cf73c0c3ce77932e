"""The run folder: one owner, one command, earlier runs moved aside, failures in words."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from gipo_mc.errors import ConfigError, StorageError
from gipo_mc.run import folder as run_folder_module
from gipo_mc.run import manifest
from gipo_mc.run.folder import SILENCE, RunFolder, fell_silent, now
from gipo_mc.run.metrics import MetricsLogger
from tests.run.files import lines


def test_the_folder_takes_the_name_or_the_command(tmp_path):
    with RunFolder.open(tmp_path, "", "train_sft", resume=True) as folder:
        assert folder.path == tmp_path / "train_sft"
        assert folder.checkpoints.is_dir()
        assert folder.config.name == "config.yaml" and folder.results()[0] == ("metrics", str(folder.metrics))
        assert folder.results()[-1] == ("report", f"gipo-mc report {tmp_path}/train_sft")
    with RunFolder.open(tmp_path, "of two words", "train_dpo", resume=True) as folder:
        assert folder.results()[-1] == ("report", f"gipo-mc report '{tmp_path}/of two words'"), "a shell can run it"


@pytest.mark.parametrize("name", ["../out", "/abs", "a/../../b"])
def test_a_name_cannot_leave_the_directory(tmp_path, name):
    with pytest.raises(ConfigError, match=r"leaves run\.dir"):
        RunFolder.open(tmp_path, name, "train_sft", resume=True)


def test_a_run_does_not_move_in_with_a_model(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "mine" / name).write_text("mine")
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r"mine holds a model \(config\.json and safetensors\).*run\.name"):
            RunFolder.open(tmp_path, "mine", "train_sft", resume)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["r/checkpoints", "r/checkpoints/new", "r/checkpoints/step_00000001/policy"])
def test_a_run_does_not_move_into_checkpoints(tmp_path, name):
    """A checkpoint with a run in it holds files that its manifest does not name: it would not be used again."""
    step = tmp_path / "r" / "checkpoints" / "step_00000001"
    step.mkdir(parents=True)
    for file in (manifest.FILE, manifest.STATE):
        (step / file).write_text("{}")
    with pytest.raises(ConfigError, match=r"is or lies in the checkpoints .*run\.name"):
        RunFolder.open(tmp_path, name, "train_sft", resume=True)
    assert {path.name for path in (tmp_path / "r").rglob("*")} == {
        "checkpoints", "step_00000001", "MANIFEST.json", "state.json"
    }  # fmt: skip
    RunFolder.open(tmp_path, "r", "train_sft", resume=True).close()


def test_a_second_job_is_refused_and_told_who_holds_the_folder(tmp_path):
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=True):
        code = (
            "import sys; from gipo_mc.run.folder import RunFolder\n"
            "from gipo_mc.errors import GipoError\n"
            "try: RunFolder.open(sys.argv[1], 'toy', 'train_sft', True)\n"
            "except GipoError as error: print(error); sys.exit(error.exit_code)"
        )
        second = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert second.returncode == 6, second.stderr
    assert f"in use by process {os.getpid()} on " in second.stdout
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=True):
        pass  # free again


def test_the_lock_of_a_killed_job_is_gone(tmp_path):
    code = (
        "import sys, os; from gipo_mc.run.folder import RunFolder\n"
        "RunFolder.open(sys.argv[1], 'toy', 'train_sft', True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -9
    RunFolder.open(tmp_path, "toy", "train_sft", resume=True).close()


def test_status_is_written_whole_and_read_back(folder):
    folder.write_status("running", step=3)
    folder.write_status("requeue", 75, "row 3: \u202e\x9b\x1b", 12)
    assert folder.status.read_bytes().isascii(), "a terminal that shows the file acts on nothing in it"
    folder.write_status("requeue", 75, "saved, asked to stop", 12)
    status = json.loads(folder.status.read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("requeue", 75, 12)
    assert status["message"] == "saved, asked to stop" and status["command"] == "train_gi_ppo"
    assert status["pid"] == os.getpid() and status["host"]
    assert folder.read_status() == status
    folder.status.write_text("{half")
    assert folder.read_status() == {}


def test_another_command_may_not_continue_the_run(tmp_path):
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=True) as folder:
        folder.metrics.write_text('{"step": 1}\n')
        folder.write_status("done", 0)
    with pytest.raises(ConfigError, match="belongs to train_sft, this is train_gi_ppo"):
        RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True)
    with RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=False):
        pass


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_start_that_left_nothing_does_not_keep_the_name(tmp_path, state, monkeypatch, capsys):
    with RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True) as folder:
        folder.metrics.touch()
        folder.write_status(state, 3, "data.prompts names no file")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder_module, "_is_alive", lambda pid: False)
        RunFolder.open(tmp_path, "toy", "train_dpo", resume=True).close()
    toy = tmp_path / "toy"
    said = f"{toy} had a start of train_gi_ppo that left nothing: moved to {toy / 'previous-1'}.\n"
    assert capsys.readouterr().err == said and (toy / "previous-1" / "run_status.json").exists()
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=True) as folder:
        assert folder.read_status() == {}
        folder.write_status("failed", 3)
        (folder.checkpoints / "step_00000001").mkdir()
    with pytest.raises(ConfigError, match="belongs to train_sft"):
        RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True)


@pytest.mark.parametrize(
    ("there", "kept"),
    [([], False), (["runs/"], False), (["runs/toy/"], True), (["runs/toy/metrics.jsonl"], True)],
)
def test_a_refused_start_takes_back_the_folders_it_has_made(tmp_path, there, kept):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with RunFolder.open(tmp_path / "runs", "toy", "train_sft", resume=True) as folder:
        folder.write_status("failed", 2, "no such model")
        folder.take_back()
        assert (tmp_path / "runs").exists() == bool(there) and folder.path.exists() == kept
        assert (folder.read_status().get("exit_code") == 2) == kept
    RunFolder.open(tmp_path / "runs", "toy", "train_dpo", resume=True).close()


@pytest.mark.parametrize("more", ["checkpoints/step_00000001", "previous-1", "notes"])
def test_a_refused_start_takes_back_nothing_that_is_not_its_own(tmp_path, more):
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=True) as folder:
        folder.write_status("failed", 2)
        (folder.path / more).mkdir()
        folder.take_back()
        left = {path.name for path in folder.path.iterdir()}
        assert left == {".lock", "run_status.json", "checkpoints", more.partition("/")[0]}
    folder.take_back()
    RunFolder(folder.path).take_back()
    assert folder.path.exists(), "without the lock it may be another job's"


def test_a_lock_is_of_the_file_that_others_will_lock(tmp_path, monkeypatch):
    """Its holder took the folder back between the open and the lock of the next job."""
    path, flock = tmp_path / ".lock", fcntl.flock

    def late(descriptor, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunFolder.open(tmp_path, ".", "train_sft", resume=True), pytest.raises(StorageError, match="in use by"):
        RunFolder.open(tmp_path, ".", "train_sft", resume=True)


@pytest.mark.parametrize("state", ["running", "requeue", "failed"])
def test_a_start_that_is_going_on_or_continues_keeps_the_name(tmp_path, state):
    """The lock may not be seen from another host; a reference's rewards took hours."""
    with RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True) as folder:
        folder.write_status(state)
        if state == "failed":
            (folder.path / "reference_rewards.jsonl").write_text("{}\n")
    before = folder.status.read_bytes()
    with pytest.raises(ConfigError, match="belongs to train_gi_ppo, this is train_sft"):
        RunFolder.open(tmp_path, "toy", "train_sft", resume=True)
    assert folder.status.read_bytes() == before and not (folder.path / "previous-1").exists()


def test_starting_anew_moves_the_earlier_run_aside(tmp_path):
    for number in (1, 2):
        with RunFolder.open(tmp_path, "toy", "train_sft", resume=False) as folder:
            with MetricsLogger(folder) as log:
                log.log(1, {"a": float(number)})
            folder.write_status("done", 0)
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=False) as folder:
        assert folder.set_aside == tmp_path / "toy" / "previous-2"
        assert not folder.metrics.exists() and list(folder.checkpoints.iterdir()) == []
    assert lines(tmp_path / "toy" / "previous-1" / "metrics.jsonl") == [{"step": 1, "a": 1.0}]
    assert lines(tmp_path / "toy" / "previous-2" / "metrics.jsonl") == [{"step": 1, "a": 2.0}]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        RunFolder.open(tmp_path / "runs", "toy", "train_sft", resume=True)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="cannot be locked"):
        RunFolder.open(tmp_path, "toy", "train_sft", resume=True)


def test_about_keeps_order_and_repeated_labels(folder):
    lines = [("policy", "llama"), ("held out", "easy"), ("held out", "hard"), ("device", "cpu")]
    folder.write_about(lines)
    assert [tuple(line) for line in json.loads(folder.about.read_text())] == lines


def test_reading_back_needs_no_lock(folder):
    folder.write_status("running")
    assert RunFolder(folder.path).read_status()["state"] == "running"


def test_a_refused_start_says_that_the_run_which_was_done_there_is_as_it_was(tmp_path):
    with RunFolder.open(tmp_path, "run", "train_sft", True) as folder:
        folder.write_status("done", 0, step=3)
    RunFolder(tmp_path / "run").note("failed", 2, "no such key")
    status = RunFolder(tmp_path / "run").read_status()
    assert (status["exit_code"], status["step"]) == (2, 3)
    assert status["message"] == "no such key\nThe run that was done here, at step 3, is as it was."


def test_what_a_rank_said_of_a_refused_start_stands_when_the_others_are_asked_to_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with RunFolder.open(tmp_path, "run", "train_sft", True) as folder:
        folder.write_status("done", 0, step=3)
    began = now()
    RunFolder(tmp_path / "run", started=began).note("failed", 2, "no such key")
    RunFolder(tmp_path / "run", started=began).note("requeue", 75, "asked to stop")
    assert RunFolder(tmp_path / "run").read_status()["exit_code"] == 2
    RunFolder(tmp_path / "run", started="9999").note("requeue", 75, "asked to stop")  # a later start
    assert RunFolder(tmp_path / "run").read_status()["exit_code"] == 75


def test_a_sign_of_life_is_written_while_the_run_runs_and_not_after(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_status("running", step=3)
    monkeypatch.setattr(run_folder_module, "now", lambda: "later")
    folder.beat()
    assert (folder.read_status()["updated"], folder.read_status()["step"]) == ("later", 3)
    folder.write_status("done", 0)
    monkeypatch.setattr(run_folder_module, "now", lambda: "much later")
    folder.beat()
    assert folder.read_status()["updated"] == "later"


@pytest.mark.parametrize("seconds", [-2 * SILENCE, -0.5 * SILENCE, 0.5 * SILENCE, 2 * SILENCE])
def test_a_run_elsewhere_is_believed_by_its_last_sign_of_life(seconds):
    """One from the future is none: the clock was set back since."""
    updated = datetime.now(UTC) + timedelta(seconds=seconds)
    status = {"state": "running", "host": "elsewhere", "pid": 1, "step": 4, "updated": updated.isoformat()}
    assert ("ended without a word after step 4" in fell_silent(status)) == (abs(seconds) > SILENCE)


def test_a_job_whose_folder_was_taken_in_spite_of_its_lock_writes_nothing_more(tmp_path):
    """As on a network file system whose locks hold on one host only."""
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=True) as folder:
        folder.write_status("running", step=3)
        (folder.path / ".lock").write_text(json.dumps({"pid": 7, "host": "node9", "since": "now"}))
        with pytest.raises(StorageError, match=r"taken over by process 7 on node9 .*locks that other hosts do not see"):
            folder.write_status("running", step=4)
        with pytest.raises(StorageError, match="taken over"):
            folder.still_ours()
        assert folder.read_status()["step"] == 3
    with RunFolder.open(tmp_path, "toy", "train_sft", resume=True) as folder:
        folder.write_status("done", 0)
