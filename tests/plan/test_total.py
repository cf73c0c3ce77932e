"""Memory of the host, hours of a whole run, and tables that stay tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gipo_mc.config import load_config
from gipo_mc.plan.hardware import OURS, hardware
from gipo_mc.plan.plan import Plan, make_plan
from gipo_mc.plan.run import read_run
from gipo_mc.plan.show.numbers import duration, number, size
from gipo_mc.plan.show.one import as_json, as_text
from gipo_mc.plan.total import total
from tests.source_rules import ROOT

SEVEN_B = str(ROOT / "configs/paper/hh_rl.yaml")
SEVENTY_B = str(ROOT / "configs/large/llama3_70b_rl.yaml")
EVERYTHING = "memory.offload=[frozen,optimizer,idle]"
GIB = 2**30


def _plan(path: str, gpus: int, *overrides: str, gpu: str = "h100", node: int = 8) -> Plan:
    return make_plan(read_run(load_config(path, list(overrides)), config_file=path), gpus, hardware(gpu), node=node)


def test_the_host_keeps_what_leaves_and_copies_what_is_saved() -> None:
    """70B on TP8 x PP2 x DP4: two frozen and two trained models of 4.4e9 numbers on a rank, of 2 bytes, and a quarter
    of 12 bytes for two; a save copies weights and optimizer state once more."""
    plan = _plan(SEVENTY_B, 64, "parallel.pipeline=2", EVERYTHING)
    assert plan.offloaded == pytest.approx(4.41e9 * (2 * 2 + 2 * 2 + 2 * 12 / 4), rel=0.01)
    assert plan.offloaded / GIB == pytest.approx(57.5, abs=0.1) and plan.host / GIB == pytest.approx(41.1, abs=0.1)
    assert plan.host_of_a_node / GIB == pytest.approx(789, abs=1)
    text = as_text(plan, None)
    assert "memory.offload keeps 57.5 GiB for each rank in page-locked memory of the host, all the time" in text
    assert f"host memory of a node with 8 ranks, up to {plan.host_of_a_node / GIB:.1f} GiB" in text
    told = as_json(plan)
    assert told["host_bytes_of_offload"] == plan.offloaded and told["host_bytes_of_a_node"] == plan.host_of_a_node
    assert _plan(SEVENTY_B, 64, "parallel.pipeline=2", EVERYTHING, node=4).host_of_a_node * 2 == plan.host_of_a_node


@pytest.mark.parametrize(
    ("kinds", "bytes_a_number"), [("frozen", 4), ("optimizer", 12), ("idle", 4), ("frozen,idle", 8)]
)
def test_each_kind_that_leaves_has_its_bytes(kinds: str, bytes_a_number: int) -> None:
    """7B on TP4 x DP2: two models each of 2 bytes, two optimizers of 12 / 2."""
    plan = _plan(SEVEN_B, 8, f"memory.offload=[{kinds}]")
    assert plan.offloaded == pytest.approx(6.74e9 / 4 * bytes_a_number, rel=0.03)


def test_on_a_cpu_what_leaves_lies_in_files() -> None:
    text = as_text(_plan(SEVEN_B, 8, EVERYTHING, gpu="cpu"), None)
    assert "for each rank in files in the run folder, all the time" in text
    assert "memory.offload keeps" not in as_text(_plan(SEVEN_B, 8), None)


def test_hours_of_a_run_are_its_iterations_evaluations_and_checkpoints() -> None:
    often = ["run.iterations=105", "checkpoint.every=50", "eval.every=25", "algorithm.critic_warmup=5"]
    plan = _plan(SEVEN_B, 8, *often)
    whole = total(plan)
    assert whole is not None and plan.cost is not None
    assert whole.training == pytest.approx(105 * plan.seconds - 5 * plan.cost["update_policy"].seconds)
    assert (whole.saves, whole.evaluations) == (3, 6), "the last iteration too, and before the first an evaluation"
    assert whole.saving == pytest.approx(3 * plan.cost["save"].seconds)
    # 64 prompts of each of two domains, which is the batch of an iteration: rollout, two log-probs and rewards.
    phases = ("rollout", "behaviour_logprob", "reference_logprob", "rewards")
    assert whole.evaluating == pytest.approx(6 * sum(plan.cost[name].seconds for name in phases), rel=0.01)
    hours = whole.seconds / 3600
    assert f"{hours * 8:,.0f} GPU-hours: 105 iterations " in " ".join(as_text(plan, None).split())
    assert as_json(plan)["run"]["gpu_hours"] == pytest.approx(hours * 8)
    slower = make_plan(plan.run, 8, plan.device, program=replace(OURS, row=1e-3))
    more = total(slower)
    assert more is not None and more.evaluating > whole.evaluating, "an evaluation has that program's times, too"
    none = total(_plan(SEVEN_B, 8, "eval.prompts=0", "checkpoint.every=0"))
    assert none is not None and (none.evaluations, none.saves) == (0, 1)
    assert total(_plan(SEVEN_B, 8, gpu="cpu")) is None and as_json(_plan(SEVEN_B, 8, gpu="cpu"))["run"] is None


def test_supervised_runs_have_hours_without_evaluations() -> None:
    text = " ".join(as_text(_plan(str(ROOT / "configs/paper/hh_sft.yaml"), 8), None).split())
    assert "the run takes " in text and "starts, evaluations and failures are not counted" in text


def test_numbers_have_three_digits_and_no_power_of_ten() -> None:
    assert [number(value) for value in (0, 8.314, 30.24, 999.4, 999.6, 1152.3, 54_500)] == [
        "0", "8.31", "30.2", "999", "1,000", "1,152", "54,500",
    ]  # fmt: skip
    assert (duration(90), duration(5400)) == ("1.5 minutes", "1.5 hours")
    assert (size(3 * 2**40), size(2**30), size(2**21), size(512)) == ("3.0 TiB", "1.0 GiB", "2.0 MiB", "0.5 KiB")


def test_rows_of_a_table_are_lines_with_a_pipeline_too() -> None:
    plan = _plan(SEVENTY_B, 64, "parallel.pipeline=2", EVERYTHING)
    lines = as_text(plan, None).splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("GiB at the peak"))
    assert lines[head].endswith("  sent on  scratch    total")
    rows = lines[head + 1 : head + 6]
    assert [row[:18].rstrip() for row in rows] == plan.memory.phases
    assert {len(row) for row in [lines[head], *rows]} == {len(lines[head])} and len(lines[head]) <= 120
    assert any(line.startswith("update_policy") and line.endswith("tensor 732.8 (NVLink)") for line in lines)


def test_an_optimizer_of_one_data_parallel_rank_is_not_called_sharded() -> None:
    assert "optimizer whole on each rank" in " ".join(as_text(_plan(SEVENTY_B, 64), None).split())
    assert "optimizer sharded over data-parallel ranks" in " ".join(as_text(_plan(SEVEN_B, 8), None).split())
