"""What runs cost, from those that were measured; a record beside its repetition; two builds beside each other."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.studies import costs, rerun, speed
from benchmarks.studies.runs import Run


def _outcome(method: str, stage: str, seconds: float) -> dict[str, Any]:
    run = {"stage": stage, "method": method, "value": "1", "seed": 1, "data": "builtin"}
    return {"run": run, "failure": "", "cost": {"processor": seconds, "memory": 500.0, "disk": 2.0}}


def test_a_budget_takes_what_measured_runs_took() -> None:
    known = [_outcome("ppo", "final", 20.0), _outcome("ppo", "final", 40.0), _outcome("gi_ppo", "final", 60.0)]
    left = [Run("final", name, "1", 2) for name in ("ppo", "gi_ppo", "rloo")] + [Run("tuning", "ppo", "1", 2)]
    found = [costs.expected(run, known, lambda run: 7.0) for run in left]
    assert [run.processor for run in found] == [30.0, 60.0, 40.0, 7.0]  # its own, its own, its stage's, a guess
    assert [run.measured for run in found] == [True, True, True, False]
    said = costs.sentence(left, known, lambda run: 7.0, workers=2)
    assert said.startswith("4 left: about 1 minutes with 2 worker(s) of one thread, 2 core-minutes (3 of them")
    assert "at most 1400 MiB of memory and 7 MiB of disk" in said


def test_a_record_is_compared_with_its_repetition() -> None:
    one = {"final": {"gold/mean": 0.123456}, "seconds": 1.0, "cost": {"processor": 3.0}, "late": {"time/total": 0.2}}
    same = {"final": {"gold/mean": 0.1234561}, "seconds": 9.0, "late": {"time/total": 0.9}}
    assert rerun.compared(one, same) == (1, [])
    other = {"final": {"gold/mean": 0.123457, "new": 1}}
    assert rerun.compared(one, other) == (
        1,
        ["final gold/mean: 0.123456 then, 0.123457 now", "final new: in one of the two only"],
    )


def test_the_commit_of_a_run_is_that_which_added_it() -> None:
    def machine(commit: str, dirty: bool = False) -> dict[str, Any]:
        return {"commit": commit, "dirty": dirty}

    additions = [
        {"methods": ["dpo"], "final_seeds": [3], "machine": machine("b")},
        {"methods": ["ipo"], "final_seeds": [], "machine": machine("c", dirty=True)},
    ]
    record = {"machine": machine("a"), "additions": additions}
    assert rerun.made_by(record, ["ppo"], [1])["commit"] == "a"
    assert rerun.made_by(record, ["ppo"], [3])["commit"] == "b" == rerun.made_by(record, ["dpo"], [1])["commit"]
    for methods, seeds, said in ((["ppo"], [1, 3], "several commits"), (["ipo"], [1], "uncommitted changes")):
        with pytest.raises(SystemExit, match=said):
            rerun.made_by(record, methods, seeds)
    # Settings that an earlier commit chose.
    record["final_machine"] = machine("d")
    assert rerun.made_by(record, ["ppo"], [1])["commit"] == "d"
    assert rerun.made_by(record, ["dpo"], [1])["commit"] == "b"


def test_shares_of_two_builds_and_what_differs() -> None:
    def row(start: float, run: float) -> dict[str, float]:
        return {"start": start, "run": run, "peak": 1.0}

    runs = {"ppo": {"new": [row(2, 6), row(2, 3)], "old": [row(4, 12), row(2, 6)]}}
    found = speed.summary(runs)["ppo"]
    assert found["share of a run"] == [0.5, 0.5] and found["share of a process"] == [0.5, 0.625]
    assert (
        "| 0.50, with the start 0.56 |"
        in speed.table({"summary": {"ppo": found}, "commits": {"new": "", "old": ""}})[-1]
    )
    assert speed.different([{"step": 1, "a": 1.0}], [{"step": 1, "a": 1.0}]) == []
    assert speed.different([{"step": 1, "a": 1.0}], [{"step": 1, "a": 2.0, "b": 0.0}]) == ["a", "b"]
