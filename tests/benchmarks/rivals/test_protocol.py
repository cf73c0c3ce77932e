"""The pipe between the benchmark and a rival, with a rival that needs no package."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rivals.protocol import Missing, Worker, WorkerError, processor_seconds, tree_seconds

FAKE = Path(__file__).with_name("fake_rival.py")


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Worker]:
    code = f"import runpy, sys; sys.argv = ['fake', {request.param!r}]; runpy.run_path({str(FAKE)!r})"
    started = Worker([sys.executable, "-c", code], "fake (counting)", tmp_path / "log")
    yield started
    started.end()


@pytest.mark.parametrize("worker", ["counts"], indirect=True)
def test_a_worker_does_one_unit_at_a_time(worker: Worker, tmp_path: Path) -> None:
    assert worker.ready() == {"versions": {"fake": "1"}, "threads": "1"}
    for unit in ("first", "second"):
        found = worker.measure(unit)
        assert found["unit"] == unit and found["tokens"] == 300_000
        assert 0 < found["processor"] <= found["wall"] + 0.05
    worker.end()
    assert (tmp_path / "log").read_text() == "a line that is no answer\n"


@pytest.mark.parametrize("worker", ["counts"], indirect=True)
def test_the_clock_stands_while_another_side_works(worker: Worker) -> None:
    worker.ready()
    quick = worker.measure("first")
    time.sleep(0.5)
    assert worker.measure("second")["wall"] < quick["wall"] + 0.4


@pytest.mark.parametrize("worker", ["counts"], indirect=True)
def test_a_worker_that_fails_is_quoted(worker: Worker) -> None:
    worker.ready()
    with pytest.raises(WorkerError, match=r"fake \(counting\) ended with exit code 1:\n(.*\n)*    stopped as asked"):
        worker.measure("stop")


@pytest.mark.parametrize("worker", ["missing"], indirect=True)
def test_a_rival_that_is_not_installed_says_so(worker: Worker) -> None:
    with pytest.raises(Missing, match="no counting here"):
        worker.ready()


def test_children_count_while_they_live_and_afterwards() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = processor_seconds()
    child = subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    living = processor_seconds()
    assert living - before > 0.25 and tree_seconds(os.getpid()) > 0.25
    child.communicate(b"\n")
    assert processor_seconds() >= living - 0.02
