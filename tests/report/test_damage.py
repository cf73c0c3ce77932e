"""Run folders that are damaged, empty, named twice or extreme: reported as far as they go, or refused by name."""

import json

import pytest

from gipo_mc.errors import DataError
from gipo_mc.report.report import build_report
from gipo_mc.report.runs import load_run, load_runs
from tests.report.pages import page_of, write_run


def test_a_damaged_line_is_named(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}])
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "reward/mean": "high"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: reward/mean must be a number, it is 'high'"):
        build_report([path], tmp_path / "r.html")
    (path / "metrics.jsonl").write_text('{"step": 1}\n{"step": }\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
        build_report([path], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_crash_in_the_last_line_is_tolerated_and_said(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}])
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')
    assert "metrics.jsonl:2: the last line is incomplete" in page_of([path], tmp_path / "r.html").text


def test_damaged_side_files_are_said_or_named(tmp_path):
    path = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 1.0}], config="a: [")
    (path / "about.json").write_text("[1]")
    text = page_of([path], tmp_path / "r.html").text
    assert "config.yaml cannot be read" in text and "about.json cannot be read" in text
    (path / "distributions.jsonl").write_text('{"step": 1, "name": "reward", "values": "x"}\n')
    with pytest.raises(DataError, match=r"distributions\.jsonl: step 1: not a distribution"):
        build_report([path], tmp_path / "r.html")


def test_a_step_logged_twice_is_shown_once_and_said(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 3.0}]
    run = load_run(write_run(tmp_path / "run", rows))
    assert run.steps.tolist() == [1, 2] and run.series["loss"].tolist() == [1.0, 3.0]
    assert "step 2 was logged twice" in run.notes[0]


def test_no_run_empty_run_run_named_twice(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        build_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(DataError, match="at least one"):
        build_report([], tmp_path / "r.html")
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(DataError, match="holds no iteration yet"):
        build_report([empty], tmp_path / "r.html")
    path = write_run(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    with pytest.raises(DataError, match="named twice"):
        build_report([path, tmp_path / "empty" / ".." / "run"], tmp_path / "r.html")


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / seed / "ppo", [{"step": 1, "loss": 1.0}]) for seed in ("seed1", "seed2")]
    assert [run.name for run in load_runs(paths)] == ["seed1/ppo", "seed2/ppo"]


@pytest.mark.parametrize("value", [0.0, 1e30, -1e-30, None])
def test_extreme_values_still_make_a_report(tmp_path, value):
    rows = [{"step": step, "reward/mean": value, "loss": 1.0, "kl/mean": value} for step in (1, 2, 3)]
    path = write_run(tmp_path / "run", rows)
    (path / "distributions.jsonl").write_text(
        json.dumps({"step": 1, "name": "reward", "values": [value or 0.0]}) + "\n"
    )
    page_of([path], tmp_path / "r.html")
