"""Weights & Biases for real, offline: what its file holds, a run that continues, secrets, a key that is not there."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import environment
from gipo_mc.errors import ConfigError
from gipo_mc.run.trackers.protocol import End, Memory
from gipo_mc.run.trackers.weights_biases import WeightsAndBiases, _has_key, _mode
from tests.run.trackers.fakes import about


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything it writes below the test's folder, and no key."""
    monkeypatch.setattr(environment, "_hidden", {})
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ERROR_REPORTING", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


def records(folder: Path) -> Iterator[Any]:
    """What the file of an offline run holds."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("*.wandb")
    data, place, whole = path.read_bytes(), 7, b""  # behind its header a log of LevelDB, in blocks of 32 KiB
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def whole(folder: Path) -> list[Any]:
    """The records up to the last one, which its process may write a moment after `finish` returns."""
    deadline = time.monotonic() + 20
    while not any(record.HasField("exit") for record in records(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return list(records(folder))


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> its row, of all metrics."""
    found: dict[int, dict[str, Any]] = {}
    for record in whole(folder):
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found[int(items.pop("_step"))] = {key: value for key, value in items.items() if key[0] != "_"}
    return found


def test_a_run_and_its_continuation_have_one_id_and_each_step_once(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)
    monkeypatch.setenv("OTHER_SECRET", "s3cret-of-the-environment")
    run, report = places / "run" / "trackers", places / "report.html"
    report.write_text("<!doctype html>")
    first = WeightsAndBiases()
    first.start(about(run, tags=[], group="seeds", wandb_mode="offline"))
    for step in range(3):
        first.scalars(step, {"loss": 1.0 / (step + 1), "reward/domain/a b": 2.0})
    first.histogram(2, "distribution/reward", [0.0, 1.0, 1.0])
    first.text(2, "warnings", "<b>careful</b>")
    first.finish(End("failed", 5, "NumericsError"))
    begun = rows(run)
    assert list(begun) == [0, 1, 2] and begun[1] == {"loss": 0.5, "reward/domain/a b": 2.0}
    assert begun[2]["distribution/reward/_type"] == "histogram"
    (page,) = run.rglob("*.html")
    assert page.read_text() == "<pre>&lt;b&gt;careful&lt;/b&gt;</pre>"
    made = next(record.run for record in records(run) if record.HasField("run"))
    assert (made.project, made.run_group, made.job_type, made.display_name) == ("gipo_mc", "seeds", "train_sft", "toy")
    assert list(made.tags) == ["mine", "train_sft"]
    config = {item.key: json.loads(item.value_json) for item in made.config.update}
    assert config["policy"]["lr"] == 1e-5 and config["device"] == "auto"

    kept = run / "kept"
    (run / "wandb").rename(kept)
    second = WeightsAndBiases()
    second.start(about(run, begin=1, logged=2, wandb_mode="offline"))
    second.text(1, "warnings", "it goes on")
    for step in (2, 3, 4):
        second.scalars(step, {"loss": 9.0})
    second.finish(End("done", 0, report=report))
    assert list(rows(run / "wandb")) == [3, 4], "step 2 was sent before"
    assert next(record.run.run_id for record in records(run / "wandb") if record.HasField("run")) == made.run_id
    assert json.loads((run / "wandb.json").read_text())["sent"] == 4
    ends = [[r.exit.exit_code for r in records(place) if r.HasField("exit")] for place in (kept, run / "wandb")]
    assert ends == [[5], [0]]
    everything = b"".join(path.read_bytes() for path in places.rglob("*") if path.is_file())
    for secret in (b"0123456789abcdef", b"s3cret-of-the", b"--password"):
        assert secret not in everything
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_what_a_killed_job_had_not_written_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is whole when the next one begins; the library writes once a second, and loses the rest with its parent."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tracker = WeightsAndBiases()
    tracker._memory = Memory(tmp_path / "wandb.json")
    for now[0], step, written in ((0, 1, None), (5, 2, None), (6, 3, None), (8, 4, 2 - 1), (20, 5, 3)):
        tracker._remember(step)
        assert tracker._memory.values.get("sent") == written, step


def test_online_needs_a_key_and_nothing_is_asked_at_the_terminal(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _mode("auto") == "offline" and _mode("offline") == "offline"
    with pytest.raises(ConfigError, match="wandb login"):
        WeightsAndBiases().start(about(places / "run", wandb_mode="online"))
    (places / "home" / ".netrc").write_text("machine api.wandb.ai login user password 123\n")
    assert _has_key() and _mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not _has_key()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert _mode("auto") == _mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert _mode("auto") == "offline"
