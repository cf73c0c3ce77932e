"""`table` and `export` on an evaluation's folder, as the commands run them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.evaluation import reading
from gipo_mc.evaluation.judges.journal import INVALID, Entry, Journal
from gipo_mc.evaluation.judges.questions import make_setup
from gipo_mc.evaluation.pairs import Pair, write_pairs
from gipo_mc.report.evaluation.winners import load_evaluation
from gipo_mc.tools.evaluate.command import main

WINNERS = ("ours", "ours", "tie", "theirs", "ours")


def evaluation(folder: Path, stopped: int = 0) -> Path:
    """60 prompts against two opponents, judged in both orders. stopped: pairs of which the second order is missing."""
    pairs = [
        Pair(f"{opponent}-{n}", f"row:{n}", f"c{n // 2}", "helpful", None, opponent, f"Question {n}?", f"A{n}",
             f"B{n}", 20 + n % 7, 20 + n % 5, False, False, "ours [1]", f"{opponent} [2]")
        for opponent in ("sft", "dpo")
        for n in range(60)
    ]  # fmt: skip
    folder.mkdir()
    write_pairs(folder, pairs)
    setup = make_setup(
        "gpt", "openai", server="http://localhost", model="m", settings={}, orders="both", repeats=1, seed=0
    )
    entries = [
        Entry(f"{pair.pair}{order}", setup.setup, pair.pair, pair.opponent, "gpt", order, 0, WINNERS[place % 5])  # type: ignore[arg-type]
        for place, pair in enumerate(pairs)
        for order in (True, False)
        if order or place >= stopped
    ]
    entries[-1] = Entry(**{**vars(entries[-1]), "verdict": None, "problem": "no verdict"})
    with Journal(folder) as journal:
        journal.note(setup)
        journal.add(entries)
    assert (folder / INVALID).exists()
    return folder


def test_from_files_to_the_table_and_its_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = evaluation(tmp_path / "eval", stopped=3)
    assert main(["table", str(folder), "--draws", "200"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == "gpt: every pair in both orders; 116 pairs"
    assert [line.split()[0] for line in lines if line.startswith(("sft  ", "dpo  "))][:2] == ["sft", "dpo"]
    assert "! 1 of 237 games have no valid verdict" in printed
    assert "! 3 comparisons of this judge have no answer" in printed
    assert "! 3 pairs with a verdict in one order and none in the other yet are left out" in printed
    first = (folder / "table.json").read_bytes()
    assert main(["table", str(folder), "--draws", "200"]) == 0
    assert (folder / "table.json").read_bytes() == first
    out = tmp_path / "table.json"
    assert main(["export", str(folder), "--format", "json", "--out", str(out)]) == 0
    assert [(row["opponent"], row["pairs"]) for row in json.loads(out.read_text())] == [("sft", 57), ("dpo", 59)]


def test_the_table_and_the_page_of_it_read_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They may be large, and written to meanwhile."""
    folder, read = evaluation(tmp_path / "eval"), Counter[str]()
    for name in ("read_pairs", "read_setups", "read_entries"):
        original = getattr(reading, name)

        def counted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            read[" ".join([name, *arguments[1:]])] += 1
            return original(*arguments)

        monkeypatch.setattr(reading, name, counted)
    once = {"read_pairs": 1, "read_setups": 1, "read_entries": 1, f"read_entries {INVALID}": 1}
    assert main(["table", str(folder), "--draws", "100"]) == 0 and read == once
    read.clear()
    assert load_evaluation(folder).pairs and read == once


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["table", str(tmp_path)]) == 3
    assert "is no evaluation" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--format", "csv", "--out", str(tmp_path / "out")]) == 3
    assert "gipo-mc evaluate table" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main(["table", str(tmp_path), "--draws", "1"])
    assert refused.value.code == 2
