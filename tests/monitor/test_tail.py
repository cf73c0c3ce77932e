"""A log file that grows: only what is new is read, and whatever happens to the file, the rows are those it has."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

from gipo_mc.monitor import tail as tails
from gipo_mc.monitor.tail import Tail
from tests.monitor.folders import append


def _lines(first: int, last: int) -> list[dict[str, int]]:
    return [{"step": step, "x": step} for step in range(first, last + 1)]


def _steps(tail: Tail) -> list[int]:
    return [row["step"] for row in tail.rows]


def test_new_lines_come_and_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path, tail = tmp_path / "m.jsonl", Tail(tmp_path / "m.jsonl")
    assert not tail.refresh() and tail.rows == []
    append(path, _lines(1, 3))
    assert tail.refresh() and _steps(tail) == [1, 2, 3] and not tail.refresh()
    with open(path, "a") as file:
        file.write('{"step": 4, "x"')
    assert tail.refresh() and tail.unfinished and _steps(tail) == [1, 2, 3]
    with open(path, "a") as file:
        file.write(': 4}\n{"step": 5, "x": 5}\n')
    assert tail.refresh() and not tail.unfinished and _steps(tail) == [1, 2, 3, 4, 5]


def test_a_resume_takes_lines_back(tmp_path: Path) -> None:
    path, tail = tmp_path / "m.jsonl", Tail(tmp_path / "m.jsonl")
    append(path, _lines(1, 9))
    tail.refresh()
    # As JsonLines.keep does: another file under the name. Its inode may be that of the first.
    (tmp_path / "new").write_text("".join(json.dumps(line) + "\n" for line in _lines(1, 4)))
    os.replace(tmp_path / "new", path)
    assert tail.refresh() and _steps(tail) == [1, 2, 3, 4]
    append(path, [{"step": 5, "x": 50}])
    assert tail.refresh() and tail.rows[-1] == {"step": 5, "x": 50}


def test_the_same_file_with_other_contents_is_read_again(tmp_path: Path) -> None:
    path, tail = tmp_path / "m.jsonl", Tail(tmp_path / "m.jsonl")
    append(path, _lines(1, 9))
    tail.refresh()
    with open(path, "r+") as file:  # same inode, longer than before
        file.truncate(0)
    append(path, [{"step": step, "x": step + 100} for step in range(1, 30)])
    assert tail.refresh() and len(tail.rows) == 29 and tail.rows[0]["x"] == 101
    path.unlink()
    assert tail.refresh() and tail.rows == [] and not tail.refresh()


def test_a_step_that_is_said_again_counts_as_it_was_said_last(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "m.jsonl")
    append(tmp_path / "m.jsonl", [*_lines(1, 5), {"step": 4, "x": 40}])
    tail.refresh()
    assert [row["x"] for row in tail.rows] == [1, 2, 3, 40]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"x": 1}', '{"step": -1}', '{"step": true}', '{"step": 1e3}'])
def test_a_damaged_line_is_left_out_and_counted(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"step": 1}}\n{line}\n\n{{"step": 2}}\n')
    tail = Tail(tmp_path / "m.jsonl")
    tail.refresh()
    assert _steps(tail) == [1, 2] and tail.damaged == 1


def test_what_is_no_regular_file_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.jsonl")
    (tmp_path / "folder").mkdir()
    assert not Tail(tmp_path / "m.jsonl").refresh() and not Tail(tmp_path / "folder").refresh()


def test_a_long_run_keeps_few_rows_and_those_with_an_evaluation(tmp_path: Path) -> None:
    path, tail = tmp_path / "m.jsonl", Tail(tmp_path / "m.jsonl", kept=100)
    for begin in range(1, 4000, 50):
        steps = range(begin, begin + 50)
        append(path, [{"step": s, "x": s} | ({"eval/x": s} if s % 10 == 0 else {}) for s in steps])
        tail.refresh()
    steps = _steps(tail)
    assert len(steps) <= 200 and steps == sorted(steps) and steps[0] < 50 and steps[-25:] == list(range(3976, 4001))
    assert sum("eval/x" in row for row in tail.rows) > 50


def test_a_file_that_is_long_already_is_skimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "SKIMMED_FROM", 1 << 20)
    monkeypatch.setattr(tails, "_END", 1 << 18)
    path = tmp_path / "m.jsonl"
    filler = "".join(f', "m{at}": {at}.5' for at in range(200))
    path.write_text("".join(f'{{"step": {step}{filler}}}\n' for step in range(1, 5001)))
    tail, newest = Tail(path), Tail(path, 50, newest=True)
    begin = time.process_time()
    tail.refresh()
    newest.refresh()
    assert time.process_time() - begin < 2.0
    steps = _steps(tail)
    assert steps[0] == 1 and steps[-20:] == list(range(4981, 5001)) and steps == sorted(set(steps))
    assert max(b - a for a, b in pairwise(steps)) < 100
    assert _steps(newest) == list(range(4951, 5001)) and tail.damaged == newest.damaged == 0
    append(path, [{"step": 5001}])
    assert tail.refresh() and newest.refresh() and _steps(newest)[-1] == _steps(tail)[-1] == 5001
