"""Room for the checkpoints to come: asked at the start, of sizes that are those of the save."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import CheckpointConfig
from gipo_mc.errors import StorageError
from gipo_mc.parallel.saving.plan import plan
from gipo_mc.rl import gi_ppo
from gipo_mc.run.saves.room import check_room, saves_left
from tests.ranks import LAYOUTS, run_ranks
from tests.run.test_checkpoint import SHARDED, _engines
from tests.runs import read_metrics, rl_config, save_models

MIB = 2**20
_Usage = namedtuple("_Usage", "total used free")


def _sizes(rank: int, sizes: dict[str, Any]) -> list[tuple[int, int]]:
    _, engines = _engines(sizes, seed=1)
    return [(engine.saved_bytes(), plan(engine.snapshot(role)).needed) for role, engine in engines.items()]


@pytest.mark.parametrize(
    "sizes", [{}, LAYOUTS["TP2xPP2"], LAYOUTS["DP2"], SHARDED], ids=["1", "TP2xPP2", "DP2", "ZeRO"]
)
def test_the_size_is_told_before_the_save(sizes: dict[str, Any]) -> None:
    """Of a policy with tied embeddings and of a critic; Adam counts its steps beside, a number for each tensor."""
    ranks = sizes.get("tensor", 1) * sizes.get("pipeline", 1) * sizes.get("data", 1)
    for told, needed in run_ranks(_sizes, ranks, sizes)[0]:
        assert told <= needed < told + 1000


@pytest.mark.parametrize(
    ("every", "start", "iterations", "saves"),
    [(10, 0, 100, 10), (10, 0, 95, 10), (10, 35, 95, 7), (0, 0, 95, 1), (10, 95, 95, 0), (1, 2, 3, 1)],
)
def test_saves_that_are_left(every: int, start: int, iterations: int, saves: int) -> None:
    assert saves_left(CheckpointConfig(every=every), start, iterations) == saves


@pytest.mark.parametrize(
    ("free", "standing", "saves", "says"),
    [
        (300, 0, 9, None),
        (299, 0, 9, r"3 more checkpoints of 100.0 MiB each may lie in .*checkpoint.keep=2\), and 299.0 MiB are free"),
        (299, 0, 2, None),
        (299, 1, 9, None),
        (100, 5, 9, None),
        (199, 1, 9, "2 more checkpoints"),
        (99, 2, 0, None),
    ],
)
def test_a_warning_where_not_all_that_may_lie_there_fit(
    free: int, standing: int, saves: int, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(standing):
        (tmp_path / f"step_{step:08d}").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**12, 0, free * MIB))
    found = check_room(tmp_path if standing else tmp_path / "checkpoints", 100 * MIB, saves, keep=2)
    assert found is None if says is None else re.search(says, found or "")


def _start(rank: int, folder: Path, models: dict[str, str], free: int, iterations: int) -> tuple[str, list[str]]:
    """A run on a disk with `free` bytes: what refused it, and its warnings."""
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: _Usage(10**12, 0, free)  # type: ignore[assignment]
    try:
        gi_ppo.train(rl_config(folder, models, "checkpoint.every=1", f"run.iterations={iterations}"))
    except StorageError as error:
        return str(error), []
    finally:
        shutil.disk_usage = usage
    return "", [row["text"] for row in map(json.loads, (folder / "run" / "warnings.jsonl").read_text().splitlines())]


def test_a_run_is_told_before_its_first_iteration(tmp_path: Path) -> None:
    models = save_models(tmp_path / "models")
    refused, _ = run_ranks(_start, 1, tmp_path, models, 10**5, 1)[0]
    assert "A checkpoint of this run takes " in refused and "0.1 MiB are free" in refused
    assert not (tmp_path / "run").exists()
    _, warnings = run_ranks(_start, 1, tmp_path, models, 3 * MIB, 2)[0]
    assert any("2 more checkpoints of " in text for text in warnings), warnings
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1, 2]
