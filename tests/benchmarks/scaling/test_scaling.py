"""The scaling benchmark: exponents, one real point, and a page that shows the record and the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common.documents import inserted
from benchmarks.scaling import gpus, scaling
from benchmarks.scaling.scaling import PAGE, PHASES, RECORD, SERIES, Work, exponent, measure, table, with_exponents
from gipo_mc.models.shape import ModelShape
from gipo_mc.plan.parameters import Role, whole_model
from tests.ranks import run_ranks


def test_exponents_of_powers():
    sizes = [1.0, 2.0, 4.0, 8.0]
    assert exponent(sizes, [3 * size**2 for size in sizes]) == pytest.approx(2)
    assert exponent(sizes, [5.0] * 4) == pytest.approx(0)


def test_parameters_are_those_of_the_model():
    work = Work(hidden=64)
    shape = ModelShape(work.vocabulary, 64, work.feed_forward, 4, 4, 4, 16, 64, family="llama", tied=False)
    assert work.parameters == whole_model(Role("policy", shape, "lm", True), 1)


def _rank(rank: int, folder: str, work: Work, memory: bool) -> None:
    scaling.run_worker(Path(folder), work, memory)


def test_one_point_is_measured_and_shown(monkeypatch: pytest.MonkeyPatch):
    def fork(folder: Path, work: Work, memory: bool) -> None:  # a new interpreter imports for seconds
        run_ranks(_rank, work.ranks, str(folder), work, memory)

    monkeypatch.setattr(scaling, "_start", fork)
    found = measure(Work(batch=4, length=4, vocabulary=512, hidden=32))
    assert set(found) == set(PHASES)
    assert all(one["seconds"] > 0 and one["bytes"] > 1e5 for one in found.values())
    assert found["update_policy"]["bytes"] > found["rollout"]["bytes"]
    twice = {phase: {kind: 2 * value for kind, value in one.items()} for phase, one in found.items()}
    series = with_exponents("batch", [{"size": "4", "phases": found}, {"size": "8", "phases": twice}])
    assert all(slope == pytest.approx(1) for one in series["exponents"].values() for slope in one.values())
    assert table("batch", series).count("\n") == 4


def test_the_page_shows_the_record():
    record, page = json.loads(RECORD.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    assert set(record["series"]) == set(SERIES)
    for name, series in record["series"].items():
        assert inserted(page, f"{RECORD.name}: {name}", table(name, series)) == page


def test_the_page_shows_the_plan_of_today():
    page = PAGE.read_text(encoding="utf-8")
    for source, grow in gpus.TABLES.items():
        shown = page.partition(f"<!-- table of {source} -->")[2]
        lines = gpus.text(grow, 32).splitlines()
        assert len(lines) == 6
        for line in lines:
            assert line in shown, f"docs/performance.md is not of this code: run benchmarks/scaling/gpus.py\n{line}"
