"""From turns to the table: medians, ratios a token with their spread, memory, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.rivals import builds, table


def turn(processor: float, tokens: int = 100, **others: Any) -> dict[str, Any]:
    return {"processor": processor, "wall": 2 * processor, "tokens": tokens} | others


def test_ratios_are_of_the_same_round_and_of_a_token() -> None:
    runs = {"ours": [turn(1.0), turn(2.0), turn(4.0)], "trl112": [turn(3.0, 200), turn(6.0, 200), turn(24.0, 200)]}
    found = table.summary(runs)
    assert found["ours"] == {"processor": 2.0, "wall": 4.0, "tokens": 100}
    assert found["trl112"]["processor_times"] == [1.5, 1.5, 3.0] == found["trl112"]["wall_times"]


def test_the_table_has_a_line_for_each_side_and_each_one_that_is_missing() -> None:
    runs = {"ours": [turn(1.0, phases={"rollout": 0.25})], "trl112": [turn(1.5)]}
    memory = table.memory_summary({"ours": [{"extra_bytes": 230 * table.MIB}]}, 100 * table.MIB)
    record = {
        "cases": [
            {"unit": "ppo", "summary": table.summary(runs)},
            {"unit": "memory", "summary": memory},
        ],
        "not_run": [{"side": "vllm", "reason": "not given"}],
    }
    lines = table.table(record).splitlines()
    assert lines[2] == "| PPO iteration, 32 prompts, two mini-batches | gipo_mc | 100 | 1.00 s | 2.00 s |  |  |"
    assert lines[3].endswith("| TRL 1.12 | 100 | 1.50 s | 3.00 s | 1.50x (1.50 to 1.50) | 1.50x (1.50 to 1.50) |")
    assert "| gipo_mc | 230 MiB | 100 MiB | 2.30 |" in lines
    assert "PPO iteration, 32 prompts, two mini-batches, gipo_mc: rollout 0.25 s" in lines
    assert lines[-1] == "not run: vLLM: not given"


def test_a_job_counts_from_the_third_iteration_on() -> None:
    rows = [
        {"time/total": total, "time/rollout": total / 2, "throughput/tokens_per_second": 100 / total}
        for total in (9.0, 5.0, 1.0, 2.0, 3.0)
    ]
    found = builds.of_job(rows, [40.0, 50.0, 54.0, 60.0, 64.0])
    assert found["wall"] == 2.0 and found["phases"]["rollout"] == 1.0 and found["tokens"] == pytest.approx(100)
    assert found["processor"] == 4.0


def test_a_tree_without_kernels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no compiled kernels"):
        builds.check(tmp_path)
