"""checkpoint.async: the same bytes as of a save that is waited for, whatever training does meanwhile, or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from gipo_mc.config import CheckpointConfig, load_config
from gipo_mc.errors import GipoError, StorageError
from gipo_mc.parallel import runtime
from gipo_mc.run import checkpoint
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.saves import saving, series
from gipo_mc.run.saves.series import Saves
from gipo_mc.run.session import Session
from gipo_mc.supervised import sft
from tests.ranks import exit_codes, parallel_config, run_ranks
from tests.runs import read_metrics, save_models


def _bytes(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# ----------------------------------------------------------------------------------------------------- one save
def _saves(folder: Path, *, asynchronous: bool) -> Saves:
    config = CheckpointConfig.model_validate({"async": asynchronous})
    folder.mkdir(exist_ok=True)
    return Saves(RunFolder(folder, "train_sft"), config, nullcontext, nullcontext)


def _until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


class Held:
    """What a save writes waits, in whatever process it is, until `let_go`."""

    def __init__(self, folder: Path, then: Callable[[], None] = lambda: None) -> None:
        self._go, self._begun = folder / "go", folder / f"begun-{dist.get_rank()}"
        self._begun.unlink(missing_ok=True)
        write = saving.write_chunks

        def held(*arguments: Any) -> Any:
            self._begun.write_text(str(os.getpid()))
            _until(self._go.exists)
            then()
            return write(*arguments)

        saving.write_chunks = held  # this process is the test's own

    def writer(self) -> int:
        """The process that waits."""
        _until(lambda: self._begun.exists() and self._begun.read_text() != "")
        return int(self._begun.read_text())

    def let_go(self) -> None:
        self._go.touch()


def _while_training(rank: int, folder: Path) -> list[Any]:
    """Save, change everything and save again, in the background; what each step showed."""
    runtime.initialize(parallel_config(tensor=2)[0], "cpu")
    buffer = torch.arange(3000.0)
    shared = torch.full((7,), 5.0).share_memory_()  # a fork would see it change

    def state() -> dict[str, Any]:
        return {
            "part": ShardedTensor.from_rank_offsets("part", buffer[1000:2000].add(0) + rank, (0, rank, 2)),
            "view": ShardedTensor.from_rank_offsets("view", buffer[100:300].view(10, 20), replica_id=rank),
            "shared": ShardedTensor.from_rank_offsets("shared", shared, replica_id=rank),
            "plain": {"lr": float(buffer[0])},
        }

    def extras(path: Path) -> None:
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text("{}")

    waited_for = _saves(folder / "sync", asynchronous=False)
    waited_for.save(1, state(), {"note": "kept"}, extras)
    seen: list[Any] = []
    held, saves = Held(folder), _saves(folder / "async", asynchronous=True)
    checkpoints = folder / "async" / "checkpoints"
    saves.save(1, state(), {"note": "kept"}, extras)
    seen.append(held.writer() != os.getpid())
    buffer += 1
    shared.zero_()
    saves.look()
    seen.append(checkpoint.steps(checkpoints))
    dist.barrier()
    held.let_go()
    waited_for.save(2, state(), {}, extras)
    saves.save(2, state(), {}, extras)  # waits for the one before
    seen.append(checkpoint.steps(checkpoints))
    end = time.monotonic() + 20
    while saves._open and time.monotonic() < end:
        saves.look()
    seen.append(checkpoint.steps(checkpoints))
    saves.finish()
    return seen


def test_a_save_in_the_background_has_the_bytes_of_one_that_is_waited_for(tmp_path: Path) -> None:
    for seen in run_ranks(_while_training, 2, tmp_path):
        assert seen == [True, [], [1], [1, 2]]
    for step in (1, 2):
        name = f"checkpoints/step_{step:08d}"
        found, wanted = (_bytes(tmp_path / kind / name) for kind in ("async", "sync"))
        assert found == wanted and {"MANIFEST.json", "shards/.metadata", "shards/__1_0.distcp"} <= found.keys()
    checkpoint.verify(tmp_path / "async" / "checkpoints" / "step_00000002")
    assert (tmp_path / "async" / ".saved.json").read_text() == '{"step": 2}\n'
    left = [path.name for path in (tmp_path / "async" / "checkpoints").iterdir()]
    assert sorted(left) == ["step_00000001", "step_00000002"]


def _failing(rank: int, folder: Path) -> list[str]:
    """What the next save says where the writer of rank 1 finds no room, and where it is killed."""
    runtime.initialize(parallel_config(tensor=2)[0], "cpu")
    said = []
    saves = _saves(folder, asynchronous=True)

    def no_memory() -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    part = {"part": ShardedTensor.from_rank_offsets("part", torch.ones(1000), (0, rank, 2))}
    saves.save(1, dict(part), {}, lambda path: None)
    saves.finish()
    fork = os.fork
    for how in ("full", "killed", "no memory"):

        def fails(how: str = how) -> None:
            if rank == 1 and how == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        (folder / "go").unlink(missing_ok=True)
        dist.barrier()
        held = Held(folder, fails)
        os.fork = no_memory if rank == 1 and how == "no memory" else fork
        saves.save(2, dict(part), {}, lambda path: None)
        held.let_go()
        try:
            saves.save(3, dict(part), {}, lambda path: None)
        except StorageError as error:
            said.append(f"{error.exit_code}: {error}")
    return said


def test_what_fails_in_the_background_is_an_error_at_the_next_point(tmp_path: Path) -> None:
    for full, killed, no_memory in run_ranks(_failing, 2, tmp_path):
        assert full.startswith("6: The checkpoint ") and "step_00000002 could not be written (rank 1: OSError" in full
        assert "No space left on device" in full and "are free on its disk. Earlier checkpoints are kept" in full
        assert "rank 1: OSError: its writer ended with signal SIGKILL, as where memory runs out" in killed
        assert "Cannot allocate memory, for a process that writes in the background" in no_memory
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    checkpoint.verify(tmp_path / "checkpoints" / "step_00000001")


def _dies(rank: int, folder: Path) -> None:
    runtime.initialize(parallel_config()[0], "cpu")
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    saves = _saves(folder / "run", asynchronous=True)
    held = Held(folder)
    saves.save(1, {"t": ShardedTensor.from_rank_offsets("t", torch.ones(9))}, {}, lambda path: None)
    writer = held.writer()
    (folder / "files").write_text(
        str([os.readlink(f"/proc/{writer}/fd/{n}") for n in os.listdir(f"/proc/{writer}/fd")])
    )
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_dies_with_its_rank_and_holds_nothing_of_it(tmp_path: Path) -> None:
    assert exit_codes(_dies, 1, tmp_path) == [-signal.SIGKILL]
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    writer = int((tmp_path / "begun-0").read_text())
    _until(lambda: not Path(f"/proc/{writer}").exists(), 5)
    files = (tmp_path / "files").read_text()
    assert "socket" not in files and "pipe" not in files and "lock" not in files and files.count("/dev/null") == 3
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []


def test_a_writer_is_ended_also_where_another_rank_was_lost_while_it_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def lost() -> Path:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(series, "on_main", lambda work: work())
    saves, open_one = _saves(tmp_path, asynchronous=True), Mock(finish=lost, abandon=lambda: said.append("ended"))
    saves._open = open_one
    with pytest.raises(RuntimeError):
        saves.finish()
    saves.abandon()
    assert said == ["ended"]


# ---------------------------------------------------------------------------------------------------------- in runs
@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _config(folder: Path, models: dict[str, str], name: str, *more: str) -> Any:
    base = {
        "run": {"dir": str(folder), "name": name, "iterations": 4, "seed": 5},
        "device": "cpu",
        "model": {"policy": models["policy"]},
        "data": {"demonstrations": ["builtin"], "max_rows": 18, "sequence_length": 24},
        "train": {"batch_size": 8},
        "parallel": {"micro_batch_size": 4, "timeout_minutes": 2, "distributed_optimizer": "on"},
        "policy": {"lr": 1e-3},
        "checkpoint": {"every": 1, "async": True},
        "eval": {"prompts": 0},
    }
    return load_config(None, list(more), base)


def _disturbed(rank: int, folder: Path, models: dict[str, str], name: str) -> str:
    """A run that is asked to stop in its second step, while the first is being written, or that fails there."""
    log = Session.log
    held = Held(folder)

    def disturbed(self: Session, step: int, metrics: Any, **options: Any) -> None:
        log(self, step, metrics, **options)
        if step != 2:
            return
        held.writer()
        if name == "failed":
            raise GipoError("something else failed")
        os.kill(os.getpid(), signal.SIGTERM)
        held.let_go()

    Session.log = disturbed  # type: ignore[method-assign]  # this process is the test's own
    try:
        sft.train(_config(folder, models, name))
    except GipoError as error:
        return f"{error.exit_code}: {error}"
    return "done"


def _straight(rank: int, folder: Path, models: dict[str, str], names: list[str]) -> None:
    for name in names:
        sft.train(_config(folder, models, name, f"checkpoint.async={str(name != 'sync').lower()}"))


def test_runs_end_with_the_bytes_of_those_that_wait(tmp_path: Path, models: dict[str, str]) -> None:
    """One that is asked to stop waits for what is being written; one that fails leaves it."""
    for name, said, saved in (
        ("failed", "1: something else failed", []),
        ("stopped", "75: Asked to stop by SIGTERM. The same command continues from the checkpoint of step 2.", [1, 2]),
    ):
        assert run_ranks(_disturbed, 2, tmp_path, models, name) == [said] * 2
        assert checkpoint.steps(tmp_path / name / "checkpoints") == saved
        (tmp_path / "go").unlink(missing_ok=True)
    run_ranks(_straight, 2, tmp_path, models, ["sync", "async", "stopped", "failed"])
    wanted = _bytes(tmp_path / "sync" / "checkpoints" / "step_00000004")
    for name in ("async", "stopped", "failed"):
        run = tmp_path / name
        found = _bytes(run / "checkpoints" / "step_00000004")
        differ = {file for file in wanted if found[file] != wanted[file]}
        # What is no tensor is pickled, and a pickle tells which values are one object: after a restart others are.
        assert found.keys() == wanted.keys()
        assert differ <= (set() if name == "async" else {"shards/common.pt", "MANIFEST.json"}), (name, differ)
        assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
        assert checkpoint.steps(run / "checkpoints") == [3, 4]
