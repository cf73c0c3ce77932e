"""Hashes of files and the manifests of checkpoints that hold them: right, shared over ranks, not taken twice of what
has not changed; the SHA-256 of older checkpoints is read as ever."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.megatron.versions import INSTALLED
from gipo_mc.run import hashes, manifest
from gipo_mc.run.hashes import content_of, parts_of, sha256_of, shares, sum_of
from gipo_mc.run.model_sources import ModelSource
from tests.ranks import run_ranks


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, 2_700_001])
def test_the_sums_are_those_of_the_content(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    assert sum_of(tmp_path / "x", 0, size, "blake3") == blake3(data).hexdigest()
    assert sum_of(tmp_path / "x", size // 3, size // 2, "blake3") == blake3(data[size // 3 :][: size // 2]).hexdigest()


def test_blake3_is_the_published_one(tmp_path: Path) -> None:
    """The first two of its test vectors: nothing, and one byte 0."""
    (tmp_path / "x").write_bytes(b"\0")
    nothing, zero = (sum_of(tmp_path / "x", 0, size, "blake3") for size in (0, 1))
    assert nothing == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert zero == "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"


# ------------------------------------------------------------------------------------------------------------- shares
def _shares(sizes: dict[str, int], ranks: int) -> list[list[str]]:
    parts = [part for name, size in sizes.items() for part in parts_of(name, size, "sha256")]
    return [sorted(part.name for part in own) for own in shares(parts, ranks)]


def test_a_rank_hashes_what_it_wrote_unless_that_is_too_much() -> None:
    even = {f"shards/__{rank}_{n}.distcp": 100 for rank in range(2) for n in range(2)} | {"state.json": 3}
    assert _shares(even, 2) == [
        ["shards/__0_0.distcp", "shards/__0_1.distcp", "state.json"],
        ["shards/__1_0.distcp", "shards/__1_1.distcp"],
    ]
    alone = {"shards/__0_0.distcp": 100, "shards/__0_1.distcp": 100, "state.json": 3}  # two replicas: rank 0 writes
    assert sorted(len(part) for part in _shares(alone, 2)) == [1, 2]
    wider = {f"shards/__{rank}_0.distcp": 10 for rank in range(8)}  # read by fewer ranks than wrote it
    assert [len(part) for part in _shares(wider, 2)] == [4, 4]
    assert _shares({}, 2) == [[], []] and _shares({"a": 0}, 1) == [["a"]]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_single_large_file_is_shared_by_all_ranks(ranks: int) -> None:
    size = 3 * 10**9 + 1
    parts = parts_of("shards/__0_0.distcp", size, "blake3")
    assert [part.begin for part in parts] == list(range(0, size, 1 << 26)) and sum(part.size for part in parts) == size
    found = shares(parts, ranks)
    assert sorted(part for own in found for part in own) == parts
    loads = [sum(part.size for part in own) for own in found]
    assert max(loads) <= 1.05 * size / ranks and min(loads) >= 0.85 * size / ranks, loads


# ---------------------------------------------------------------------------------------------------------- manifests
@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a checkpoint without a manifest, one of them of three parts; a part is 1,000 bytes here."""
    monkeypatch.setitem(hashes.ALGORITHMS, "blake3", replace(hashes.ALGORITHMS["blake3"], part=1000))
    path = tmp_path / "step_00000007"
    (path / "shards").mkdir(parents=True)
    (path / "shards" / "__0_0.distcp").write_bytes(os.urandom(2500))
    (path / "shards" / "common.pt").write_bytes(b"")
    (path / "state.json").write_text(json.dumps({"format": 1, "step": 7, "megatron-core": INSTALLED}))
    return path


