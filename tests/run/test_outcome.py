"""How a run ended: the first error stands, whatever comes of writing it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gipo_mc.errors import ConfigError, DataError, Requeue, StorageError
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.outcome import outcome_kept, refusal_noted
from tests.ranks import run_ranks


class FullDisk:
    """A watch whose run folder cannot be written."""

    def close(self) -> None:
        pass

    def what_stands(self) -> str:
        return "No step was saved yet."

    def write_status(self, *_: object) -> None:
        raise StorageError("run_status.json cannot be written: no space left")


def _ends(rank: int, error: BaseException) -> BaseException | None:
    watch: Any = FullDisk()
    try:
        with outcome_kept(watch):
            raise error
    except BaseException as found:
        return found


@pytest.mark.parametrize("error", [DataError("a bad row"), Requeue("saved"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_status_that_cannot_be_written_hides_no_error(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    (found,) = run_ranks(_ends, 1, error)
    assert type(found) is type(error)
    assert "warning: run_status.json cannot be written: no space left" in capfd.readouterr().err


def test_a_refused_start_is_refused_for_its_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(RunFolder, "write_status", full)
    with pytest.raises(ConfigError, match="no such key"), refusal_noted(lambda: RunFolder(tmp_path)):
        raise ConfigError("there is no such key")
