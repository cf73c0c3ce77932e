"""The study on HH rows: the split, its figures by hand, and the whole of it at a tiny size on rows made here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.studies import hh_gold, hh_models
from benchmarks.studies.paired import figures

_TOPICS = ("bread", "rain", "chess", "Rome", "salt", "bees", "glass", "jazz")


def write_rows(folder: Path, name: str, count: int) -> None:
    """HH dialogues; two rows each begin with the same question, as in the published rows."""
    with gzip.open(folder / name, "wt", encoding="utf-8") as file:
        for row in range(count):
            topic = f"{_TOPICS[row // 2 % len(_TOPICS)]} {row // 2}"
            asks = "What is" if "test" in name else "Tell me about"
            begin = f"\n\nHuman: {asks} {topic}.\n\nAssistant: Why?\n\nHuman: So, {name}.\n\nAssistant:"
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


def test_no_two_parts_share_a_first_question_and_no_training_row_is_lost(rows: Path, tmp_path: Path) -> None:
    with gzip.open(rows / "helpful_base_test.jsonl.gz", "at", encoding="utf-8") as file:
        asked = {"chosen": "\n\nHuman: Tell me about bread 0.\n\nAssistant: Bread.", "rejected": "..."}
        file.write(json.dumps(asked) + "\n")  # its question stands in the training rows
    counts = hh_models.split(rows, tmp_path)
    questions: dict[str, set[str]] = {}
    for side in (*hh_models.SIDES, "test"):
        for domain in hh_models.DOMAINS:
            lines = Path(hh_models.file(tmp_path, side, domain)).read_text().splitlines()
            found = {json.loads(line)["chosen"].split("\n\nAssistant:")[0] for line in lines}
            questions[side] = questions.get(side, set()) | found
    assert counts["test"] == "10 harmless and 10 helpful"
    assert sum(int(word) for side in hh_models.SIDES for word in counts[side].split() if word.isdigit()) == 240
    policy, gold, test = questions.values()
    assert not policy & gold and not (policy | gold) & test
    assert min(len(policy), len(gold)) > 15  # of 60 questions, about half on each side


def test_reward_models_compared_by_hand() -> None:
    proxy_P2 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    gold_P2 = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    found = hh_models.compared(proxy_P2, gold_P2)
    assert (found["pairs"], found["proxy_accuracy"], found["gold_accuracy"]) == (4, 0.75, 0.75)
    assert found["agreement"] == 0.5
    assert found["correlation"] == pytest.approx(np.corrcoef(proxy_P2.flatten(), gold_P2.flatten())[0, 1])


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


def test_the_whole_study(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hh_gold, "FINAL_SEEDS", (71,))
    out = tmp_path / "record.json"
    words = ["--quick", "--data", str(rows), "--workers", "2", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    assert hh_gold.main(words) == 0
    record = json.loads(out.read_text())
    assert record["benchmark"] == "hh_gold" and record["judge"]["all"]["pairs"] == 20
    assert len(record["runs"]) == 3 and not any(run["failure"] for run in record["runs"])
    assert len({run["curve"][0]["gold/mean"] for run in record["runs"]}) == 1  # paired: all begin at the same policy
    learned = [run for run in record["runs"] if run["run"]["method"] == "dpo"]
    assert all(run["curve"][0]["eval/kl/mean"] == 0 != run["final"]["eval/kl/mean"] for run in learned)
    assert "smaller gain over SFT" in capsys.readouterr().out
    assert hh_gold.main(["--table", str(out), "--pictures", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("record_*.png"))) == 3

    assert hh_gold.main([*words, "--budget"]) == 0
    assert "; 0 left: about 0 minutes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="are of another size"):  # the quick runs are none of the study's own
        hh_gold.main([*words[1:], "--budget", "--out", str(tmp_path / "full.json")])


def test_rows_that_are_missing_or_damaged(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "record.json")]
    with pytest.raises(SystemExit):
        hh_gold.main([*words, "--data", str(tmp_path)])
    assert "there is no harmless_base_train.jsonl.gz in it" in capsys.readouterr().err
    with gzip.open(rows / "helpful_base_train.jsonl.gz", "at", encoding="utf-8") as file:
        file.write('{"prompt": "Hello"}\n')
    with pytest.raises(SystemExit, match=r"helpful_base_train.jsonl.gz:121 has no text 'chosen'"):
        hh_gold.main([*words, "--data", str(rows)])


def test_without_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HH_DATA", raising=False)
    with pytest.raises(SystemExit):
        hh_gold.main([])
    assert "--data DIR is missing" in capsys.readouterr().err
