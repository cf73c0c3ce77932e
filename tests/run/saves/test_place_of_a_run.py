"""Where the folder of a run can be, as `gipo-mc config check` tells before a start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gipo_mc.config import load_config, run_folder
from gipo_mc.run.arguments import name
from gipo_mc.run.folder import RunFolder
from gipo_mc.run.saves.places import standing
from gipo_mc.run.trackers.mlflow_runs import store
from gipo_mc.tools.verbs.config import main


def checked(*words: str) -> int:
    return main(["check", "--for", "gi-ppo", *words])


def test_a_place_where_no_run_can_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(f"run.dir={tmp_path / 'new' / 'runs'}") == 0
    (tmp_path / "file").write_text("")
    assert checked(f"run.dir={tmp_path / 'file' / 'runs'}") == 6
    assert f"{tmp_path / 'file'} is a file, and a run needs a folder." in capsys.readouterr().err
    model = tmp_path / "model"
    model.mkdir()
    for file in ("config.json", "model.safetensors"):
        (model / file).write_text("{}")
    assert checked(f"run.dir={tmp_path}", "run.name=model") == 2
    assert f"{model} holds a model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists(), "to look makes nothing"


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # the tests may run as root
    assert checked(f"run.dir={tmp_path / 'runs'}") == 6
    assert f"nothing can be written to {tmp_path}. Give permission" in capsys.readouterr().err


def test_the_run_of_another_command_is_refused_unless_it_is_to_be_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.open(tmp_path, "mine", "train_sft", resume=True) as folder:
        folder.write_status("done", 0)
        folder.metrics.write_text("{}\n")
    words = (f"run.dir={tmp_path}", "run.name=mine")
    assert checked(*words) == 2
    assert "mine belongs to train_sft, this is train_gi_ppo" in capsys.readouterr().err
    assert checked(*words, "run.resume=false") == 0
    assert main(["check", "--for", "sft", *words]) == 0


def test_a_tilde_is_the_home_folder_also_where_no_shell_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "config.yaml"
    file.write_text("run: {dir: ~/runs}\n")
    assert load_config(str(file), []).run.dir == load_config(None, ["run.dir=~/runs"]).run.dir == f"{tmp_path}/runs"
    words = ["run.dir=~/runs", "model.policy=${run.dir}/builtin_sft"]
    assert load_config(None, words).model.policy == f"{tmp_path}/runs/builtin_sft"
    assert run_folder(None, words)[0] == f"{tmp_path}/runs"
    assert name("~/out.html") == f"{tmp_path}/out.html"
    assert store("~/mlruns", Path("runs")) == f"file://{tmp_path}/mlruns"


def test_what_stands_of_a_path_that_no_file_can_have_and_where_nothing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert standing(tmp_path / ("x" * 300) / "file") == tmp_path
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert standing(Path("runs/a")) == Path(".")
