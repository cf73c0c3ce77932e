"""The demo over seeds: the whole of it at a tiny size, twice, and its settings, which are the demo's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies import cells, demo_seeds, tables
from gipo_mc.config import load_config
from gipo_mc.tools import builtin
from gipo_mc.tools.verbs import demo


def test_a_small_one_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    words = ["--quick", "--workers", "2", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    assert demo_seeds.main(words) == 0
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    assert [(run["run"]["method"], run["run"]["seed"]) for run in record["runs"]] == [
        (method, seed) for seed in (1, 2) for method in ("ppo", "gi_ppo")
    ]
    starts = {run["run"]["seed"]: run["curve"][0]["gold/mean"] for run in record["runs"]}
    assert all(run["curve"][0]["gold/mean"] == starts[run["run"]["seed"]] for run in record["runs"])  # paired
    assert len(set(starts.values())) == 2  # each seed has an SFT policy of its own
    assert "| GI-PPO | " in printed and "\n| 2 | " in tables.table(record, "by seed")

    began = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("outcome.json")}
    assert demo_seeds.main(words) == 0 and len(began) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in began.items())


def test_the_record_is_of_the_settings_that_the_demo_has() -> None:
    path = Path(demo_seeds.__file__).parents[1] / "results" / "demo_seeds.json"
    record = json.loads(path.read_text())
    assert record["methods"]["ppo"]["others"] == list(builtin.PPO) and record["methods"]["gi_ppo"]["others"] == []
    assert len(record["final_seeds"]) == 10 and not any(run["failure"] for run in record["runs"])
    config = load_config(None, [], builtin.gi_ppo_base())
    assert {run["curve"][-1]["step"] for run in record["runs"]} == {config.run.iterations}
    assert {run["curve"][1]["step"] for run in record["runs"]} == {config.eval.every}

    found = cells.results(record)
    for figure in ("worst", "ood", "mean"):
        gain = cells.difference(found, "gi_ppo", "ppo", figure)
        assert gain and f"{gain.mean:+.3f} ± {gain.half:.3f}" in demo.EVIDENCE
        assert f"{gain.wins} of {gain.count}" in demo.EVIDENCE
    one, other = ({seed: own["kl"] for seed, own in found[name].items()} for name in ("gi_ppo", "ppo"))
    assert f"is {cells.average(list(one.values())):.3f} nats and PPO's {cells.average(list(other.values())):.3f}" in (
        demo.EVIDENCE
    )
    assert all(one[seed] > other[seed] for seed in record["final_seeds"]) and "larger in 10 of 10" in demo.EVIDENCE
