"""A save: what is removed afterwards, what a full disk or a kill does at each place, what is on the disk at its end."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from gipo_mc.config import Config, validate
from gipo_mc.errors import ConfigError, StorageError
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.saving.files import SummedFile
from gipo_mc.run import checkpoint, manifest
from gipo_mc.run.saves import saving
from tests.ranks import exit_codes, parallel_config, run_ranks


def _state(rank: int, size: int = 1000) -> dict[str, Any]:
    """A tensor of which each rank holds a part, one that rank 0 holds, and a plain value."""
    return {
        "part": ShardedTensor.from_rank_offsets("part", torch.arange(size) + rank * size, (0, rank, 2)),
        "whole": ShardedTensor.from_rank_offsets("whole", torch.ones(50), replica_id=rank),
        "plain": {"lr": 0.5},
    }


def _extras(path: Path) -> None:
    (path / "model").mkdir()
    (path / "model" / "config.json").write_text("{}")


def _save(folder: Path, step: int, rank: int, keep: int = 2, size: int = 1000) -> Path:
    return checkpoint.save(folder, step, _state(rank, size), {}, keep, _extras)


def _join() -> None:
    runtime.initialize(parallel_config(tensor=2)[0], "cpu")


def _damage(folder: Path, step: int) -> None:
    (folder / f"step_{step:08d}" / "state.json").write_text("{}")


# ------------------------------------------------------------------------------------------------------------ removal
def _prune(rank: int, folder: Path) -> list[list[int]]:
    """Save five times; the third and fourth are damaged before the fifth is written."""
    _join()
    seen = []
    for step in (1, 2, 3, 4, 5, 6, 7):
        _save(folder, step, rank)
        torch.distributed.barrier()
        seen.append(checkpoint.steps(folder))
        torch.distributed.barrier()
        if step == 4 and rank == 0:
            _damage(folder, 3)
            _damage(folder, 4)
    return seen


def test_damaged_checkpoints_do_not_count_and_go_with_the_older_ones(tmp_path: Path) -> None:
    """Two damaged ones and two more saves: nothing usable was left where any two newest were kept."""
    seen = run_ranks(_prune, 2, tmp_path)[0]
    assert seen[:4] == [[1], [1, 2], [2, 3], [3, 4]]
    assert seen[4:] == [[3, 4, 5], [5, 6], [6, 7]]
    assert checkpoint.latest(tmp_path) == (tmp_path / "step_00000007", [])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def _prune_after_a_restart(rank: int, folder: Path) -> list[int]:
    _join()
    checkpoint.latest(folder, together=True)
    _save(folder, 5, rank)
    return checkpoint.steps(folder)


def test_the_newest_verified_ones_stay_where_newer_ones_are_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        run_ranks(_prune_one, 2, tmp_path, step)
    for step in (3, 4):
        shutil.copytree(tmp_path / "step_00000002", tmp_path / f"step_{step:08d}")
        _damage(tmp_path, step)
    assert run_ranks(_prune_after_a_restart, 2, tmp_path)[0] == [2, 3, 4, 5]


def _prune_one(rank: int, folder: Path, step: int) -> None:
    _join()
    _save(folder, step, rank)


def _count(folder: Path) -> list[str]:
    """Filled with the checkpoint of each file that is hashed from here on."""
    hashed: list[str] = []
    sum_of = manifest.sum_of

    def counted(path: Path, *options: Any) -> str:
        hashed.append(path.parts[len(folder.parts)][:13])
        return sum_of(path, *options)

    manifest.sum_of = counted
    return hashed


def _read_again(rank: int, folder: Path) -> list[str]:
    """Of which checkpoints the third save reads files to hash them: what rank 0 writes beside the shards."""
    _join()
    hashed = _count(folder)
    for step in (1, 2, 3):
        hashed.clear()
        _save(folder, step, rank)
    return hashed


def test_what_this_process_wrote_is_not_read_again(tmp_path: Path) -> None:
    assert [set(hashed) for hashed in run_ranks(_read_again, 2, tmp_path)] == [{".tmp-00000003"}, set()]


def _first_save_after_a_restart(rank: int, folder: Path) -> list[list[str]]:
    """What the start hashes, and the save."""
    _join()
    hashed = _count(folder)
    checkpoint.latest(folder, together=True)
    at_the_start = list(hashed)
    hashed.clear()
    _save(folder, 5, rank, keep=4)
    return [at_the_start, hashed]


def test_the_first_save_after_a_restart_reads_older_checkpoints_with_all_ranks(tmp_path: Path, two: Path) -> None:
    """And not the one that the run continued from, which the start has verified."""
    for step in (1, 2, 3, 4):
        shutil.copytree(two / "step_00000002", tmp_path / f"step_{step:08d}")
    for rank, (at_the_start, hashed) in enumerate(run_ranks(_first_save_after_a_restart, 2, tmp_path)):
        assert set(at_the_start) == {"step_00000004"}
        assert set(hashed) - {".tmp-00000005"} == {"step_00000003", "step_00000002"}
        assert (".tmp-00000005" in hashed) == (rank == 0)
    assert checkpoint.steps(tmp_path) == [2, 3, 4, 5]


def test_one_checkpoint_is_too_few() -> None:
    assert Config().checkpoint.keep == 2
    with pytest.raises(ConfigError, match=r"checkpoint.keep=1"):
        validate({"checkpoint": {"keep": 1}})


# ---------------------------------------------------------------------------------------------------------- full disk
def _no_room(rank: int, folder: Path) -> str:
    _join()
    _save(folder, 1, rank)
    usage = namedtuple("usage", "total used free")
    shutil.disk_usage = lambda path: usage(10**6, 10**6 - 16_199, 16_199)
    try:
        _save(folder, 2, rank)
    except StorageError as error:
        return str(error)
    return ""


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(tmp_path: Path) -> None:
    """Two parts of 1,000 int64 and 50 float32 are 16,200 bytes."""
    for message in run_ranks(_no_room, 2, tmp_path):
        assert "step_00000002 needs 16,200 bytes or a little more, and 16,199 are free on its disk" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def _full(rank: int, folder: Path, place: str) -> str:
    _join()
    _save(folder, 1, rank)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "shards of rank 1":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
    elif rank == 0 and place == "index":  # after all data is written
        sharded_files.write_index = full
    elif rank == 0:
        sharded_files.write_synced = full
    try:
        _save(folder, 2, rank)
    except StorageError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        torch.distributed.barrier()  # the ranks are still in step
        return str(error)
    return ""


@pytest.mark.parametrize("place", ["common", "shards of rank 1", "index"])
def test_a_full_disk_is_an_error_on_every_rank_wherever_it_is_met(tmp_path: Path, place: str) -> None:
    """Rank 0 writes some files alone; the others waited for it until the time-out."""
    messages = run_ranks(_full, 2, tmp_path, place, timeout=30)
    reason = "File too large" if place == "shards of rank 1" else "No space left"
    for message in messages:
        assert "step_00000002 could not be written" in message and reason in message, messages
        assert "It needs 16,200 bytes or a little more, and " in message and " are free on its disk" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    checkpoint.verify(tmp_path / "step_00000001")


# ---------------------------------------------------------------------------------------------------------- time-outs
def _slow_disk(rank: int, folder: Path) -> list[int]:
    """Rank 1 takes longer to write, and rank 0 to verify, than any collective of a step may take."""
    _join()
    _save(folder, 1, rank)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), dist.group.WORLD)
    write, wrong = saving.write_chunks, manifest._wrong

    def slow(of_rank: int, work: Callable[..., Any], *arguments: Any) -> Any:
        time.sleep(2.0 if rank == of_rank else 0.0)
        return work(*arguments)

    saving.write_chunks, manifest._wrong = partial(slow, 1, write), partial(slow, 0, wrong)
    _save(folder, 2, rank)
    checkpoint.latest(folder, together=True)
    try:
        if rank == 0:
            time.sleep(2.0)
        dist.barrier()
    except RuntimeError:  # the limit is there
        return checkpoint.steps(folder)
    return []


def test_a_slow_disk_is_waited_for_longer_than_a_step(tmp_path: Path) -> None:
    assert run_ranks(_slow_disk, 2, tmp_path)[1] == [1, 2]


# ----------------------------------------------------------------------------------------------------------- the disk
def _synced(rank: int, folder: Path) -> tuple[list[str], list[str]]:
    """Paths that were synced before the checkpoint was published, and after."""
    _join()
    before: list[str] = []
    after: list[str] = []
    fsync, rename = os.fsync, Path.rename
    now = before

    def noted(descriptor: int) -> None:
        now.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        nonlocal now
        now = after if self.name.startswith(".tmp-") else now
        return rename(self, target)

    os.fsync, Path.rename = noted, renamed  # type: ignore[method-assign, assignment]
    _save(folder / "checkpoints", 1, rank)
    return before, after


def test_everything_is_on_the_disk_before_the_checkpoint_appears(tmp_path: Path) -> None:
    ranks = run_ranks(_synced, 2, tmp_path)
    path = tmp_path / "checkpoints" / "step_00000001"
    synced = {name.partition(".tmp-")[2].partition("/")[2] for before, _ in ranks for name in before}
    wanted = {str(file.relative_to(path)) for file in path.rglob("*")} | {"", "MANIFEST.json"}
    assert wanted <= synced, wanted - synced
    assert {"model/config.json", "shards/.metadata", "shards/metadata.json", "shards/common.pt"} <= synced
    assert {str(tmp_path), str(tmp_path / "checkpoints")} <= set(ranks[0][1])
    assert json.loads((path / "MANIFEST.json").read_text())["files"].keys() == {
        name for name in wanted if (path / name).is_file() and name != "MANIFEST.json"
    }


# --------------------------------------------------------------------------------------------------------------- kills
#: Sub-step of a save -> (rank that is killed, whose function is called then, its name, is it a call to die in?).
KILLS: dict[str, tuple[int, Any, str, Callable[..., bool]]] = {
    "before its part is written": (1, saving, "write_chunks", lambda *_: True),
    "while it writes": (1, SummedFile, "write", lambda file, *_: file.size > 0),
    "parts are written, no index": (0, sharded_files, "write_index", lambda *_: True),
    "while it hashes": (0, manifest, "sum_of", lambda *_: True),
    "no manifest": (0, manifest, "write", lambda *_: True),
    "before the rename": (0, Path, "rename", lambda path, target: path.name.startswith(".tmp-00000003")),
    "after the rename": (0, manifest, "remember", lambda *_: True),
    "before an older one is removed": (0, Path, "rename", lambda path, target: path.name == "step_00000001"),
    "while an older one is removed": (0, shutil, "rmtree", lambda path, *_: "removed-step_00000001" in str(path)),
}


def _killed(rank: int, folder: Path, place: str) -> None:
    _join()
    victim, owner, name, here = KILLS[place]
    function = getattr(owner, name)
    pids = [0, 0]
    torch.distributed.all_gather_object(pids, os.getpid())

    def dies(*arguments: Any, **options: Any) -> Any:
        if here(*arguments):
            for pid in (pids[1 - rank], os.getpid()):  # torchrun ends the others
                os.kill(pid, signal.SIGKILL)
        return function(*arguments, **options)

    if rank == victim:
        setattr(owner, name, dies)
    _save(folder, 3, rank)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        run_ranks(_prune_one, 2, folder, step)
    return folder


@pytest.mark.parametrize("place", KILLS)
def test_a_kill_in_any_part_of_a_save_leaves_no_checkpoint_that_is_not_whole(
    tmp_path: Path, two: Path, place: str
) -> None:
    """The next start finds the newest whole one, and its save clears away what was begun."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    assert exit_codes(_killed, 2, folder, place) == [-signal.SIGKILL] * 2
    seen = checkpoint.steps(folder)
    for step in seen:
        checkpoint.verify(folder / f"step_{step:08d}")
    is_there = "after" in place or "older" in place
    assert seen[-1] == (3 if is_there else 2) and len(seen) >= 2
    run_ranks(_prune_one, 2, folder, 4 if is_there else 3)
    assert checkpoint.steps(folder) == ([3, 4] if is_there else [2, 3])
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
