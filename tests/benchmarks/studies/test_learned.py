"""The study of learned reward models and its exploration: one of them whole at a tiny size, and what they keep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import documents
from benchmarks.studies import paired, tables
from benchmarks.studies.learned import exploration, learned, pictures, reward_models
from gipo_mc.config import load_config
from gipo_mc.data import synthetic
from gipo_mc.data.loading import load_preferences
from gipo_mc.tools import builtin
from tests.source_rules import ROOT

RECORD = ROOT / "benchmarks" / "results" / "learned_exploration.json"


def test_a_small_exploration_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    words = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(out), "--workers", "2"]
    words += ["--strengths", "clean", "--methods", "ppo", "gi_ppo_gain", "--seeds", "1"]
    assert exploration.main(words) == 0
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    assert record["exploration"] and record["cells_tried"] == 2 and record["seeds"] == [1]
    assert {run["run"]["method"] for run in record["runs"]} == {"clean/ppo", "clean/gi_ppo_gain"}
    assert not any(run["failure"] for run in record["runs"])
    assert record["judge"]["clean"]["1"].keys() == {"easy", "hard"}
    assert "| clean | GI-PPO, gains | " in printed and "signal/auc/gain" in record["runs"][1]["late"]

    began = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("outcome.json")}
    assert exploration.main(words) == 0 and len(began) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in began.items())


def test_the_study_has_equal_budgets_and_says_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {len(method.values) for method in learned.METHODS.values()} == {8}
    assert all(learned.METHODS[name].preset for question in learned.QUESTIONS for name in question[:2])
    words = ["--strength", "weak", "--budget", "--runs", str(tmp_path), "--out", str(tmp_path / "record.json")]
    assert learned.main(words) == 0
    said = capsys.readouterr().out
    assert "4 of each of 12 seeds, 200 steps" in said and "tuning 256, final 200" in said
    assert learned.main([*words, "--methods", "ppo", "dpo"]) == 0
    assert "1 of each of 12 seeds, 200 steps" in capsys.readouterr().out
    assert not set(learned.TUNING_SEEDS) & set(learned.FINAL_SEEDS) and len(learned.FINAL_SEEDS) == 10
    explored = {seed for question in exploration.SETS.values() for seed in question.seeds}
    assert not explored & {*learned.TUNING_SEEDS, *learned.FINAL_SEEDS}


def test_an_ensemble_is_of_its_own_seeds_models(tmp_path: Path) -> None:
    from benchmarks.studies.runs import Run

    size = learned.QUICK
    for name, count in (("ensemble", 3), ("ppo", 0)):
        method = learned.METHODS[name]
        run = Run("tuning", name, method.values[0], 131)
        config = learned.configured(run, method, strength="strong", size=size, folder=tmp_path)
        assert config.model.reward == str(tmp_path / "seed131" / "reward_strong")
        assert len(config.reward.models) == count and config.eval.reward.endswith(":gold")


@pytest.mark.parametrize("strength", ["weak", "clean"])
@pytest.mark.parametrize(("name", "hard"), [("dpo", 0.5), ("dpo_skewed", 0.2)])
def test_dpo_learns_from_as_many_pairs_of_either_mixture(
    name: str, hard: float, strength: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.studies.runs import Run

    counts = reward_models.STRENGTHS | {strength: replace(reward_models.STRENGTHS[strength], pairs=400)}
    monkeypatch.setattr(reward_models, "STRENGTHS", counts)
    method = learned.METHODS[name]
    run = Run("tuning", name, method.values[0], 131)
    config = learned.configured_on_pairs(run, method, strength=strength, size=learned.FULL, folder=tmp_path)
    pairs = load_preferences(config.data, synthetic.builtin_tokenizer(), seed=3)
    assert len(pairs) == 400
    # Ties are left out of clean pairs, and more of the hard ones are.
    assert sum(pair.domain == "hard" for pair in pairs) / 400 == pytest.approx(hard, abs=0.1)


def test_clean_pairs_are_the_tasks_own_without_noise_and_ties(tmp_path: Path) -> None:
    words = reward_models.pairs_of(3, "clean", tmp_path, 60)
    data = load_config(None, words, builtin.reward_base()).data
    pairs = load_preferences(data, synthetic.builtin_tokenizer(), seed=3)
    assert len(pairs) == 60 and set(pairs.domains) == {"easy", "hard"}
    for pair in pairs:
        better, worse = (
            synthetic.proxy_reward(pair.prompt_ids, response, pair.domain)
            for response in (pair.chosen_ids, pair.rejected_ids)
        )
        assert better > worse


def test_what_is_compared_of_pairs() -> None:
    reward_P2 = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [1.0, 1.0]])
    gold_P2 = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    found = reward_models.compared(reward_P2, gold_P2, gold_P2)
    assert found["accuracy"] == (1 + 0 + 1 + 0.5) / 4 and found["bound"] == (1 + 1 + 0.5 + 0) / 4
    assert found["gold"] == pytest.approx(1 / 3)


def test_p_values() -> None:
    assert paired.p_value([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(0.013236, abs=1e-5)  # scipy.stats.ttest_1samp
    assert paired.p_value([1.0, -0.5]) == pytest.approx(0.795167, abs=1e-5)
    assert paired.p_value([1.0, 1.0]) == 0.0


def _outcome(method: str, seed: int, last: int = 40) -> dict[str, Any]:
    """A run whose gold, reward and KL rise by a half of its seed, from a start of its seed."""

    def row(step: int, gained: float) -> dict[str, float]:
        found: dict[str, float] = {"step": step}
        for domain in ("easy", "hard", "ood"):
            found |= {f"gold/domain/{domain}": gained, f"eval/kl/domain/{domain}": gained * seed}
            found |= {f"eval/reward/domain/{domain}": seed + gained * seed}
            for reward in ("gold", "eval/reward"):
                found |= {f"{reward}/lowest_tenth/{domain}": -1.0, f"{reward}/kurtosis/{domain}": 3.0}
        return found

    curve = [row(0, 0.0), row(last // 2, 0.25), row(last, 0.5)]
    run = {"stage": "final", "method": method, "seed": seed, "value": "", "data": "builtin"}
    return {"run": run, "failure": "", "final": curve[-1], "late": {}, "curve": curve, "trace": []}


def test_what_is_drawn_of_a_record(tmp_path: Path) -> None:
    names = {"ppo": "PPO", "gi_ppo_gain": "GI-PPO, gains", "gi_ppo": "GI-PPO", "dpo": "DPO", "new": "a new one"}
    record = {
        "benchmark": "learned_exploration",
        "exploration": True,
        "size": {"iterations": 40},
        "strengths": {"weak": {}, "strong": {}},
        "methods": {name: {"title": title} for name, title in names.items()},
        "runs": [_outcome(f"weak/{name}", seed) for name in ("gi_ppo_gain", "ppo") for seed in (1, 3)],
    }
    record["runs"] += [_outcome("strong/dpo", 1, last=200), {**_outcome("strong/ppo", 1), "final": {}}]  # which failed
    found = pictures.curves(record)
    assert {strength: list(methods) for strength, methods in found.items()} == {
        "weak": ["ppo", "gi_ppo_gain"],
        "strong": ["dpo"],
    }
    lines = [pictures.line(curve, "reward", "kl") for curve in found["weak"]["ppo"]]
    assert lines == [([0.0, 0.25, 0.5], [0.0, 0.25, 0.5]), ([0.0, 0.75, 1.5], [0.0, 0.75, 1.5])]
    assert pictures.mean_line(lines) == ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    assert pictures.line(found["strong"]["dpo"][0], "hard", "iterations") == ([0.0, 20.0, 40.0], [0.0, 0.25, 0.5])
    own = pictures.styles(record["methods"])
    assert own["gi_ppo_gain"] == own["gi_ppo"] | {"linestyle": "--"}
    assert len({style["color"] for style in own.values()}) == 4

    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert exploration.main(["--table", str(path), "--pictures", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.glob("*.png")} == {"record_over_iterations.png", "record_over_kl.png"}

    study = {
        **record,
        "benchmark": "learned_reward",
        "exploration": False,
        "size": {"iterations": 40, "strength": "weak"},
    }
    study["runs"] = [_outcome(name, seed) for name in ("ppo", "gi_ppo_gain") for seed in (1, 3)]
    assert pictures.curves(study) == {"weak": found["weak"]}
    pictures.draw(study, tmp_path, "study")
    assert len(list(tmp_path.glob("study_*.png"))) == 4


def test_what_rl_adds_to_dpo() -> None:
    """Each seed's start is that of its runs; differences are paired by seed."""
    names = {"after_dpo_ppo": "PPO", "after_dpo_gi_ppo": "GI-PPO"}
    record = {
        "benchmark": "learned_after_dpo",
        "size": {"iterations": 40},
        "strengths": {"weak": {}},
        "methods": {name: {"title": title} for name, title in names.items()},
        "runs": [_outcome(f"weak/{name}", seed) for name in names for seed in (1, 2, 3)],
    }
    for outcome in record["runs"][3:]:
        outcome["final"] = outcome["final"] | {"gold/domain/hard": 0.25}
    shown = tables.table(record, "after DPO").splitlines()
    assert shown[2].startswith("| weak | DPO, the start | 0.000 ± 0.000 |") and "0.250 ± 0.000" in shown[4]
    rows = tables.table(record, "after DPO, differences").splitlines()[2:]
    titles = ["PPO minus its start", "GI-PPO minus its start", "GI-PPO minus PPO"]
    assert [row.split(" | ")[1] for row in rows] == titles
    assert [row.split(" | ")[2].strip("*")[:6] for row in rows] == ["+0.500", "+0.250", "-0.250"]
    started = {name for name, method in exploration.AFTER_DPO.items() if method is exploration.SIGNALS[name[10:]]}
    assert started == set(exploration.AFTER_DPO) and not started & set(exploration.SIGNALS)


def test_the_page_shows_the_record() -> None:
    text, record = (
        (ROOT / "docs" / "results" / "learned.md").read_text(encoding="utf-8"),
        json.loads(RECORD.read_text()),
    )
    parts = tables.parts(record)
    assert parts and text.count("<!-- table of benchmarks/results/learned_exploration.json: ") == len(parts)
    for part in parts:
        source = f"benchmarks/results/learned_exploration.json: {part}"
        assert documents.inserted(text, source, tables.table(record, part)) == text, part
    assert record["exploration"] and f"{record['cells_tried']} cells" in text
