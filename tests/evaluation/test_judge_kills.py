"""A few kills of the judge's command at random moments; tests/evaluation/soak.py has any number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.soak import soak

pytest.importorskip("openai", reason="the judge's client needs the openai package: pip install 'gipo-mc[judge]'")


def test_killed_three_times_it_loses_nothing_and_pays_nothing_twice(tmp_path: Path):
    assert "3 kills" in soak(tmp_path, kills=3, seed=4, prompts=10)
