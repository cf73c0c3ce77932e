"""Checkpoints that are gone or damaged, of this run and of one that is named, and a config.yaml that is damaged: said,
or refused, and a start that is refused leaves everything as it was."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.config import load_config
from gipo_mc.errors import GipoError
from gipo_mc.parallel import sharded_files
from gipo_mc.run import checkpoint, manifest
from gipo_mc.run.hashes import sum_of
from gipo_mc.supervised import sft
from tests.parallel.test_shard_index import Trap
from tests.ranks import run_ranks
from tests.run.test_hashes import write_as_before
from tests.runs import read_metrics, save_models


def _attempts(rank: int, folder: Path, attempts: list[list[str]]) -> list[str]:
    """Start the run again and again, each time with other options: "" where it went well, else the error."""
    base: dict[str, Any] = {
        "run": {"dir": str(folder), "name": "run", "iterations": 3, "seed": 5},
        "device": "cpu",
        "model": {"policy": str(folder / "models" / "policy")},
        "data": {"demonstrations": ["builtin"], "max_rows": 8, "sequence_length": 24},
        "train": {"batch_size": 4},
        "parallel": {"timeout_minutes": 1},
        "policy": {"lr": 1e-3},
        "checkpoint": {"every": 1},
        "eval": {"prompts": 0},
    }
    outcomes = []
    for options in attempts:
        try:
            sft.train(load_config(None, options, base))
            outcomes.append("")
        except GipoError as error:
            outcomes.append(f"{error.exit_code}: {error}")
    return outcomes


def _start(folder: Path, *options: str, ranks: int = 1) -> str:
    (outcome,) = set(run_ranks(_attempts, ranks, folder, [list(options)])[0])
    return str(outcome)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps, with the checkpoints 2 and 3."""
    folder = tmp_path_factory.mktemp("finished")
    save_models(folder / "models")
    assert _start(folder) == ""
    return folder


