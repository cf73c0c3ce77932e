"""What reward models learn from HH rows: the thinned rows, the power analysis by hand, and its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import hh_models, tables
from benchmarks.studies.hh import learning


def record(small: float, large: float) -> dict[str, Any]:
    """Two sizes, 400 and 1600 pairs; accuracies of the larger size as given."""
    shares = {(64, 400): 0.5, (64, 1600): 0.5, (128, 400): small, (128, 1600): large}
    runs = [
        {
            "width": width,
            "pairs": pairs,
            "curve": [
                {"step": step, "all": share + move, "harmless": share, "helpful": share}
                for step, move in ((20, -0.01), (40, 0.01))
            ],
        }
        for (width, pairs), share in shares.items()
    ]
    return {"benchmark": "hh_learning", "test_pairs": {"harmless": 184, "helpful": 69}, "runs": runs}


def test_the_power_analysis_by_hand() -> None:
    studied = json.loads(learning.STUDY.read_text())
    found = learning.power(record(0.52, 0.56), studied)
    assert found["slopes"]["128"]["slope"] == pytest.approx(0.02) and found["slopes"]["64"]["slope"] == pytest.approx(0)
    assert found["slopes"]["128"]["error"] == pytest.approx((2 * 0.25 / 253) ** 0.5 / 2)
    assert found["training_pairs"]["0.6"] == pytest.approx(6400)  # two doublings
    assert found["test_pairs"]["0.65"] < found["test_pairs"]["0.6"] < found["test_pairs"]["0.55"]
    assert learning.power(record(0.56, 0.52), studied)["training_pairs"]["0.6"] is None


def test_runs_of_a_paired_t_test() -> None:
    assert learning.runs_needed(1.0, 1.0) == 10 and learning.runs_needed(1.0, 0.5) == 34  # G*Power: 10 and 34


def test_the_tables_say_what_was_not_found() -> None:
    found = record(0.56, 0.52)
    found["power"] = learning.power(found, json.loads(learning.STUDY.read_text()))
    text = "\n".join(tables.table(found, part) for part in tables.parts(found))
    assert "| 128 | 1600 | 51.0% | 53.0% | 52.0% | 52.0% |" in text and "more pairs did not help here" in text


def test_one_row_in_three(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for domain in hh_models.DOMAINS:
        Path(hh_models.file(tmp_path, "gold", domain)).write_text("".join(f"{row}\n" for row in range(7)))
    learning.thin(tmp_path)
    assert Path(hh_models.file(tmp_path, "gold3", "helpful")).read_text() == "0\n3\n6\n"
    assert Path(hh_models.file(tmp_path, "gold1", "harmless")).read_text() == "0\n1\n2\n3\n4\n5\n6\n"


def test_rows_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        learning.main(["--data", str(tmp_path), "--runs", str(tmp_path)])
    assert "there is no harmless_base_train.jsonl.gz in it" in capsys.readouterr().err
