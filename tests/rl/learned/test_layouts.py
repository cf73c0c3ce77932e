"""Gains over the reference in other layouts, those where the reference has one of its own among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gipo_mc.rl import gi_ppo
from tests.ranks import run_ranks
from tests.runs import read_metrics, rl_config, save_models

WORDS = ["rollout.batch_size=12", "algorithm.mini_batch_size=12", "algorithm.epochs=1", "run.seed=8"]
WORDS += ["algorithm.signal=gain", "algorithm.best_group=gain", "algorithm.reference_samples=2", "run.iterations=1"]


def _train(rank: int, folder: Path, name: str, models: dict[str, str], layout: dict[str, Any]) -> None:
    gi_ppo.train(rl_config(folder, models, *WORDS, f"run.name={name}", **layout))


@pytest.mark.parametrize("layout", [{}, {"pipeline": 2, "frozen_pipeline": 1}, {"tensor": 2}], ids=str)
def test_levels_are_the_same_in_every_layout(
    tmp_path_factory: pytest.TempPathFactory, one_rank: tuple[Path, dict[str, str]], layout: dict[str, Any]
) -> None:
    alone, models = one_rank
    folder = tmp_path_factory.mktemp("two")
    run_ranks(_train, 2, folder, "run", models, layout)
    expected, found = (read_metrics(path / "run")[-1] for path in (alone, folder))
    for name in ("gain/mean", "gain/domain/easy", "signal/auc/gain", "group/0/reward"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4), name


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("one")
    models = save_models(folder / "models")
    run_ranks(_train, 1, folder, "run", models, {})
    return folder, models