@pytest.fixture
def place(tmp_path: Path, finished: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _content(run: Path) -> dict[str, bytes]:
    """Every file of a run but its status, its lock, what was verified, and what may have been thrown away."""
    files = [
        path
        for path in run.rglob("*")
        if path.is_file() and path.name not in ("run_status.json", ".lock", ".verified.json")
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if "previous" not in str(path)}


# ------------------------------------------------------------------------------------------------- of the run itself
@pytest.mark.parametrize("lost", ["folder", "content", "before this was noted"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_again_in_silence(place: Path, lost: str) -> None:
    run = place / "run"
    shutil.rmtree(run / "checkpoints")
    if lost != "folder":
        (run / "checkpoints").mkdir()
    if lost == "before this was noted":
        (run / ".saved.json").unlink()
    before = _content(run)
    outcome = _start(place)
    assert outcome.startswith("4: ") and "holds no checkpoint, and there was one" in outcome
    assert "Put the checkpoints back" in outcome and "run.resume=false" in outcome
    assert ("step 3 was written" if lost != "before this was noted" else "goes to step 3") in outcome
    assert _content(run) == before
    assert _start(place, "run.resume=false") == ""
    assert _content(run)["metrics.jsonl"] and read_metrics(run / "previous-1")[-1]["step"] == 3
    assert (run / "previous-1" / ".saved.json").exists() == (lost != "before this was noted")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(place: Path) -> None:
    run = place / "run"
    shutil.rmtree(run / "checkpoints")
    (run / ".saved.json").unlink()
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(rows[0])  # step 1, after which the first checkpoint was due
    assert _start(place) == "" and [row["step"] for row in read_metrics(run)] == [1, 2, 3]


@pytest.mark.parametrize(
    "options", [["run.seed=9"], ["data.demonstrations=[builtin:easy]"], ["model.policy=nowhere/at/all"]]
)
def test_a_start_that_is_refused_leaves_the_run_as_it_was(place: Path, options: list[str]) -> None:
    """Also where it would have continued from an older checkpoint and forgotten the steps after that."""
    shutil.rmtree(place / "run" / "checkpoints" / "step_00000003")
    before = _content(place / "run")
    assert _start(place, "run.iterations=4", *options).startswith("2: ")
    assert _content(place / "run") == before


@pytest.mark.parametrize("content", ["", "run: [", "\x00\x01", "[1, 2]", "a: !!python/object:os.system {}", "[" * 3000])
def test_a_damaged_config_is_a_sentence_and_is_written_anew(place: Path, finished: Path, content: str) -> None:
    config = place / "run" / "config.yaml"
    whole = config.read_text()
    config.write_text(content)
    assert _start(place) == ""
    (warning,) = [
        row["text"]
        for row in map(json.loads, (place / "run" / "warnings.jsonl").read_text().splitlines())
        if "config.yaml" in row["text"]
    ]
    assert f"{config} cannot be read (" in warning and "it is written anew" in warning and "\n" not in warning
    assert config.read_text() == whole.replace(str(finished), str(place)) and not list(config.parent.glob(".config*"))


def test_a_run_of_before_continues_with_its_checkpoints(place: Path) -> None:
    """Whose manifests hold SHA-256."""
    checkpoints = place / "run" / "checkpoints"
    for step in (2, 3):
        write_as_before(checkpoints / f"step_{step:08d}")
    assert _start(place, "run.iterations=4", ranks=2) == ""
    assert [row["step"] for row in read_metrics(place / "run")] == [1, 2, 3, 4]
    assert checkpoint.steps(checkpoints) == [3, 4]
    kinds = [(checkpoints / f"step_{step:08d}" / "MANIFEST.json").read_text() for step in (3, 4)]
    assert [("sha256" in kind, "blake3" in kind) for kind in kinds] == [(True, False), (False, True)]


def _full_at_the_config(rank: int, folder: Path) -> list[str]:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "config.yaml":
            raise OSError(28, "No space left on device")
        replace(source, target)

    os.replace = full  # type: ignore[assignment]  # this process is the test's own
    return _attempts(rank, folder, [["run.iterations=4"]])


def test_a_config_that_cannot_be_written_is_the_old_one(place: Path) -> None:
    config = place / "run" / "config.yaml"
    before = config.read_text()
    (outcome,) = run_ranks(_full_at_the_config, 1, place)[0]
    assert outcome.startswith("6: ") and "config.yaml cannot be written" in outcome
    assert config.read_text() == before and not list(config.parent.glob(".config*"))


# ------------------------------------------------------------------------------------------------- of somebody else
def _foreign(place: Path) -> Path:
    return (place / "run").rename(place / "other")


def test_a_named_run_with_a_damaged_newest_checkpoint_says_which_one_it_uses(place: Path, capfd: Any) -> None:
    other = _foreign(place)
    (other / "checkpoints" / "step_00000003" / "shards" / "common.pt").write_bytes(b"x")
    assert _start(place, f"model.policy={other}") == ""
    said = (place / "run" / "warnings.jsonl").read_text()
    for text in (said, capfd.readouterr().out.replace("\n", "")):
        assert "step_00000002 is used, a newer checkpoint was passed over" in text and "common.pt" in text
    newest = other / "checkpoints" / "step_00000003"
    assert _start(place, f"model.policy={newest}", "run.name=two").startswith(
        f"4: {newest}/shards/common.pt has 1 byte"
    )


def _manifest_of(path: Path) -> None:
    """What whoever changes a checkpoint does, too."""
    names = [name for name in manifest.files_of(path) if name != manifest.FILE]
    sizes = {name: (path / name).stat().st_size for name in names}
    entries = {n: manifest.Entry(size, "blake3", [sum_of(path / n, 0, size, "blake3")]) for n, size in sizes.items()}
    manifest.write(path, json.loads((path / "state.json").read_text())["step"], entries)


def _index_with(shards: Path, change: Any) -> None:
    index = pickle.loads((shards / ".metadata").read_bytes())
    change(index)
    (shards / ".metadata").write_bytes(pickle.dumps(index))


@pytest.mark.parametrize("where", ["index", "common", "tensor", "object"])
@pytest.mark.parametrize("use", ["named", "continued"])
def test_nothing_in_a_foreign_checkpoint_runs(place: Path, use: str, where: str) -> None:
    """The manifest is right, because whoever put the trap there wrote it anew."""
    other = _foreign(place) if use == "named" else place / "run"
    marker, path = place / "marker", other / "checkpoints" / "step_00000003"
    shards = path / "shards"
    if where == "index":
        _index_with(shards, lambda index: setattr(index, "planner_data", Trap(marker)))
    elif where == "common":
        torch.save({"model.scheduler": Trap(marker)}, shards / "common.pt")
    else:  # a file that torch reads with, or without, a look at what is in it
        torch.save(Trap(marker), shards / "__9_0.distcp")
        size = (shards / "__9_0.distcp").stat().st_size

        def lead_there(index: Any) -> None:
            for key, info in index.storage_data.items():
                if key.fqn.startswith("model.model."):
                    info.relative_path, info.offset, info.length = "__9_0.distcp", 0, size
            if where == "object":
                for name in [n for n in index.state_dict_metadata if n.startswith("model.model.")]:
                    index.state_dict_metadata[name] = torch.distributed.checkpoint.metadata.BytesStorageMetadata()

        _index_with(shards, lead_there)
    _manifest_of(path)
    for older in (other / "checkpoints").glob("*2"):
        shutil.rmtree(older)
    options = [f"model.policy={other}"] if use == "named" else ["run.iterations=4"]
    for ranks in (1, 2):
        outcome = _start(place, *options, ranks=ranks)
        assert outcome.startswith("4: ") and str(path) in outcome and len(outcome) < 700, outcome
        assert not marker.exists()


def test_a_file_that_the_manifest_does_not_name_is_refused(place: Path) -> None:
    other = _foreign(place)
    path = other / "checkpoints" / "step_00000003"
    (path / "notes.txt").write_text("never read")
    assert _start(place, f"model.policy={path}") == ""
    for name in ("shards/__5_0.distcp", "model/tokenizer.model", "shards/inner/x"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("x")
        outcome = _start(place, f"model.policy={path}", "run.name=two")
        assert outcome.startswith(f"4: {path / name} is not named in MANIFEST.json") and "Take the file out" in outcome
        (path / name).unlink()


# ------------------------------------------------------------------------------------------------- neither of these
def test_a_manifest_that_is_a_pipe_is_no_manifest(place: Path) -> None:
    """Opening one waits for a writer, for ever."""
    checkpoints = place / "run" / "checkpoints"
    manifest_file = checkpoints / "step_00000003" / "MANIFEST.json"
    manifest_file.unlink()
    os.mkfifo(manifest_file)
    found, (reason,) = checkpoint.latest(checkpoints)
    assert found == checkpoints / "step_00000002" and "has no readable MANIFEST.json" in reason


def test_the_loss_of_a_rank_is_not_said_to_be_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")

    monkeypatch.setattr(sharded_files, "read", lost)
    with pytest.raises(RuntimeError, match="closed by peer"):
        checkpoint.load_shards(tmp_path, {})
