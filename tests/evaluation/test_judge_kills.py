"""A few kills of the judge's command at random moments; tests/evaluation/soak.py has any number."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.server import Standin
from tests.evaluation.soak import Run, decided, soak, write_inputs

pytest.importorskip("openai", reason="the judge's client needs the openai package: pip install 'gipo-mc[judge]'")


def test_killed_three_times_it_loses_nothing_and_pays_nothing_twice(tmp_path: Path):
    assert "3 kills" in soak(tmp_path, kills=3, seed=4, prompts=10)


def test_interrupted_in_a_pause_it_ends_at_once_and_goes_on_later(tmp_path: Path):
    """Every request from the seventh on is told to wait for 100 seconds, which its threads do when Ctrl-C comes. All
    answers have a verdict: one without is asked for again, now or by the next run."""

    def script() -> Iterator[str]:
        yield from [""] * 6
        while True:
            yield "429 100 seconds"

    server = Standin(script=script(), reply=decided)
    run = Run(write_inputs(tmp_path / "in", server.url, 6), tmp_path / "out", tmp_path / "log")
    process = run.start()
    try:
        deadline = time.monotonic() + 60
        while b"waiting 100 seconds" not in run.log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, run.log.read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130, run.log.read_text()
        assert len(run.rows()) >= 1
        server.script = iter(())
        run.finish()
        assert max(server.answered.values()) == 1
    finally:
        process.kill()
        server.close()
