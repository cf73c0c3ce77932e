"""What a command writes: whole or not at all, and never over somebody's model or another file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from gipo_mc.errors import ConfigError, StorageError
from gipo_mc.evaluation.responses import Response, is_response
from gipo_mc.report.report import is_report
from gipo_mc.run.jsonl import encode
from gipo_mc.tools import output
from gipo_mc.tools.output import IMPORTED_FILES, MODEL_FILES, check_file, check_output, new_folder
from tests.scripts import run_script
from tests.source_rules import ROOT


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(out: Path, overwrite: bool = False) -> None:
    with new_folder(out, MODEL_FILES, overwrite) as temporary:
        (temporary / "config.json").write_text("new")


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_written(exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    if exists:
        out.mkdir(parents=True)
    write(out)
    assert contents(tmp_path) == {"a/out/config.json": "new"}


def test_a_model_is_replaced_only_when_asked_and_whole(tmp_path: Path) -> None:
    held = {"config.json": "old", "adapter_model.safetensors": "old", "model-00001-of-00002.safetensors": "old"}
    for name, text in held.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"is not empty \(it holds adapter_model.safetensors, .* --overwrite"):
        write(tmp_path)
    assert contents(tmp_path) == held
    write(tmp_path, overwrite=True)
    assert contents(tmp_path) == {"config.json": "new"}


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/step_00000005/state.json", ".git/config"])
def test_what_no_model_holds_is_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    (tmp_path / "config.json").write_text("old")
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=f"{name.split('/')[0]} is none of the files"):
            write(tmp_path, overwrite)
    assert contents(tmp_path) == before
    with pytest.raises(ConfigError, match="is a file"):
        write(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["policy", "new"])
def test_nothing_is_written_into_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Its own model folder holds nothing but what --overwrite may replace."""
    step = tmp_path / "run" / "checkpoints" / "step_00000001"
    (step / "policy").mkdir(parents=True)
    for file in ("MANIFEST.json", "state.json", "policy/config.json"):
        (step / file).write_text("old")
    (tmp_path / "link").symlink_to(step)
    before = contents(tmp_path)
    for out in (step / name, tmp_path / "link" / name, step.parent / "new"):
        with pytest.raises(ConfigError, match=r"is or lies in the checkpoints .*run/checkpoints"):
            write(out, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["~nobody-of-this-name/out", "loop", "loop/out"])
def test_a_place_that_there_is_not_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=r"cannot be written: .* Give another folder\."):
        write(Path(name) if name.startswith("~") else tmp_path / name)


def test_a_link_stays_a_link_to_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    write(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "real") == {"config.json": "new"}


def test_an_import_replaces_an_import_and_no_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000000").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--overwrite"):
        check_output(tmp_path, IMPORTED_FILES, False)
    check_output(tmp_path, IMPORTED_FILES, True)
    (tmp_path / "checkpoints" / "step_00000100").mkdir()
    with pytest.raises(ConfigError, match="step_00000100 is none of the files"):
        check_output(tmp_path, IMPORTED_FILES, True)


def test_an_error_leaves_nothing_and_a_kill_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")

    def fail() -> None:
        with new_folder(out, MODEL_FILES, True) as temporary:
            (temporary / "config.json").write_text("half")
            raise StorageError("full")

    with pytest.raises(StorageError):
        fail()
    assert contents(tmp_path) == {"out/config.json": "old"}
    # Killed while it wrote, and between the two renames at the end.
    half = tmp_path / ".tmp-1-out"
    half.mkdir()
    out.rename(tmp_path / ".old-out")
    with pytest.raises(ConfigError, match="--overwrite"):
        write(out)
    assert contents(out) == {"config.json": "old"}
    write(out, overwrite=True)
    assert contents(tmp_path) == {"out/config.json": "new"}
    assert half.exists()  # another job may be at work there
    monkeypatch.setattr(output, "_STALE_SECONDS", -1.0)
    write(out, overwrite=True)
    assert not half.exists()


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "out")


def test_an_error_at_the_end_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write(out)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "sync", full)
    with pytest.raises(StorageError, match="No space left"):
        write(out, overwrite=True)
    assert contents(tmp_path) == {"out/config.json": "new"}


RESPONSE = encode(asdict(Response("p", "r", "d", 3, False)))


@pytest.mark.parametrize("first", ['{"prompt": "mine"}', '{"step": 1, "loss": 2.0}', "text", "[" * 9999, "\udcff"])
def test_a_file_of_another_kind_is_not_written_over(first: str, tmp_path: Path) -> None:
    (out := tmp_path / "out").write_text(first + "\n", errors="surrogateescape")
    for is_ours in (is_report, is_response):
        with pytest.raises(ConfigError, match="out is a file of another kind, which would be lost"):
            check_file(out, is_ours)


def test_what_the_command_wrote_before_is_written_over(tmp_path: Path) -> None:
    (out := tmp_path / "out").write_text(RESPONSE + "\n")
    check_file(out, is_response)
    out.write_text("<!doctype html>\n<html>")
    check_file(out, is_report)
    out.write_text("")
    for free in (out, tmp_path / "new", tmp_path, Path("/dev/null")):
        check_file(free, is_response)


@pytest.mark.parametrize("command", ["report", "generate"])
def test_the_commands_ask(command: str, tmp_path: Path) -> None:
    (out := tmp_path / "prompts.jsonl").write_text('{"prompt": "mine"}\n')
    words = [str(tmp_path)] if command == "report" else ["model.policy=none", "--prompt=x"]
    done = run_script(ROOT / "scripts" / f"{command}.py", *words, "--out", str(out))
    assert done.returncode == 2 and "is a file of another kind" in done.stderr
    assert out.read_text() == '{"prompt": "mine"}\n'
