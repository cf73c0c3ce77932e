"""The closest published run, by phase: the plan is within a quarter of it, with two numbers of its program's host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.planning import published
from gipo_mc.plan.hardware import OURS
from tests.source_rules import ROOT


@pytest.mark.parametrize("lengths", published.STEPS, ids=str)
def test_every_phase_is_within_a_quarter(lengths: tuple[int, int]):
    plans = published.planned(*lengths)
    errors = {name: plans[name] / seconds - 1 for name, seconds in published.STEPS[lengths].items()}
    assert len(errors) == 6 and all(abs(error) < 0.25 for error in errors.values()), errors


def test_arithmetic_alone_explains_half_of_it(monkeypatch: pytest.MonkeyPatch):
    """What the page says of the plan of a program whose host was not measured."""
    monkeypatch.setattr(published, "VERL", replace(OURS, reserves=False))
    lengths, seconds = next(iter(published.STEPS.items()))
    planned = sum(published.planned(*lengths).values())
    assert planned / sum(seconds.values()) == pytest.approx(0.47, abs=0.02)


def test_the_page_shows_the_comparison():
    assert published.table() in (ROOT / "docs/planning.md").read_text(encoding="utf-8")
