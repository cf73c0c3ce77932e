"""Peaks of a real run are those of the plan: one rank here, five layouts in benchmarks/planning/peaks.py."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.common.documents import inserted
from benchmarks.planning.peaks import (
    LAYOUTS,
    PAGE,
    RECORD,
    SIZES,
    Held,
    config_of,
    make_material,
    peaks_of,
    rows_of,
    table,
)
from gipo_mc.plan.hardware import hardware
from gipo_mc.plan.plan import make_plan
from gipo_mc.plan.run import read_run
from tests.ranks import run_ranks

#: One of `LAYOUTS` and one of `TRADES`.
SMALL = ("1", "full")


def _run(rank: int, folder: str) -> dict[str, dict[str, int]]:
    return {layout: peaks_of(config_of(Path(folder), layout)) for layout in SMALL}


def test_every_phase_of_a_run_is_within_a_tenth(tmp_path: Path):
    make_material(tmp_path, vocab_size=2048, hidden_size=128, intermediate_size=352, num_hidden_layers=4)
    (measured,) = run_ranks(_run, 1, str(tmp_path))
    for layout in SMALL:
        plan = make_plan(read_run(config_of(tmp_path, layout)), 1, hardware("cpu"))
        for row in rows_of(plan, [measured[layout]], layout):
            assert abs(row["planned"] / row["measured"] - 1) < 0.1, row


def test_the_record_of_five_layouts_is_of_this_plan(tmp_path: Path):
    """Every phase of every stage was within a tenth, and the plan says today what it said then."""
    rows = json.loads(RECORD.read_text())["rows"]
    assert {row["layout"] for row in rows} == set(LAYOUTS)
    page = PAGE.read_text(encoding="utf-8")
    assert inserted(page, RECORD.name, table(rows)) == page
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "llama"}))
    for layout, (_, ranks) in LAYOUTS.items():
        run = read_run(config_of(tmp_path, layout), shape=str(tmp_path / "config.json"))
        own = [row for row in rows if row["layout"] == layout]
        planned = [peak.total for peak in make_plan(run, ranks, hardware("cpu")).memory.peaks]
        assert planned == [row["planned"] for row in own], f"{layout}: run benchmarks/planning/peaks.py again"
        assert all(abs(row["planned"] / row["measured"] - 1) < 0.1 for row in own)


def test_what_is_held_is_counted():
    """Gradients and what autograd keeps, each storage once, until it is freed; what was there before counts nothing."""
    before = torch.ones(1000)
    with Held() as held, held.span("all"):
        weight = torch.ones(1000, requires_grad=True)
        assert held.bytes == 4000
        product = (weight * before).view(10, 100)  # keeps `before`, and makes one storage
        assert held.bytes == 8000
        product.sum().backward()
        assert weight.grad is not None and held.bytes >= 12000
        del product
        weight.grad = None
        assert held.bytes < 8000
    assert held.most["all"] >= 12000
