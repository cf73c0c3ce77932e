"""Reward hacking in the report: charts, the long tail, and the examples that the run kept."""

from __future__ import annotations

import json
from pathlib import Path

from gipo_mc.report import hacking, summary
from gipo_mc.report.runs import load_run
from tests.report.pages import page_of, write_run


def _rows(steps: int) -> list[dict[str, float]]:
    return [
        {
            "step": step, "reward/mean": 1.0, "reward/p01": -3.0, "reward/p10": -1.0, "reward/p50": 0.0,
            "reward/p90": 1.0, "reward/p99": 1.5, "reward/skew": -1.2, "reward/skew/domain/harmless": -2.0,
            "response/identical": 0.2, "response/near_identical": 0.3, "response/commonest": 0.25,
            "response/near_identical/domain/harmless": 0.9, "response/commonest/domain/harmless": 0.8,
            "response/repetition": 0.1, "response/refusals": 0.4, "response/refusals/domain/harmless": 0.8,
            "group/0/near_identical": 0.1, "group/1/near_identical": 0.6, "group/0/mass": 0.5, "group/1/mass": 0.5,
            "reward/length_correlation": 0.3,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip


def _sample(step: int, kind: str = "alike", response: str = "I'm sorry.") -> dict[str, object]:
    return {
        "step": step, "prompt": "Human: <b>?", "response": response, "domain": "harmless", "reward": 9.0,
        "hacking": kind, "share": 0.62, "count": 31, "prompts": ["Human: how?", "Human: why?"],
    }  # fmt: skip


def _run(path: Path, samples: list[dict[str, object]]) -> Path:
    run = write_run(path, _rows(4))
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return run


def test_the_charts_show_every_metric_and_leave_nothing_to_the_rest(tmp_path: Path) -> None:
    page = page_of([_run(tmp_path / "run", [])], tmp_path / "r.html")
    assert {
        "Long tail of the rewards", "Skew of the rewards", "Alike responses to different prompts",
        "Near-identical by group", "Repetition and refusals", "Reward and length",
    } <= set(page.titles)  # fmt: skip
    assert "Commonest response: harmless" in page.titles and "99 %" in page.text and "median" in page.text
    assert "Everything else that was logged" not in page.text and "Examples of reward hacking" not in page.text


def test_the_examples_are_the_first_and_the_last_of_each_kind(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [_sample(step, response=f"said {step}") for step in (1, 2, 3)])
    shown = hacking.examples(load_run(run))
    assert [(each.step, each.response) for each in shown] == [(1, "said 1"), (3, "said 3")]
    assert shown[0].share == "62% of the responses to other prompts are nearly this one" and len(shown[0].prompts) == 3
    page = page_of([run], tmp_path / "r.html")
    assert "One answer to many prompts" in page.text and "31 responses like it" in page.text and "<b>?" in page.text


def test_an_example_is_no_sample(tmp_path: Path) -> None:
    plain = {"step": 1, "prompt": "p", "response": "plain", "domain": "d", "reward": 0.5}
    shown = summary.chosen_samples(load_run(_run(tmp_path / "run", [plain, _sample(1)])))
    assert [each.response for each in shown] == ["plain"]
    assert summary.chosen_samples(load_run(_run(tmp_path / "other", [_sample(1)]))) == []


def test_damaged_examples_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    odd = {"step": 2, "hacking": "refuses", "share": "much", "prompts": 7, "response": None, "count": None}
    (shown,) = hacking.examples(load_run(_run(tmp_path / "run", [odd, {"step": 2, "hacking": ["x"]}])))
    assert shown.share == "" and shown.reward == "–" and len(shown.prompts) == 1


def test_warnings_that_differ_in_their_example_are_one(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [])
    text = 'One answer to everything: for {} iterations. For example: "{}" More are in samples.jsonl.'
    lines = [{"step": s, "text": text.format(s, f'say "{s}" again')} for s in (5, 25)]
    (run / "warnings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (said,) = [text for tone, text in summary.notices(load_run(run)) if "One answer" in text]
    assert "for 25 iterations" in said and "(steps 5, 25)" in said
