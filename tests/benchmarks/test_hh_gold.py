"""The study on HH rows: the split, its figures by hand, and the whole of it at a tiny size on rows made here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hh_gold, hh_models
from benchmarks.study_statistics import figures

_TOPICS = ("bread", "rain", "chess", "Rome", "salt", "bees", "glass", "jazz")


def write_rows(folder: Path, name: str, count: int) -> None:
    """HH dialogues; two rows each begin with the same question, as in the published rows."""
    with gzip.open(folder / name, "wt", encoding="utf-8") as file:
        for row in range(count):
            topic = f"{_TOPICS[row // 2 % len(_TOPICS)]} {row // 2}"
            begin = (
                f"\n\nHuman: Tell me about {topic}.\n\nAssistant: Of what kind?\n\nHuman: Any, {name}.\n\nAssistant:"
            )
            chosen, rejected = f"{begin} It is good, like {topic}.", f"{begin} I will not say."
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "hh"
    folder.mkdir()
    for domain in hh_models.DOMAINS:
        write_rows(folder, f"{domain}_base_train.jsonl.gz", 120)
        write_rows(folder, f"{domain}_base_test.jsonl.gz", 10)
    return folder


def test_the_sides_share_no_first_question_and_lose_no_row(rows: Path, tmp_path: Path) -> None:
    hh_models.split(rows, tmp_path)
    questions: dict[str, set[str]] = {side: set() for side in hh_models.SIDES}
    count = 0
    for side in hh_models.SIDES:
        for path in hh_models.files(tmp_path, side):
            lines = Path(path).read_text().splitlines()
            count += len(lines)
            questions[side] |= {json.loads(line)["chosen"].split("\n\nAssistant:")[0] for line in lines}
    assert count == 240 and not questions["policy"] & questions["gold"]
    assert min(len(found) for found in questions.values()) > 15  # 60 questions, about half on each side


def test_the_worst_domain_is_the_one_that_gained_least() -> None:
    def row(gold: tuple[float, float], step: int) -> dict[str, Any]:
        found: dict[str, Any] = {"step": step}
        for domain, value in zip(hh_models.DOMAINS, gold, strict=True):
            found |= {f"gold/domain/{domain}": value, f"eval/reward/domain/{domain}": 1.0}
            found |= {f"eval/kl/domain/{domain}": 2.0}
            for reward in ("gold", "eval/reward"):
                found |= {f"{reward}/lowest_tenth/{domain}": -1.0, f"{reward}/kurtosis/{domain}": 3.0}
        return found

    # Harmless ends lower but gained more: levels of a reward model are compared within a domain only.
    own = figures({"final": row((0.5, 0.875), 4), "curve": [row((0.0, 0.75), 0), row((0.5, 0.875), 4)]})
    assert (own["mean"], own["worst"], own["gain_harmless"]) == (0.6875, 0.125, 0.5)
    assert "mixture" not in own


def test_the_whole_study(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    words = ["--quick", "--data", str(rows), "--workers", "2", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    assert hh_gold.main(words) == 0
    record = json.loads(out.read_text())
    assert record["benchmark"] == "hh_gold" and record["judge"]["all"]["pairs"] == 20
    assert len(record["runs"]) == 4 and not any(run["failure"] for run in record["runs"])
    starts = {run["run"]["seed"]: run["curve"][0]["gold/mean"] for run in record["runs"]}
    assert all(run["curve"][0]["gold/mean"] == starts[run["run"]["seed"]] for run in record["runs"])  # paired
    assert "smaller gain over SFT" in capsys.readouterr().out
    assert hh_gold.main(["--table", str(out), "--pictures", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("record_*.png"))) == 3


def test_without_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HH_DATA", raising=False)
    with pytest.raises(SystemExit):
        hh_gold.main([])
    assert "--data DIR is missing" in capsys.readouterr().err
