"""The plan with memory.offload: what is there in each phase, by paper and pencil."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError
from gipo_mc.plan.hardware import hardware
from gipo_mc.plan.layouts.search import search
from gipo_mc.plan.plan import Plan, make_plan
from gipo_mc.plan.run import read_run
from gipo_mc.plan.show.one import as_text
from gipo_mc.tools.verbs.plan import main
from tests.source_rules import ROOT

SEVEN_B = str(ROOT / "configs/paper/hh_rl.yaml")
#: Numbers of a model on a rank of TP4 x DP2.
MODEL = 6.74e9 / 4


def _plan(*overrides: str) -> Plan:
    config = load_config(SEVEN_B, list(overrides))
    return make_plan(read_run(config, config_file=SEVEN_B), 8, hardware("h100"))


def _bytes_a_number(plan: Plan, phase: str) -> list[float]:
    """Of weights, gradients and optimizer state."""
    kinds = plan.memory.of(phase).kinds
    return [kinds[kind] / MODEL for kind in ("weights", "gradients", "optimizer")]


@pytest.mark.parametrize(
    ("offload", "expected"),
    [
        ("[]", {"rollout": [8, 8, 12], "scoring": [8, 8, 12], "policy update": [8, 8, 12], "save": [8, 8, 12]}),
        ("[frozen]", {"rollout": [4, 8, 12], "scoring": [6, 8, 12], "policy update": [4, 8, 12]}),
        ("[optimizer]", {"rollout": [8, 8, 0], "scoring": [8, 8, 0], "critic update": [8, 8, 6], "save": [8, 8, 6]}),
        (
            "[frozen,optimizer,idle]",
            {
                "rollout": [2, 0, 0], "scoring": [4, 0, 0], "critic update": [2, 4, 6], "policy update": [2, 4, 6],
                "save": [2, 0, 6],
            },
        ),
    ],
)  # fmt: skip
def test_what_is_on_the_device_in_each_phase_of_7b(offload: str, expected: dict[str, list[float]]) -> None:
    plan = _plan(f"memory.offload={offload}")
    for phase, numbers in expected.items():
        assert _bytes_a_number(plan, phase) == pytest.approx(numbers, rel=0.04, abs=0.01), phase


def test_copies_take_time_and_the_cache_is_the_rollouts() -> None:
    plain, moved = _plan(), _plan("memory.offload=[frozen,optimizer,idle]")
    assert plain.cost is not None and "offload" not in plain.cost
    # Twice the optimizer's 6 bytes and three times the weights' 2 of two models, two frozen ones in: 40 bytes a number.
    assert moved.cost is not None and moved.cost["offload"].seconds == pytest.approx(40 * MODEL / 48e9, rel=0.03)
    assert plain.memory.of("policy update").kinds["kv_cache"] > 0 == moved.memory.of("policy update").kinds["kv_cache"]
    assert moved.memory.cache_limit > plain.memory.cache_limit
    assert moved.memory.worst.total < 0.6 * plain.memory.worst.total


def test_frozen_models_in_a_layout_of_their_own() -> None:
    """At TP1 a rank has all numbers of both, runs a quarter of the rows, and sends nothing."""
    plain, apart = _plan(), _plan("parallel.frozen_tensor=1")
    assert _bytes_a_number(apart, "policy update") == pytest.approx([4 + 4 * 4, 8, 12], rel=0.04)
    assert plain.cost is not None and apart.cost is not None
    assert apart.cost["reference_logprob"].flops == pytest.approx(plain.cost["reference_logprob"].flops, rel=0.02), (
        "but for the padding of sequence parallelism"
    )
    assert plain.cost["reference_logprob"].sent and not apart.cost["reference_logprob"].sent
    assert apart.cost["update_policy"] == plain.cost["update_policy"]
    model, (on_a_rank,) = apart.parameters("reference")
    assert model == sum(one.numel for one in on_a_rank), "what is printed is that layout's, too"
    assert "frozen models on tensor 1 x pipeline 1 x data 8" in " ".join(as_text(apart, None).split())
    with pytest.raises(ConfigError, match="frozen_tensor=3"):
        _plan("parallel.frozen_tensor=3")


def test_frozen_models_in_a_layout_of_their_own_have_one_chunk() -> None:
    """Four layers on a rank are not eight chunks, but the policy's sixteen are."""
    chunks = ["parallel.tensor=2", "parallel.pipeline=2", "parallel.virtual_pipeline=8"]
    plan = _plan(*chunks, "parallel.frozen_tensor=1", "parallel.frozen_pipeline=8")
    assert plan.grid.virtual == 8 and plan.grid.of(False).virtual == 1


def test_a_save_copies_what_leaves_the_device() -> None:
    """All of both models that a rank has, which `Engine.snapshot` keeps until it is written: 2 + 12 / 2 bytes each."""
    assert _plan("memory.offload=[optimizer]").host == pytest.approx(2 * (2 + 12 / 2) * MODEL, rel=0.02)
    assert _plan("memory.offload=[frozen]").host == _plan().host, "trained models stay where they are"
    assert "off the device while idle: frozen;" in " ".join(as_text(_plan("memory.offload=[frozen]"), None).split())


def test_a_host_that_is_too_small_is_a_problem_and_what_is_proposed_fits_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", SEVEN_B, "--gpus", "8", "--host-memory"]
    plan, whole = _plan("memory.offload=[frozen,optimizer]"), _plan("memory.offload=[frozen,optimizer]").host_of_a_node
    assert plan.fits
    for gib, code in (whole / 2**30 * 1.01, 0), (whole / 2**30 * 0.99, 2):
        assert main([*words, f"{gib}", "memory.offload=[frozen,optimizer]"]) == code
    said = capsys.readouterr().out
    assert f"what is offloaded and a save of its ranks may take {whole / 2**30:.1f} GiB" in said
    # The fastest layout on eight of these offloads; where the host has no room for that, another one comes first.
    small = hardware("a100")
    run = plan.run.changed({"memory.offload": []})
    first = search(run, 8, small)[0]
    assert first.fits and first.offloaded
    limit = first.host_of_a_node / 2
    plans = search(run, 8, replace(small, host_memory=limit))
    assert any(each.fits for each in plans)
    assert all(each.host_of_a_node <= limit for each in plans if each.fits)


def test_a_cpu_has_no_host_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", SEVEN_B, "--gpu", "cpu", "--host-memory", "64"]) == 2
    assert "leave it out with --gpu cpu" in capsys.readouterr().err