def write_as_before(path: Path) -> None:
    """The manifest as versions before BLAKE3 wrote it, which did not name Megatron's version."""
    state = json.loads((path / "state.json").read_text())
    state.pop("megatron-core", None)
    (path / "state.json").write_text(json.dumps(state))
    names = [name for name in manifest.files_of(path) if name != "MANIFEST.json"]
    files = {
        name: {"size": (path / name).stat().st_size, "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest()}
        for name in names
    }
    stated = {"format": 1, "step": state["step"], "files": files}
    (path / "MANIFEST.json").write_text(json.dumps(stated, indent=1))


def _describe(rank: int, path: Path) -> None:
    if rank == 0:
        manifest.write(path, 7, manifest.describe(path, {}))


def _write(path: Path, algorithm: str, ranks: int = 1) -> None:
    if algorithm == "sha256":
        write_as_before(path)
    else:
        run_ranks(_describe, ranks, path)


def _verify(rank: int, paths: list[Path]) -> list[tuple[str, list[int]]]:
    """What is found wrong with each, and where this rank begins to read."""
    outcomes, read = [], []
    sum_of = manifest.sum_of

    def noted(path: Path, begin: int, size: int, algorithm: str) -> str:
        read.append(begin)
        return sum_of(path, begin, size, algorithm)

    manifest.sum_of = noted
    for path in paths:
        read.clear()
        try:
            manifest.verify(path, together=True)
            outcomes.append(("", list(read)))
        except CheckpointError as error:
            outcomes.append((str(error), list(read)))
    return outcomes


def test_a_manifest_has_a_sum_for_each_part_whoever_takes_it(step: Path) -> None:
    manifests = []
    for ranks in (1, 2, 3):
        _write(step, "blake3", ranks)
        manifests.append((step / "MANIFEST.json").read_bytes())
        (step / "MANIFEST.json").unlink()
    assert len(set(manifests)) == 1
    files = json.loads(manifests[0])["files"]
    data = (step / "shards" / "__0_0.distcp").read_bytes()
    sums = [blake3(data[begin : begin + 1000]).hexdigest() for begin in (0, 1000, 2000)]
    assert files["shards/__0_0.distcp"] == {"size": 2500, "blake3": sums}
    assert files["shards/common.pt"] == {"size": 0, "blake3": [blake3(b"").hexdigest()]}


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_damage_is_found_under_both_hashes_by_any_number_of_ranks(step: Path, algorithm: str, ranks: int) -> None:
    _write(step, algorithm, 3 - ranks)  # by another number than verifies it
    copies = [step] + [shutil.copytree(step, step.with_name(f"copy{position}")) for position in (0, 999, 1000, 2499)]
    for copy in copies[1:]:
        file = copy / "shards" / "__0_0.distcp"
        data = bytearray(file.read_bytes())
        data[int(copy.name[4:])] ^= 4
        file.write_bytes(bytes(data))
    found = run_ranks(_verify, ranks, copies)
    for outcomes in found:
        assert outcomes[0][0] == ""
        for copy, (message, _) in zip(copies[1:], outcomes[1:], strict=True):
            begin = int(copy.name[4:]) // 1000 * 1000
            kind = {"sha256": "SHA-256 sum in MANIFEST.json:", "blake3": "BLAKE3 sum in MANIFEST.json in bytes "}
            assert message.startswith(f"{copy}/shards/__0_0.distcp does not match its {kind[algorithm]}"), message
            assert algorithm == "sha256" or f"bytes {begin:,} to {min(begin + 1000, 2500):,}:" in message
            with pytest.raises(CheckpointError, match=r"__0_0\.distcp does not match"):
                manifest.verify(copy)
    if ranks == 2 and algorithm == "blake3":  # of one file, two parts here and one there
        assert all({*outcomes[0][1]} & {0, 1000, 2000} for outcomes in found)


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ({"md5": "0" * 32}, "it names 'md5', not one of blake3, sha256"),
        ({"sha256": "0" * 64, "crc32": "0"}, "it names 'crc32', 'sha256', not one of"),
        ({"blake3": ["0" * 64] * 3, "sha256": "0" * 64}, "it names 'blake3', 'sha256'"),
        ({}, "it names none, not one of"),
        ({"sha256": ["0" * 64] * 3}, "3 sums for the 2,500 bytes of shards/__0_0.distcp"),
        ({"blake3": "0" * 64}, "1 sums for the 2,500 bytes"),
        ({"blake3": []}, "0 sums for the 2,500 bytes"),
        ({"blake3": {"0": "0"}}, "1 sums for the 2,500 bytes"),
        ({"sha256": None}, "does not match its SHA-256"),
    ],
)
def test_sums_of_another_kind_are_refused(step: Path, sums: dict[str, Any], words: str) -> None:
    """Also a weak one, and one beside another: whoever reads it could take the weaker for enough."""
    write_as_before(step)
    stated = json.loads((step / "MANIFEST.json").read_text())
    stated["files"]["shards/__0_0.distcp"] = {"size": 2500, **sums}
    (step / "MANIFEST.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match="step_00000007") as error:
        manifest.verify(step)
    assert words in str(error.value)


def test_a_checkpoint_of_before_keeps_its_identity(step: Path) -> None:
    """A run that stores what its frozen models are made of goes on with the same model."""
    write_as_before(step)
    before = (step / "MANIFEST.json").read_bytes()
    manifest.verify(step)
    assert ModelSource("m", "run", step, step).fingerprint() == hashlib.sha256(before).hexdigest()[:16]
    assert (step / "MANIFEST.json").read_bytes() == before


# ----------------------------------------------------------------------------------------------------- not read again
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
