"""The simulation of coverage: its truth, a small run of it, and the record in the repository."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.documents import inserted
from benchmarks.evaluation import coverage
from gipo_mc.evaluation.tables.build import build_table

RECORD = Path(coverage.__file__).parents[1] / "results" / "evaluation_coverage.json"


def test_the_truth_is_what_the_table_says_of_the_same_pairs():
    scenario = coverage.SCENARIOS["dialogues, a judge who likes length"]
    judged = coverage.judge(scenario, 200, np.random.default_rng(0))
    whole, *domains = build_table(coverage.games(judged), 50).evaluators[0].cells
    true = coverage.truth(judged)
    for name in ("margin", "win", "tie", "lose", "first", "controlled"):
        assert getattr(whole, name).value == pytest.approx(true[name], abs=1e-6)
    assert [cell.margin.value for cell in domains] == pytest.approx(true["domains"])


def test_a_small_run_covers_about_95_in_100():
    """300 evaluations of 60 dialogues, with both orders: 95 +- 1.3 (one standard error); games as independent less."""
    scenario = replace(coverage.SCENARIOS["dialogues, the first place favoured"], conversations=60)
    found = coverage.coverage(scenario, runs=300, draws=400, seed=1)["coverage"]
    for name in ("margin", "win", "tie", "lose", "first", "controlled", "domains"):
        assert 0.915 <= found[name] <= 0.985, name
    assert found["independent"] < 0.91


def test_the_record_keeps_the_promise():
    record = json.loads(RECORD.read_text())
    assert record["runs"] >= 1000
    assert record["scenarios"].keys() == coverage.SCENARIOS.keys()
    for found in record["scenarios"].values():
        rare = min(found["truth"]["lose"], found["truth"]["win"]) < 0.02  # covered too often, as the page says
        for name in ("margin", "win", "tie", "lose", "first", "controlled", "domains"):
            most = 1.0 if rare and name in ("lose", "domains") else 0.97
            assert 0.93 <= found["coverage"][name] <= most, name
    assert record["scenarios"]["two samples of one policy"]["significant"] <= 0.05


def test_the_page_shows_the_record():
    page = (RECORD.parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = coverage.document_table(json.loads(RECORD.read_text(encoding="utf-8")))
    assert inserted(page, RECORD.name, table) == page
