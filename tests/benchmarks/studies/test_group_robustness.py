"""The study of group robustness: its statistics by hand, and the whole of it at a tiny size, twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import documents
from benchmarks.studies import group_robustness, study, tables
from benchmarks.studies.paired import Interval, best_value, figures, interval, paired, t_quantile

RESULTS = Path(group_robustness.__file__).parents[1] / "results"


def test_interval_by_hand() -> None:
    # Mean 2, squared deviations 1 + 0 + 1, variance 1, standard error 1 / sqrt(3), t with 2 degrees of freedom.
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(4.303 / math.sqrt(3))
    assert (found.wins, found.count, found.verdict) == (3, 3, 0)
    assert interval([-1.0, -1.1, -0.9, -1.0]).verdict == -1 and interval([0.0, 0.0]) == Interval(0.0, 0.0, 0, 2)
    with pytest.raises(ValueError, match="at least two"):
        interval([1.0])


def test_t_quantiles() -> None:
    assert (t_quantile(1), t_quantile(5), t_quantile(16)) == (12.706, 2.571, 2.120)
    assert t_quantile(17) == pytest.approx(2.1098, abs=2e-3) and t_quantile(1000) == pytest.approx(1.9623, abs=1e-3)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired({1: 1.0, 2: 2.0, 3: 9.0}, {1: 0.5, 2: 1.0, 4: 0.0})
    assert found == interval([0.5, 1.0])
    assert paired({1: 1.0}, {1: 0.0}) is None


def test_the_best_candidate() -> None:
    assert best_value({0.1: [1.0, 0.0], 0.2: [0.6, 0.6], 0.4: [0.6, 0.6]}) == 0.2
    scores = {"ppo": {"0.1 1": [{"mean": 1.0}, None], "0.4 1": [{"mean": 0.1}, {"mean": 0.2}]}}
    assert (
        group_robustness.described(group_robustness.arguments([])).choose("ppo", scores) == "0.4 1"
    )  # a candidate that failed on a seed is out


_TITLES = {"ppo": "PPO", "gi_ppo": "GI-PPO"}


def outcome(method: str, seed: int, easy: float, hard: float, ood: float) -> dict[str, Any]:
    gold = {"easy": easy, "hard": hard, "ood": ood}
    final = {f"gold/domain/{domain}": value for domain, value in gold.items()}
    for domain in gold:
        final |= {f"eval/reward/domain/{domain}": 1.0, f"eval/kl/domain/{domain}": 2.0, "eval/length": 9.0}
        for reward in ("gold", "eval/reward"):
            final |= {f"{reward}/lowest_tenth/{domain}": -1.0, f"{reward}/kurtosis/{domain}": 3.0}
    run = {"stage": "final", "method": method, "seed": seed, "value": 0.1, "data": "builtin"}
    late = {"group/domain_auc": 0.9 + 0.01 * seed, "group/0/mass": 0.3, "group/1/mass": 0.7, "group/p_high": 0.7}
    late["group/reward_correlation"] = 0.5
    warned = {"collapsed": {"first": 20 + seed, "count": 1, "text": ""}}
    return {
        "run": run, "failure": "", "final": final, "late": late if method != "ppo" else {}, "curve": [], "trace": [],
        "smallest_mass": 0.2 if method != "ppo" else None, "hack_share": {"easy": 0.1, "hard": 0.2},
        "warnings": warned if method != "ppo" else {},
    }  # fmt: skip


def test_figures_and_tables_by_hand() -> None:
    own = figures(outcome("ppo", 1, 0.5, 0.1, 0.3))
    assert (own["worst"], own["ood"], own["mean"]) == (0.1, 0.3, 0.3) and own["mixture"] == pytest.approx(0.42)
    assert own["kl"] == 2.0 and own["tail_hard"] == -1.0 and figures({"failure": "blown up"}) == {}
    gains = {1: (0.1, 0.2), 2: (0.1, 0.4), 3: (0.1, 0.3)}
    runs = [outcome("ppo", seed, 0.5, 0.1, 0.3) for seed in gains]
    runs += [outcome("gi_ppo", seed, 0.5 + a, 0.1 + b, 0.3) for seed, (a, b) in gains.items()]
    failed = {"run": {"method": "gi_ppo", "seed": 4, "data": "builtin"}, "failure": "NumericsError"}
    methods = {name: {"title": title, "tuned": "algorithm.kl_coef"} for name, title in _TITLES.items()}
    record = {
        "benchmark": "group_robustness",
        "methods": methods,
        "chosen": {"ppo": 0.2, "gi_ppo": 0.4},
        "runs": [*runs, failed],
    }
    line = tables.differences(record).splitlines()[-1]
    half = 4.303 * 0.1 / math.sqrt(3)
    assert line.startswith(f"| GI-PPO | **+0.300 ± {half:.3f} (3/3)** | +0.000 ± 0.000 (0/3) |")
    assert tables.controls(record).count("\n") == 1  # none of the controls ran
    other = {**record, "methods": {"mean_kl": {"title": "mean KL"}, **methods}}
    other["runs"] = [*runs, *(outcome("mean_kl", seed, 0.5, 0.2, 0.3) for seed in gains)]
    line = tables.controls(other).splitlines()[-1]
    assert line.startswith(f"| GI-PPO minus mean KL | +0.200 ± {half:.3f} (3/3) |")
    assert "| PPO | 0.500 ± 0.000 | 0.100 ± 0.000 |" in tables.gold(record)
    line = tables.groups(record).splitlines()[-1]
    assert line.startswith("| GI-PPO | 0.92 (0.91) | 0.30 (0.30) | 0.20 | 0.70 | 0.50 |")
    assert line.endswith("| collapsed 3/3 (21) | 1 |")
    plain, grouped = tables.hacking(record).splitlines()[-2:]
    assert plain.startswith("| PPO | 0.200 | 2.00 ± 0.00 |") and grouped.startswith("| GI-PPO | 0.280 | 2.00 ± 0.00 |")


def test_the_whole_study_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_robustness, "EVEN", {"builtin:even": ("gi_ppo", "dpo")})
    out = tmp_path / "record.json"
    words = ["--quick", "--workers", "2", "--runs", str(tmp_path / "runs"), "--out", str(out), "--seeds", "51"]
    assert group_robustness.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.index("core-minutes") < printed.index("1/4 tuning/")
    record = json.loads(out.read_text())
    assert not any(run["failure"] for run in record["runs"])
    found = [(run["run"]["method"], run["run"]["data"]) for run in record["runs"]]
    assert found == [("ppo", "builtin"), ("gi_ppo", "builtin"), ("gi_ppo", "builtin:even")]
    values = {run["run"]["value"] for run in record["runs"] if run["run"]["method"] == "gi_ppo"}
    assert values == {record["chosen"]["gi_ppo"]}
    assert len({run["curve"][0]["gold/mean"] for run in record["runs"]}) == 1  # paired: all begin at the same policy
    assert group_robustness.main([*words, "--budget"]) == 0
    assert "; 0 left: about 0 minutes" in capsys.readouterr().out

    document, source = tmp_path / "results.md", out.as_posix()
    parts = [f"{documents.marker(f'{source}: {part}')}\n{documents.END}" for part in tables.parts(record)]
    document.write_text("\n".join(parts))
    assert group_robustness.main(["--table", source, "--into", str(document), "--pictures", str(tmp_path)]) == 0
    assert tables.table(record, "gold") in document.read_text()
    assert len(list(tmp_path.glob("record_*.png"))) == 3
    with pytest.raises(SystemExit, match="is of another study"):
        group_robustness.main([*words, "--seeds", "52"])

    # More methods and seeds join the runs that are there, of which the record is enough; other chosen values stay.
    more = ["--quick", "--workers", "2", "--runs", str(tmp_path / "elsewhere"), "--out", str(out)]
    more += ["--methods", "ppo", "gi_ppo", "dpo", "--seeds", "51", "52"]
    assert group_robustness.main([*more, "--budget"]) == 0 and not (tmp_path / "elsewhere").exists()
    # DPO: 2 candidates, 2 seeds on each of 2 mixtures; the others: one more seed, GI-PPO on both.
    assert "; 9 left" in capsys.readouterr().out
    assert group_robustness.main(more) == 0
    grown = json.loads(out.read_text())
    assert [sorted(grown["additions"][0][key]) for key in ("methods", "final_seeds")] == [["dpo"], [52]]
    assert grown["runs"] != record["runs"] and all(run in grown["runs"] for run in record["runs"])
    assert {name: grown["tuning"][name] for name in record["tuning"]} == record["tuning"]
    assert set(grown["chosen"]) == {"ppo", "gi_ppo", "dpo"} and grown["settings_fixed"] == record["settings_fixed"]
    assert "settings_fixed" in grown["additions"][0] and study.unpaired(grown) == []
    own = [run for run in grown["runs"] if run["run"]["method"] == "dpo"]
    assert [row["step"] for row in own[0]["curve"]] == [0, 1, 2, 3, 4]
    assert own[0]["curve"][0]["eval/kl/mean"] == 0 != own[0]["curve"][-1]["eval/kl/mean"]
    assert "| DPO | 0." in tables.table(grown, "preferences")
    assert "worst domain, seeds 52 to 52" in tables.table(grown, "replication")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_record_of_a_study_can_be_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem.startswith(("group_", "hh_", "demo_", "learned_")):
        assert group_robustness.main(["--table", str(path)]) == 0 and "| --- |" in capsys.readouterr().out
        record = json.loads(path.read_text())
        # Their pages say which methods were added from starts that were trained again.
        if again := {"hh_gold": ["dpo"], "group_robustness": ["gi_ppo_tokens", "gi_ppo_beta_tokens"]}.get(path.stem):
            record["runs"] = [run for run in record["runs"] if run["run"]["method"] not in again]
        # What an exploration leaves out, its page says.
        assert path.stem.endswith("_exploration") or study.unpaired(record) == []
    else:
        with pytest.raises(SystemExit, match="is no record of a study"):
            group_robustness.main(["--table", str(path)])


def test_what_cannot_be_run_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--methods", "ppo", "oracle_gi_ppo"], "oracle_gi_ppo takes the settings of gi_ppo: name that too"),
        (["--workers", "0"], "--workers is at least 1"),
        (["--table", str(tmp_path / "none.json")], "there is no file"),
        (["--pictures", str(tmp_path)], "need --table"),
    ):
        with pytest.raises(SystemExit):
            group_robustness.main(words)
        assert said in capsys.readouterr().err
    assert group_robustness.arguments(["--overhead", "2"]).out.name == "group_overhead.json"  # not over the study's


def test_overhead_by_hand() -> None:
    phases = {"rollout": 0.1, "total": 0.2}
    slower = {"rollout": 0.1, "total": 0.25}
    measured = {
        "seconds": {"PPO": phases, "GI-PPO": slower},
        "totals": {"PPO": [0.2, 0.2, 0.4], "GI-PPO": [0.21, 0.22, 0.5]},
        "processor": {"PPO": [0.1, 0.1, 0.1], "GI-PPO": [0.1, 0.11, 0.11]},
    }
    lines = tables.table({"benchmark": "group_overhead", "overhead": measured}, "overhead").splitlines()
    assert lines[2:] == [
        "| rollout | 100.0 | 100.0 | +0.0% |",
        "| total | 200.0 | 250.0 | +25.0% |",
        "| total, by round | 200.0 | 220.0 | +10.0% (+5.0% to +25.0%) |",
        "| processor time, by round | 100.0 | 110.0 | +10.0% (+0.0% to +10.0%) |",
    ]
