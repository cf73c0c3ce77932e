"""What a verification has read is not read again, unless it may have changed; checkpoint.verify=size reads nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.megatron.versions import INSTALLED
from gipo_mc.run import checkpoint, manifest
from gipo_mc.run.saves import removal, verified
from tests.ranks import run_ranks

DATA = "shards/__0_0.distcp"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints of a run, with one of step 7, whose files count as settled at once."""
    monkeypatch.setattr(verified, "_SETTLED_NS", -(10**12))
    _make(tmp_path / "run" / "checkpoints", 7)
    return tmp_path / "run" / "checkpoints"


def _make(folder: Path, step: int) -> None:
    path = folder / f"step_{step:08d}"
    (path / "shards").mkdir(parents=True)
    (path / DATA).write_bytes(os.urandom(5000))
    (path / "state.json").write_text(json.dumps({"format": 1, "step": step, "megatron-core": INSTALLED}))
    manifest.write(path, step, manifest.describe(path, {}))


def _read_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """The files that a start reads."""
    read: list[str] = []
    sum_of = manifest.sum_of

    def noted(path: Path, *rest: Any) -> str:
        read.append(path.name)
        return sum_of(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "sum_of", noted)
        found, reasons = checkpoint.latest(folder, keep=True, **options)
    assert found is not None, reasons
    return sorted(read)


def test_a_second_start_reads_what_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "step_00000007"
    everything = ["__0_0.distcp", "state.json"]
    assert _read_in(folder, monkeypatch) == everything
    assert _read_in(folder, monkeypatch) == []
    stat = (path / DATA).stat()
    os.utime(path / DATA, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # only the time of change tells
    assert _read_in(folder, monkeypatch) == ["__0_0.distcp"]
    shutil.copytree(path, folder / "copy")  # as from a backup: the same contents and times, other files
    shutil.rmtree(path)
    (folder / "copy").rename(path)
    assert _read_in(folder, monkeypatch) == everything
    (folder.parent / verified.FILE).write_text("[1]")
    assert _read_in(folder, monkeypatch) == everything and _read_in(folder, monkeypatch) == []
    (path / "MANIFEST.json").write_text((path / "MANIFEST.json").read_text() + "\n")
    assert _read_in(folder, monkeypatch) == everything, "another manifest"
    shutil.rmtree(folder.parent / verified.FILE, ignore_errors=True)


def test_a_changed_byte_is_found_whatever_the_times_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "step_00000007"
    assert _read_in(folder, monkeypatch) and _read_in(folder, monkeypatch) == []
    stat, data = (path / DATA).stat(), bytearray((path / DATA).read_bytes())
    data[100] ^= 1
    (path / DATA).write_bytes(bytes(data))
    os.utime(path / DATA, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp does not match its BLAKE3 sum"):
        manifest.verify(path)
    manifest.verify(path, content=False)  # that is what it cannot see
    (path / DATA).write_bytes(bytes(data[:-1]))
    with pytest.raises(CheckpointError, match="has 4,999 bytes, not the 5,000"):
        manifest.verify(path, content=False)


def test_what_was_written_just_now_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change again within the same tick of the clock."""
    monkeypatch.setattr(verified, "_SETTLED_NS", 2 * 10**9)
    assert _read_in(folder, monkeypatch) == _read_in(folder, monkeypatch) != []
    assert not (folder.parent / verified.FILE).exists()


def test_checkpoints_that_are_gone_are_forgotten_and_a_read_only_run_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / verified.FILE).write_text(json.dumps({"step_00000001": {}}))
    assert _read_in(folder, monkeypatch, content=False) == []
    assert "step_00000001" in json.loads((folder.parent / verified.FILE).read_text()), "nothing was read"
    _read_in(folder, monkeypatch)
    assert list(json.loads((folder.parent / verified.FILE).read_text())) == ["step_00000007"]
    (folder.parent / verified.FILE).unlink()
    (folder.parent / verified.FILE).mkdir()  # nothing can be kept
    assert _read_in(folder, monkeypatch) == _read_in(folder, monkeypatch) != []


def _together(rank: int, folder: Path) -> list[tuple[Path | None, list[str]]]:
    read: list[str] = []
    sum_of = manifest.sum_of

    def noted(path: Path, *rest: Any) -> str:
        read.append(path.name)
        return sum_of(path, *rest)

    manifest.sum_of = noted
    starts = []
    for _ in range(2):
        read.clear()
        found, _ = checkpoint.latest(folder, together=True, keep=True)
        starts.append((found, list(read)))
    read.clear()
    removal.prune(folder, 2)
    starts.append((None, list(read)))
    return starts


def test_ranks_share_the_first_reading_and_none_reads_at_the_second(folder: Path) -> None:
    _make(folder, 6)
    _make(folder, 5)
    first, second, removal_of_5 = zip(*run_ranks(_together, 2, folder), strict=True)
    assert sorted(name for _, read in first for name in read) == ["__0_0.distcp", "state.json"]
    assert [read for _, read in second] == [[], []]
    assert {found for found, _ in (*first, *second)} == {folder / "step_00000007"}
    # What a removal had to read, the next start need not.
    assert sorted(name for _, read in removal_of_5 for name in read) == ["__0_0.distcp", "state.json"]
    assert list(json.loads((folder.parent / verified.FILE).read_text())) == ["step_00000007", "step_00000006"]
