"""Layouts that are proposed: they stay within nodes, leave room where that costs nothing, and can be pasted."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.planning.peaks import RECORD
from gipo_mc.config import load_config
from gipo_mc.plan.cost import Cost
from gipo_mc.plan.hardware import hardware
from gipo_mc.plan.layouts.nearest import more_gpus, nearest_change
from gipo_mc.plan.layouts.search import ALIKE, ranked, search
from gipo_mc.plan.memory import KINDS, UNCERTAIN, Memory
from gipo_mc.plan.plan import Plan, make_plan, words
from gipo_mc.plan.run import Run, read_run
from gipo_mc.plan.show.one import as_json, as_text
from gipo_mc.plan.show.search import pasted, search_text
from gipo_mc.tools.verbs.plan import main
from tests.plan.test_plan import CONFIGS, gpus_of
from tests.source_rules import ROOT

SEVEN_B = str(ROOT / "configs/paper/hh_rl.yaml")
EIGHT_B = str(ROOT / "configs/large/llama3_8b_rl.yaml")
SEVENTY_B = str(ROOT / "configs/large/llama3_70b_rl.yaml")


def _run(path: str, *overrides: str) -> Run:
    return read_run(load_config(path, list(overrides)), config_file=path)


def _plan(path: str, gpus: int, *overrides: str, **options: Any) -> Plan:
    return make_plan(_run(path, *overrides), gpus, hardware("h100"), **options)


def test_the_nearest_change_keeps_tensor_ranks_in_a_node_and_takes_the_least_time() -> None:
    plan = _plan(SEVENTY_B, 8, "parallel.pipeline=1")
    change = nearest_change(plan)
    assert change is not None and change.gpus == 32
    assert change.options["parallel.pipeline"] == 4 and "parallel.tensor" not in change.options
    assert change.plan.seconds < 100, "and not 1,150 with tensor ranks over four nodes"
    for offload in ([], ["frozen"], ["frozen", "optimizer"]):
        other = make_plan(plan.run.changed({**change.options, "memory.offload": offload}), 32, plan.device)
        assert not other.fits or other.seconds >= change.plan.seconds
    host = f"{change.plan.host_of_a_node / 2**30:.1f} GiB of host memory a node"
    assert host in " ".join(as_text(plan, change).split()), "what it takes elsewhere is said"


@pytest.mark.parametrize("node", [4, 6])
def test_layouts_of_the_search_divide_a_node(node: int) -> None:
    plans = search(_run(SEVEN_B), 24, hardware("h100"), node=node)
    assert plans and not any(plan.grid.crosses_nodes("tensor") for plan in plans)


def test_where_nothing_fits_the_search_says_how_many_gpus_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", EIGHT_B, "--gpus", "1", "--search"]) == 2
    text = capsys.readouterr().out
    assert "No layout of 1 GPU fits." in text and "are 4, with " in text and "of host memory a node" in text
    found = text.splitlines()[-1]
    assert found.startswith("--gpus 4 parallel.tensor=")
    assert main(["--config", EIGHT_B, *shlex.split(found)]) == 0, "and these fit"
    capsys.readouterr()
    rows = [line for line in text.splitlines() if line.startswith("tensor ")]
    assert rows and all("memory.offload=[frozen,optimizer,idle]" in row for row in rows), "what relieves was tried"
    main(["--config", EIGHT_B, "--gpus", "1", "--search", "--json"])
    first = json.loads(capsys.readouterr().out)[0]
    assert not first["fits"] and first["nearest_change"].endswith("on 4 GPUs")


def test_nothing_fits_on_sixteen_times_as_many() -> None:
    run = _run(SEVENTY_B, "rollout.kv_cache_gib=0.0001")
    assert more_gpus(lambda gpus: search(run, gpus, hardware("h100")), 1) is None
    plans = search(run, 1, hardware("h100"))
    assert "No layout of 1 GPU fits, and none of up to 16 times as many." in search_text(plans, 9)


def test_the_first_row_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SEVENTY_B, "--gpus", "32", "--search"]) == 0
    lines = capsys.readouterr().out.splitlines()
    pasted_words = lines[lines.index("the first of them, as options:") + 1]
    chosen = shlex.split(pasted_words)
    assert [word.partition("=")[0] for word in chosen[:4]] == [
        "parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline", "parallel.sequence",
    ]  # fmt: skip
    assert any(word.startswith("memory.") for word in chosen[4:]), "what makes room belongs to it"
    assert main(["--config", SEVENTY_B, "--gpus", "32", *chosen, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    first = search(_run(SEVENTY_B), 32, hardware("h100"))[0]
    assert own["seconds_of_an_iteration"] == first.seconds and words(first.options) == chosen
    assert {key: own["options"][key] for key in own["options"]}.items() <= first.options.items()


def test_lists_are_quoted_for_a_shell() -> None:
    plan = replace(_plan(SEVEN_B, 8, "memory.offload=[frozen,idle]"), relief=("memory.offload=[frozen,idle]",))
    assert pasted(plan).endswith("'memory.offload=[frozen,idle]'")
    assert as_json(plan)["options"]["memory.offload"] == ["frozen", "idle"]


def _of(plan: Plan, seconds: float, peak: float) -> Plan:
    """The plan with another time and peak."""
    kinds = dict.fromkeys(KINDS, 0) | {"weights": int(peak * plan.memory.capacity)}
    worst = replace(plan.memory.worst, kinds=kinds)
    assert plan.cost is not None
    cost = dict.fromkeys(plan.cost, Cost()) | {
        "rollout": replace(plan.cost["rollout"], compute=seconds, bubble=0.0, exchange=0.0)
    }
    return replace(plan, memory=replace(plan.memory, peaks=[worst]), cost=cost)


def test_a_tight_layout_stands_behind_those_that_are_as_fast() -> None:
    plan = _plan(SEVEN_B, 8)
    tight, slower, slow, too_large = (
        _of(plan, *numbers) for numbers in ((10.0, 0.99), (10.4, 0.9), (10.6, 0.5), (1.0, 1.1))
    )
    assert 10.4 < 10.0 * (1 + ALIKE) < 10.6
    assert [one.seconds for one in ranked([too_large, slow, tight, slower])] == [10.4, 10.0, 10.6, 1.0]
    text = search_text(ranked([too_large, slow, tight, slower]), 9)
    assert "  tight " in text and f"the {UNCERTAIN:.1%} that planned peaks were off" in text
    assert "It fits tightly: " in as_text(tight, None) and "It fits: " in as_text(slower, None)
    assert as_json(tight)["tight"] and not as_json(slower)["tight"] and not as_json(too_large)["tight"]


def test_tight_is_less_room_than_planned_peaks_were_off() -> None:
    rows = json.loads(RECORD.read_text())["rows"]
    worst = max(abs(row["planned"] / row["measured"] - 1) for row in rows)
    assert round(worst, 3) == UNCERTAIN, "docs/planning.md has the errors of each layout"
    peaks = _plan(SEVEN_B, 8).memory.peaks
    total = max(peak.total for peak in peaks)
    assert Memory(peaks, total * 1.04).tight and not Memory(peaks, total * 1.05).tight
    assert not Memory(peaks, total * 0.99).tight and not Memory(peaks, 0).tight


def test_vllm_has_no_pipeline_in_the_search_either() -> None:
    plans = search(_run(EIGHT_B, "rollout.engine=vllm"), 8, hardware("h100"))
    assert {plan.grid.pipeline for plan in plans} == {1}
    said = "rollout.engine=vllm is planned as megatron: "
    assert said in search_text(plans, 1) and said in as_text(plans[0], None) and said in as_json(plans[0])["notes"][0]
    assert "planned as" not in as_text(_plan(EIGHT_B, 8), None)


def test_the_page_says_how_far_the_search_is_ahead_of_what_is_shipped() -> None:
    """Of GI-PPO's configurations, and of the others."""
    ahead: dict[bool, list[float]] = {True: [], False: []}
    for path in (path for path in CONFIGS if path.parent.name in ("large", "paper")):
        run, gpus = _run(str(path)), gpus_of(path)
        own, first = make_plan(run, gpus, hardware("h100")), search(run, gpus, hardware("h100"))[0]
        ahead[run.command == "train_gi_ppo"].append(100 * (1 - first.seconds / own.seconds))
    page = " ".join((ROOT / "docs/planning.md").read_text(encoding="utf-8").split())
    rl, others = (f"{min(ahead[kind]):.0f} to {max(ahead[kind]):.0f} %" for kind in (True, False))
    assert f"takes {rl} less time than these for GI-PPO" in page and f"and {others} less for the others" in page
