"""What failures cost: the formulas beside a simulation of runs that fail, and a run on more and more GPUs."""

from __future__ import annotations

import json
import math
import random

import pytest

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError
from gipo_mc.plan.goodput import daly, goodput, scale, sizes, young
from gipo_mc.plan.hardware import UTILISATION, hardware
from gipo_mc.plan.run import read_run
from gipo_mc.plan.show.scale import scale_json, scale_text
from gipo_mc.tools.verbs.plan import main
from tests.source_rules import ROOT

SEVEN_B = str(ROOT / "configs/paper/hh_rl.yaml")


def simulated(every: float, save: float, restart: float, mtbf: float, intervals: int) -> float:
    """Progress over time of a run with failures at exponential distances, restarts included."""
    chance = random.Random(7)
    clock, done = 0.0, 0
    failure = chance.expovariate(1 / mtbf)
    ready = 0.0  # when the present interval may begin
    while done < intervals:
        end = ready + every + save
        if failure >= end:
            clock = ready = end
            done += 1
            continue
        clock = failure
        failure = clock + chance.expovariate(1 / mtbf)
        while failure < clock + restart:  # the restart fails, too
            clock = failure
            failure = clock + chance.expovariate(1 / mtbf)
        ready = clock + restart
    return done * every / clock


@pytest.mark.parametrize(("save", "restart", "mtbf"), [(30, 300, 20_000), (120, 300, 4_000), (60, 1_800, 3_000)])
def test_expected_progress_is_that_of_simulated_runs(save: float, restart: float, mtbf: float):
    found = goodput(10.0, save, restart, mtbf)
    assert found.share == pytest.approx(simulated(found.every, save, restart, mtbf, 20_000), rel=0.02)


@pytest.mark.parametrize(("save", "mtbf"), [(10, 100_000), (60, 5_000), (300, 2_000)])
def test_the_interval_loses_less_than_shorter_and_longer_ones(save: float, mtbf: float):
    def share(every: float) -> float:
        return every / (mtbf * math.expm1((every + save) / mtbf))

    best = daly(save, mtbf)
    assert all(share(best) >= share(best * factor) for factor in (0.8, 0.9, 1.1, 1.25))
    assert young(save, mtbf) == pytest.approx(best, rel=0.3)


def test_no_failures_and_nothing_but_failures():
    free = goodput(10.0, 30.0, 300.0, 1e12)
    assert free.share == pytest.approx(free.every / (free.every + 30.0), rel=1e-4)
    assert goodput(10.0, 0.0, 300.0, 1e12).share == pytest.approx(1.0)
    assert goodput(10.0, 60.0, 300.0, 20.0).share < 1e-6
    assert goodput(10.0, 60.0, 1e6, 1.0).share == 0.0
    assert daly(100.0, 20.0) == 20.0


def test_sizes_double():
    assert sizes(8, 64) == [8, 16, 32, 64]
    assert sizes(6, 40) == [6, 12, 24]
    assert sizes(8, 8) == [8]


def test_a_growing_batch_scales_better_than_a_fixed_one_and_failures_cost_more_on_more_gpus():
    run = read_run(load_config(SEVEN_B, []), config_file=SEVEN_B)
    share = {"node": 8, "utilisation": UTILISATION}
    fixed, grown = (scale(run, [8, 32, 128], hardware("h100"), grow=grow, **share) for grow in (False, True))
    assert [one.plan.grid.world for one in fixed] == [8, 32, 128]
    assert [one.plan.run.batch for one in grown] == [fixed[0].plan.run.batch * factor for factor in (1, 4, 16)]
    assert fixed[0].efficiency == grown[0].efficiency == 1.0
    assert fixed[2].efficiency < fixed[1].efficiency < 1.0 and fixed[2].efficiency < grown[2].efficiency <= 1.05
    assert all(one.plan.fits for one in [*fixed, *grown])
    assert [one.goodput.mtbf * one.plan.grid.world for one in grown] == pytest.approx([grown[0].goodput.mtbf * 8] * 3)
    worse = scale(run, [128], hardware("h100"), grow=False, failure_hours=500.0, **share)[0]
    assert worse.goodput.share < fixed[2].goodput.share < 1.0 and worse.iterations < fixed[2].iterations
    assert len(scale_text(grown, 100.0, 300.0).splitlines()) == 6
    assert [line["gpus"] for line in scale_json(grown)] == [8, 32, 128]


def test_what_fits_nowhere_is_said():
    run = read_run(load_config(SEVEN_B, []), config_file=SEVEN_B)
    with pytest.raises(ConfigError, match="No layout of 1 to 1 GPUs fits"):
        scale(run, [1], hardware("a100"), grow=False, node=8, utilisation=UTILISATION)


def test_the_command(capsys: pytest.CaptureFixture[str]):
    own = ["--config", SEVEN_B, "--gpus", "8"]
    assert main([*own, "--scale-to", "16", "--json"]) == 0
    assert [line["gpus"] for line in json.loads(capsys.readouterr().out)] == [8, 16]
    assert main([*own, "--scale-to", "4"]) == 2
    assert "--scale-to 4 is less than --gpus 8" in capsys.readouterr().err
    assert main([*own, "--scale-to", "16", "--gpu", "cpu"]) == 2
    assert "name a GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main([*own, "--scale-to", "16", "--failure-hours", "0"])
    assert refused.value.code == 2 and "no number above 0" in capsys.readouterr().err
