"""MLflow for real, with a folder as store: metrics, parameters, artifacts, a run that continues."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.run.trackers.mlflow_runs import MLflow, store
from gipo_mc.run.trackers.protocol import End
from tests.run.trackers.fakes import about


def client(place: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=(place / "mlruns").as_uri())


def points(found: Any, run: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in found.get_metric_history(run, name)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return tmp_path


def test_a_run_and_its_continuation_are_one_run(place: Path) -> None:
    report = place / "report.html"
    report.write_text("<!doctype html>")
    said = about(place / "run", group="seeds")
    first = MLflow()
    first.start(said)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": 1.0 / step, "reward/domain/a (b)": 2.0})
    first.histogram(3, "distribution/reward", [0.0, 1.0, 2.0])
    first.text(3, "warnings", "careful")
    first.finish(End("requeue", 75, "Asked to stop"))
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get(), "of a server it would print addresses among the run's lines"
    (run,) = (found := client(place)).search_runs([found.get_experiment_by_name("gipo_mc").experiment_id])
    name = run.info.run_id
    assert (run.info.status, run.info.run_name) == ("KILLED", "toy")
    assert run.data.params["policy.lr"] == "1e-05" and run.data.tags["group"] == "seeds"
    assert run.data.tags["tag.mine"] == "true" and run.data.tags["gipo_mc.exit_code"] == "75"
    assert points(found, name, "reward/domain/a _b_") == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert points(found, name, "distribution/reward/p50") == [(3, 1.0)]

    second = MLflow()
    second.start(replace(said, begin=2, logged=3, options={**said.options, "policy.lr": 0.5}))
    second.scalars(3, {"loss": 9.0})
    second.scalars(4, {"loss": 8.0})
    second.finish(End("done", 0, report=report))
    assert points(found, name, "loss") == [(1, 1.0), (2, 0.5), (3, 1.0 / 3), (3, 9.0), (4, 8.0)]
    run = found.get_run(name)
    assert run.info.status == "FINISHED" and run.data.tags["gipo_mc.rewound"].startswith("steps 3 to 3 were sent twice")
    assert (run.data.params["policy.lr"], run.data.tags["now.policy.lr"]) == ("1e-05", "0.5")
    files = {file.path for folder in ("", "warnings") for file in found.list_artifacts(name, folder)}
    assert files >= {"report.html", "config.yaml", "warnings/00000003-1.txt"}

    third = MLflow()
    third.start(replace(said, tracking=said.tracking.model_copy(update={"project": "other"})))
    assert json.loads((place / "run" / "mlflow.json").read_text())["id"] != name, "another project, another run"


def test_a_name_that_is_a_file_and_a_folder_is_two(place: Path) -> None:
    """In a folder a metric is a file: group/gap beside group/gap/2 would be one file and one folder."""
    tracker = MLflow()
    tracker.start(about(place / "run"))
    tracker.scalars(1, {"gap/2": 1.0, "gap": 2.0, "late/2": 3.0})
    tracker.scalars(2, {"gap/2": 4.0, "gap": 5.0, "late": 6.0})
    again = MLflow()
    again.start(about(place / "run"))
    again.scalars(3, {"gap/2": 7.0, "late": 8.0})
    run = json.loads((place / "run" / "mlflow.json").read_text())["id"]
    found = {name: points(client(place), run, name) for name in client(place).get_run(run).data.metrics}
    assert found == {
        "gap": [(1, 2.0), (2, 5.0)],
        "gap.2": [(1, 1.0), (2, 4.0), (3, 7.0)],
        "late/2": [(1, 3.0)],
        "late/all": [(2, 6.0), (3, 8.0)],
    }


def test_the_store_is_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store("", tmp_path) == (tmp_path / "mlruns").as_uri()
    assert store("http://host:5000", tmp_path) == "http://host:5000" and store("databricks", tmp_path) == "databricks"
    assert store(str(tmp_path / "x"), Path("runs")) == (tmp_path / "x").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///a.db")
    assert store("", tmp_path) == "sqlite:///a.db"
