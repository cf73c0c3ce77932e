"""Hashes of files: right, shared over ranks, and not taken twice of what has not changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from gipo_mc.run import hashes
from gipo_mc.run.hashes import content_of, sha256_of, shares


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, 700_001])
def test_the_sum_is_sha_256(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_a_rank_hashes_what_it_wrote_unless_that_is_too_much() -> None:
    even = {f"shards/__{rank}_{n}.distcp": 100 for rank in range(2) for n in range(2)} | {"state.json": 3}
    assert [sorted(part) for part in shares(even, 2)] == [
        ["shards/__0_0.distcp", "shards/__0_1.distcp", "state.json"],
        ["shards/__1_0.distcp", "shards/__1_1.distcp"],
    ]
    alone = {"shards/__0_0.distcp": 100, "shards/__0_1.distcp": 100, "state.json": 3}  # two replicas: rank 0 writes
    assert sorted(len(part) for part in shares(alone, 2)) == [1, 2]
    wider = {f"shards/__{rank}_0.distcp": 10 for rank in range(8)}  # read by fewer ranks than wrote it
    assert [len(part) for part in shares(wider, 2)] == [4, 4]
    assert shares({}, 2) == [[], []] and shares({"a": 0}, 1) == [["a"]]


def test_a_file_is_read_again_only_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(hashes, "sha256_of", counted)
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        file.write_bytes(b"x" * 3_000_000)
    first = content_of(files)
    assert content_of(files) == first and read == ["a.safetensors", "b.safetensors"]

    data = bytearray(files[1].read_bytes())
    data[1_500_000] ^= 1  # neither in the first nor in the last mebibyte
    files[1].write_bytes(bytes(data))
    os.utime(files[1], ns=(1, 1))
    assert content_of(files) != first and read[2:] == ["b.safetensors"]
    assert content_of([]) != first

    cache = tmp_path / "cache" / "gipo_mc" / "hashes.json"
    for damage in ("", "[]", "{", json.dumps({str(file): [1] for file in files}), "[" * 100_000):
        cache.write_text(damage)
        assert len(content_of(files)) == 32
    files[0].unlink()
    files[1].write_bytes(b"y")
    content_of(files[1:])
    assert [Path(name).name for name in json.loads(cache.read_text())] == ["b.safetensors"], "what is gone is forgotten"


def test_no_cache_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert content_of([tmp_path / "file"]) == content_of([tmp_path / "file"])


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    (tmp_path / "file").write_text("x")
    assert content_of([tmp_path / "file"]) == content_of([tmp_path / "file"])


def test_a_cache_may_name_what_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without permission, or a name that this file system does not take."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "gipo_mc").mkdir()
    (tmp_path / "gipo_mc" / "hashes.json").write_text(json.dumps({f"/{'a' * 300}": [1, 1, 1, "0" * 64]}))
    (tmp_path / "file").write_text("x")
    assert len(content_of([tmp_path / "file"])) == 32
