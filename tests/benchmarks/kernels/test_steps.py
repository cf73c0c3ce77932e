"""The benchmark of whole steps: both sides do the same step, and its table says what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.kernels import steps
from tests.ranks import run_ranks

TINY = ["--quick", "--vocabulary=128", "--hidden=32", "--sequences=4", "--mini-batch=2", "--micro-batch=2"]


def _measured(rank: int, step: str, side: str, rows: int) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIPO_MC_OPS", side)
        options = [*TINY, "--worker", step, "--dtypes", "float32", "--logit-rows", str(rows), "--repeats=2"]
        return steps.measure(steps.arguments(options))


@pytest.mark.parametrize(("step", "rows"), [("sft", 0), ("ppo", 9)])
def test_both_sides_do_the_same_step(step: str, rows: int) -> None:
    runs = {side: run_ranks(_measured, 1, step, side, rows) for side in steps.SIDES}
    ours, eager = (runs[side][0] for side in steps.SIDES)
    assert len(ours["seconds"]) == len(ours["processor_seconds"]) == 2 and min(ours["seconds"]) > 0
    assert ours["peak_bytes"] >= ours["before_bytes"] > 0
    assert ours["figures"]["grad_norm"] == pytest.approx(eager["figures"]["grad_norm"], rel=1e-4)
    if step == "ppo":
        assert ours["figures"]["group_variance"] == pytest.approx(eager["figures"]["group_variance"], rel=1e-3)
    found = steps.summary(runs)
    assert found["loss_difference"] < 1e-4
    case = {"step": step, "dtype": "float32", "logit_rows": rows} | found
    line = steps.table({"cases": [case]}).splitlines()[-1]
    assert line.startswith(f"| {step}, float32, ") and f"{found['times_faster']:.2f}x" in line
