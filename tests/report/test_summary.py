"""Numbers and words of the report: first and last values, the comparison, notices, the samples shown, the phases."""

import json

import numpy as np
import pytest

from gipo_mc.report import comparison, panels, summary
from gipo_mc.report.drawing import colours
from gipo_mc.report.runs import load_run, load_runs
from tests.report.pages import write_run


def test_first_and_last_are_means_over_a_tenth(tmp_path):
    rows = [{"step": s, "reward/mean": float(s), **({"eval/x": float(s)} if s % 10 == 0 else {})} for s in range(1, 41)]
    run = load_run(write_run(tmp_path / "run", rows))
    assert run.first("reward/mean") == np.mean([1, 2, 3, 4]) and run.last("reward/mean") == np.mean([37, 38, 39, 40])
    assert (run.first("eval/x"), run.last("eval/x")) == (10.0, 40.0)
    assert run.first("absent") is None
    assert "the mean reward rose from 2.50 to 38.5" in summary.headline(run)


def test_the_comparison_marks_the_best_and_prices_group_invariance(tmp_path):
    def row(reward, easy, hard, seconds):
        return [{"step": 1, "reward/mean": reward, "gold/mean": reward / 2, "gold/domain/easy": easy,
                 "gold/domain/hard": hard, "kl/mean": 1.0, "time/total": seconds}]  # fmt: skip

    ppo = write_run(tmp_path / "ppo", row(1.0, 0.9, 0.1, 2.0), config="algorithm: {name: ppo}")
    gi = write_run(tmp_path / "gi", row(0.8, 0.7, 0.4, 2.1), config="algorithm: {name: gi_ppo}")
    table = comparison.comparison(load_runs([ppo, gi]))
    assert table.columns == [
        "Run", "What", "Iterations", "Reward", "Gold", "Gold: easy", "Gold: hard", "KL", "Time per iteration (median)",
    ]  # fmt: skip
    assert table.rows == [
        ["ppo", "PPO", "1", "1.00", "0.500", "0.900", "0.100", "1.00", "2.00 s"],
        ["gi", "GI-PPO", "1", "0.800", "0.400", "0.700", "0.400", "1.00", "2.10 s"],
    ]
    assert table.best == {(0, 3), (0, 4), (0, 5), (1, 6)}
    assert summary.worst_domain(load_run(gi)) == ("hard", 0.4)


@pytest.mark.parametrize(
    ("iterations", "host", "started", "cost"),
    [
        (20, "a", "2026-01-01T12:05:00+00:00", "2.10 s (+5 % vs PPO)"),
        (20, "a", "2026-01-01T12:04:00+00:00", "2.10 s"),  # each slowed the other down
        (20, "b", "2026-01-01T12:04:00+00:00", "2.10 s (+5 % vs PPO)"),
        (19, "a", "2026-01-01T12:05:00+00:00", "2.10 s"),
    ],
)
def test_times_are_compared_of_runs_that_ran_alone_and_long_enough(iterations, host, started, cost, tmp_path):
    def run(name, seconds, **status):
        rows = [{"step": s + 1, "reward/mean": 1.0, "time/total": seconds} for s in range(iterations)]
        return write_run(tmp_path / name, rows, {"state": "done", **status}, config=f"algorithm: {{name: {name}}}")

    ppo = run("ppo", 2.0, host="a", started="2026-01-01T12:00:00+00:00", updated="2026-01-01T12:05:00+00:00")
    gi = run("gi_ppo", 2.1, host=host, started=started, updated="2026-01-01T12:09:00+00:00")
    assert [row[-1] for row in comparison.comparison(load_runs([ppo, gi])).rows] == ["2.00 s", cost]


def test_what_went_wrong_is_said(tmp_path):
    rows = [
        {"step": s, "reward/mean": s / 10, "gold/mean": -s / 10, "response/truncated": 0.9, "policy/clip_fraction": 0.5,
         "critic/explained_variance": -0.2, "policy/loss": None if s in (3, 4) else 0.1}
        for s in range(1, 11)
    ]  # fmt: skip
    status = {"state": "failed", "exit_code": 5, "message": "Three steps in a row were skipped."}
    path = write_run(tmp_path / "run", rows, status)
    warnings = [{"step": s, "text": f"Group 1 holds 0.0{s} of the mass."} for s in (7, 8)]
    (path / "warnings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in warnings))
    said = summary.notices(load_run(path))
    assert ("bad", "The run failed with exit code 5. Three steps in a row were skipped.") in said
    assert ("bad", "policy/loss was NaN or infinite at steps 3, 4.") in said
    assert ("warn", "Group 1 holds 0.08 of the mass. (steps 7, 8)") in said
    text = " ".join(sentence for _, sentence in said)
    for words in ("hacking", "90% of the responses were cut", "50% of the tokens were clipped", "raise critic.lr"):
        assert words in text


@pytest.mark.parametrize(
    ("first", "words", "others"),
    [(0.9, "raise it", "missing_eos_penalty"), (0.1, "reward.missing_eos_penalty", "raise it")],
)
def test_responses_that_do_not_end_have_two_causes(tmp_path, first, words, others):
    """A limit that is too small, or a policy that has found that an end earns nothing: a larger limit helps the one."""
    shares = [first] * 5 + [0.8] * 5
    rows = [{"step": s, "reward/mean": s / 10, "response/truncated": share} for s, share in enumerate(shares, 1)]
    (said,) = [text for _, text in summary.notices(load_run(write_run(tmp_path / "run", rows))) if "were cut" in text]
    assert "80% of the responses" in said and f"{first:.0%}" in said and words in said and others not in said


def test_a_healthy_run_has_no_notices(runs):
    assert summary.notices(load_run(runs["ppo"])) == []


def test_hacking_is_seen_in_the_run_that_hacks(runs):
    assert any("hacking" in text for _, text in summary.notices(load_run(runs["hacked"])))


def test_a_gold_reward_that_only_wavers_is_not_called_hacking(tmp_path):
    gold = (0.30, 0.26, 0.33, 0.27, 0.31, 0.28)
    rows = [{"step": s, "reward/mean": s / 10, "gold/mean": value} for s, value in enumerate(gold, start=1)]
    assert summary.notices(load_run(write_run(tmp_path / "run", rows))) == []


def test_samples_are_the_best_and_the_worst_of_the_ends(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}])
    rows = [
        {"step": step, "prompt": "p", "response": str(reward), "reward": reward, "domain": domain}
        for step in (1, 5, 9)
        for domain in ("easy", "hard", "other")
        for reward in (0.2, None, 0.9, 0.5)
    ]
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = summary.chosen_samples(load_run(path))
    assert [(s.step, s.domain, s.why, s.reward) for s in shown[:3]] == [
        (1, "easy", "best", "0.900"), (1, "easy", "worst", "–"), (1, "hard", "best", "0.900")
    ]  # fmt: skip
    assert len(shown) == 2 * 3 * 2 and {s.step for s in shown} == {1, 9}


def test_phases_add_up_to_the_total(runs):
    run = load_run(runs["gi_ppo"])
    seconds = panels.phase_seconds(run)
    assert list(seconds) == [*colours.PHASES, "other"]
    assert sum(seconds.values()) == pytest.approx(run.values("time/total").mean())
    assert seconds["other"] == pytest.approx(0.1)
