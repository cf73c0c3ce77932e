"""Log files and the run folder: whole lines, no duplicates after a resume, one owner, failures in words."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gipo_mc.errors import ConfigError, DataError, StorageError
from gipo_mc.run import folder as run_folder_module
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.jsonl import JsonLines, printable, read_jsonl, write_atomically
from gipo_mc.run.metrics import KEPT_VALUES, MetricsLogger


@pytest.fixture
def folder(tmp_path):
    with RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True) as opened:
        yield opened


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder, name):
    events = EventAccumulator(str(folder.tensorboard), size_guidance={"histograms": 0})
    events.Reload()
    return [(event.step, round(event.value, 5)) for event in events.Scalars(name)]


# --- metrics -----------------------------------------------------------------------------------------------------


def test_metrics_are_one_flat_object_a_line_and_tensorboard_scalars_of_the_same_names(folder):
    with MetricsLogger(folder) as log:
        log.log(1, {"reward/mean": torch.tensor(0.5), "kl/mean": 1})
        log.log(2, {"reward/mean": np.float32(0.25), "kl/mean": 2.0})
    assert lines(folder.metrics) == [
        {"step": 1, "reward/mean": 0.5, "kl/mean": 1.0},
        {"step": 2, "reward/mean": 0.25, "kl/mean": 2.0},
    ]
    assert scalars(folder, "reward/mean") == [(1, 0.5), (2, 0.25)]


def test_a_line_is_in_the_file_when_log_returns(folder):
    log = MetricsLogger(folder)
    log.log(1, {"a": 1.0})
    assert lines(folder.metrics) == [{"step": 1, "a": 1.0}]
    log.close()


def test_non_finite_values_are_null_and_flagged(folder):
    with MetricsLogger(folder) as log:
        log.log(1, {"policy/loss": float("nan"), "kl/mean": float("inf"), "a": 1.0})
    assert lines(folder.metrics) == [
        {"step": 1, "policy/loss": None, "kl/mean": None, "a": 1.0, "nonfinite": ["policy/loss=nan", "kl/mean=inf"]}
    ]


def test_a_step_is_logged_once(folder):
    with MetricsLogger(folder) as log:
        log.log(3, {"a": 1.0})
        for step in (3, 2):
            with pytest.raises(ValueError, match="logged already"):
                log.log(step, {"a": 1.0})
    with MetricsLogger(folder) as log, pytest.raises(ValueError, match="truncate_after"):
        log.log(3, {"a": 1.0})


def test_a_resumed_run_has_each_step_once_everywhere(folder):
    with MetricsLogger(folder) as log:
        for step in range(1, 6):
            log.log(step, {"a": float(step)})
            log.samples(step, [{"prompt": "p", "response": "r"}])
            log.histogram(step, "reward", [1.0, 2.0])
            log.warn(step, "careful")
    with open(folder.metrics, "a") as file:
        file.write('{"step": 6, "a"')  # the job was killed here
    with MetricsLogger(folder) as log:
        assert log.truncate_after(3) == 2 * 4 + 1
        for step in (4, 5):
            log.log(step, {"a": 10.0 * step})
            log.samples(step, [{"prompt": "p", "response": "new"}])
    assert [row["step"] for row in lines(folder.metrics)] == [1, 2, 3, 4, 5]
    assert [row["a"] for row in lines(folder.metrics)] == [1, 2, 3, 40, 50]
    assert [row["step"] for row in lines(folder.samples)] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in lines(folder.distributions)] == [1, 2, 3]
    assert [row["step"] for row in lines(folder.warnings)] == [1, 2, 3]
    assert scalars(folder, "a") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]


def test_truncating_to_the_last_step_leaves_the_bytes_alone(folder):
    with MetricsLogger(folder) as log:
        log.log(1, {"a": 0.1 + 0.2})
    before = folder.metrics.read_bytes()
    with MetricsLogger(folder) as log:
        assert log.truncate_after(1) == 0
    assert folder.metrics.read_bytes() == before


def test_a_whole_last_line_that_lacks_its_newline_is_mended(folder):
    folder.metrics.write_text('{"step": 1, "a": 1.0}')
    with MetricsLogger(folder) as log:
        log.truncate_after(1)
        log.log(2, {"a": 2.0})
    assert [row["step"] for row in lines(folder.metrics)] == [1, 2]


def test_truncation_comes_first(folder):
    with MetricsLogger(folder) as log:
        log.log(1, {"a": 1.0})
        with pytest.raises(ValueError, match="before the first log"):
            log.truncate_after(0)


@pytest.mark.parametrize("count", [1, 5, KEPT_VALUES, 5000])
def test_a_distribution_keeps_its_shape(folder, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(1))
    with MetricsLogger(folder) as log:
        log.histogram(1, "reward", values)
    (row,) = lines(folder.distributions)
    assert row["count"] == count and row["dropped"] == 0
    assert len(row["values"]) == min(count, KEPT_VALUES)
    assert row["values"] == sorted(row["values"])
    assert row["values"][0] == pytest.approx(float(values.min()), rel=1e-4)
    assert row["values"][-1] == pytest.approx(float(values.max()), rel=1e-4)
    assert np.median(row["values"]) == pytest.approx(float(np.median(values.numpy())), rel=1e-4)
    assert row["mean"] == pytest.approx(float(values.mean()), abs=1e-6)


def test_a_distribution_without_finite_values(folder):
    with MetricsLogger(folder) as log:
        log.histogram(1, "reward", [])
        log.histogram(1, "reward", [float("nan")])
        log.histogram(2, "reward", [float("inf"), 1.0])
    (row,) = lines(folder.distributions)
    assert (row["step"], row["count"], row["dropped"], row["values"]) == (2, 1, 1, [1.0])


def test_samples_escape_control_characters_and_survive_any_text(folder):
    text = "line\nbell\x07 esc\x1b[31m c1\x9b over\u202e half\ud800 Grüße 日本"
    with MetricsLogger(folder) as log:
        log.samples(1, [{"prompt": text, "response": "", "reward": float("nan"), "group_probs": [0.5, float("inf")]}])
    raw = folder.samples.read_bytes()
    assert raw.count(b"\n") == 1
    assert not any((byte < 32 and byte != 10) or byte == 127 for byte in raw)
    assert "\x9b" not in raw.decode() and "\u202e" not in raw.decode() and "日本" in raw.decode()
    (row,) = lines(folder.samples)
    assert row == {"step": 1, "prompt": text, "response": "", "reward": None, "group_probs": [0.5, None]}


def test_printable_is_one_safe_line():
    assert printable("a\nb\x1b\x9b\u202e\ud800é") == "a\\nb\\x1b\\x9b\\u202e\\ud800é"


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": 2, "a": }', "Expecting value"),
        (b"[1]", "this is a list"),
        (b'{"a": 1}', '"step" must be an integer'),
        (b'{"step": "2"}', '"step" must be an integer'),
        (b'{"step": 2, "a": NaN}', "NaN is not JSON"),
        (b"\xff\xfe", "codec can't decode"),
        (b'{"step": 2\x00}', "delimiter"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path, line, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=rf"metrics\.jsonl:2: .*{reason}"):
        read_jsonl(path)


def test_only_an_open_last_line_is_forgiven(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "rew')
    found = read_jsonl(path)
    assert [row["step"] for row in found.rows] == [1]
    assert "metrics.jsonl:2" in found.note and "left out" in found.note
    path.write_bytes(b'{"step": 1}\n{"step": 2, "rew\n')
    with pytest.raises(DataError, match=r":2: "):
        read_jsonl(path)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_jsonl(tmp_path / "none.jsonl")


# --- a disk that refuses -----------------------------------------------------------------------------------------


def limit_file_size(size):
    """Make writes past `size` bytes fail with EFBIG, as a full disk makes them fail with ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def test_a_refused_append_leaves_whole_lines_and_says_the_free_bytes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    file.append({"step": 1})
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_file_size(len(before) + 10)  # ten bytes of the next line still fit
    try:
        with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written: .*[\d,]+ bytes are free .*needed"):
            file.append({"step": 2, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before


def test_a_refused_replacement_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "run_status.json"
    write_atomically(path, "old")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_file_size(10)
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write_atomically(path, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["run_status.json"]


def test_a_full_disk_under_tensorboard_is_a_storage_error(folder, monkeypatch):
    with MetricsLogger(folder) as log:
        log.log(1, {"a": 1.0})

        def refuse(*_args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(log._writer, "add_scalar", refuse)
            with pytest.raises(StorageError, match=r"tensorboard cannot be written: No space left on device; [\d,]+"):
                log.log(2, {"a": 2.0})


# --- run folder --------------------------------------------------------------------------------------------------


def test_the_folder_takes_the_name_or_the_command(tmp_path):
    with RunFolder.open(tmp_path, "", "train_sft", resume=True) as folder:
        assert folder.path == tmp_path / "train_sft"
        assert folder.checkpoints.is_dir()
        assert folder.config.name == "config.yaml" and folder.report.name == "report.html"


@pytest.mark.parametrize("name", ["../out", "/abs", "a/../../b"])
def test_a_name_cannot_leave_the_directory(tmp_path, name):
    with pytest.raises(ConfigError, match=r"leaves run\.dir"):
        RunFolder.open(tmp_path, name, "train_sft", resume=True)


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
        folder.write_status("done", 0)
    with pytest.raises(ConfigError, match="belongs to train_sft, this is train_gi_ppo"):
        RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True)
    with RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=False):
        pass


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

    monkeypatch.setattr(run_folder_module.fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="cannot be locked"):
        RunFolder.open(tmp_path, "toy", "train_sft", resume=True)


def test_about_keeps_order_and_repeated_labels(folder):
    lines = [("policy", "llama"), ("held out", "easy"), ("held out", "hard"), ("device", "cpu")]
    folder.write_about(lines)
    assert [tuple(line) for line in json.loads(folder.about.read_text())] == lines


def test_reading_back_needs_no_lock(folder):
    folder.write_status("running")
    assert RunFolder(folder.path).read_status()["state"] == "running"
