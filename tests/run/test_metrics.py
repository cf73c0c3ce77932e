"""Metrics, distributions and samples: whole lines, no duplicates after a resume, TensorBoard beside them."""

import errno
import os
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gipo_mc.errors import StorageError
from gipo_mc.run.metrics import KEPT_VALUES, MetricsLogger
from gipo_mc.run.trackers.feeds import Feeds
from tests.run.files import lines


def scalars(folder, name):
    events = EventAccumulator(str(folder.tensorboard), size_guidance={"histograms": 0})
    events.Reload()
    return [(event.step, round(event.value, 5)) for event in events.Scalars(name)]


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


def test_a_resume_in_the_same_second_comes_behind_what_was_logged(folder):
    """TensorBoard reads event files by name: the second they were made in, then host, process and a counter."""
    with MetricsLogger(folder) as log:
        log.log(1, {"a": 1.0})
        log.log(2, {"a": 2.0})
    (first,) = folder.tensorboard.iterdir()
    now = str(int(time.time()))
    first.rename(first.with_name(f"events.out.tfevents.{now}.~"))  # behind any host
    with MetricsLogger(folder) as log:
        log.truncate_after(1)
        log.log(2, {"a": 20.0})
    assert scalars(folder, "a") == [(1, 1.0), (2, 20.0)]


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


def test_a_full_disk_under_tensorboard_is_a_storage_error(folder, monkeypatch):
    with MetricsLogger(folder) as log:
        log.log(1, {"a": 1.0})

        def refuse(*_args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(log._board._writer, "_get_file_writer", refuse)
            with pytest.raises(StorageError, match=r"tensorboard cannot be written: No space left on device; [\d,]+"):
                log.log(2, {"a": 2.0})


def test_values_beyond_the_bins_of_tensorboard_are_kept(folder):
    with MetricsLogger(folder) as log:
        log.histogram(1, "reward", [-1e30] * 8)
        log.histogram(2, "reward", [1e30, 0.5, -3e38])
    first, second = lines(folder.distributions)
    assert first["values"] == [-1e30] * 8 and second["values"] == [-3e38, 0.5, 1e30]


def test_trackers_that_take_long_to_end_are_told_of(folder, monkeypatch, capsys):
    monkeypatch.setattr("gipo_mc.run.terminal.waiting.FIRST", 0.05)
    monkeypatch.setattr("gipo_mc.run.trackers.feeds.Feeds.close", lambda self: time.sleep(0.3) or ["It lacks one."])
    with MetricsLogger(folder) as logger:
        logger.log(1, {"a": 1.0})
        logger._feeds = object.__new__(Feeds)
    said = capsys.readouterr().err.splitlines()
    assert said == ["Telling the trackers how the run ended, 0 s", "warning: It lacks one."]
