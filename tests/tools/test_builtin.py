"""The built-in task makes and trains what a trainer starts from, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gipo_mc.config import load_config
from gipo_mc.run import checkpoint
from gipo_mc.tools import builtin
from tests.ranks import run_ranks

SMALL = {"train": {"batch_size": 8}, "data": {"prompts": ["builtin"], "max_rows": 16}, "eval": {"prompts": 0}}


def _prepare(rank: int, task: str, folder: Path, *words: str) -> None:
    for name in ("SFT",):
        full = getattr(builtin, name)

        def small(full: builtin.BuiltinTask = full) -> dict[str, dict[str, object]]:
            base = full.base()
            return base | {key: base[key] | own for key, own in (SMALL | {"run": {"iterations": 2}}).items()}

        setattr(builtin, name, replace(full, base=small))  # this process is the test's own
    chosen = getattr(builtin, task)
    chosen.prepare(load_config(None, [f"run.dir={folder}", "device=cpu", *words], chosen.base()))


def _made(folder: Path) -> dict[str, list[int]]:
    return {path.name: checkpoint.steps(path / "checkpoints") for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("task", "runs"),
    [
        ("SFT", []),
        ("REWARD", ["builtin_sft"]),
        ("DPO", ["builtin_sft"]),
        ("GI_PPO", ["builtin_sft"]),
    ],
)
def test_what_a_trainer_starts_from_is_made(tmp_path: Path, task: str, runs: list[str]) -> None:
    run_ranks(_prepare, 1, task, tmp_path)
    assert _made(tmp_path) == {"builtin_model": []} | {name: [2] for name in runs}


def test_nothing_is_trained_twice_and_nothing_that_is_not_asked_for(tmp_path: Path) -> None:
    run_ranks(_prepare, 1, "GI_PPO", tmp_path, f"model.policy={tmp_path}/builtin_model")
    assert _made(tmp_path) == {}
    run_ranks(_prepare, 2, "GI_PPO", tmp_path, "parallel.tensor=2")
    assert _made(tmp_path) == {"builtin_model": [], "builtin_sft": [2]}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_ranks(_prepare, 1, "REWARD", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
