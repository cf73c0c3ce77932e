"""Checkpoints: damage is found and named, a failed save leaves earlier ones, every layout reads every other's."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.errors import CheckpointError, StorageError
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import micro_batches
from gipo_mc.models.readout import group_probabilities, response_statistics, response_values
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.run import checkpoint
from tests.models import tiny
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import global_tensors

SHARDED = {"data": 2, "distributed_optimizer": "on"}


def _engines(sizes: dict[str, Any], seed: int, groups: int = 2) -> tuple[Layout, dict[str, Engine]]:
    """A policy with tied embeddings and a critic with both heads, drawn from `seed`."""
    parallel = {name: value for name, value in sizes.items() if name != "data"}
    config = ParallelConfig(timeout_minutes=1, **parallel)
    layout = runtime.initialize(config, "cpu")
    shape = read_shape(tiny.config(num_hidden_layers=2, tie_word_embeddings=True))
    optimizer = OptimizerConfig(lr=1e-2, warmup=3, schedule="linear")
    return layout, {
        role: Engine(
            build_model(shape, layout, head=head, groups=groups, dtype=torch.float32, trainable=True, seed=seed),
            layout,
            optimizer,
            total_steps=9,
            distributed_optimizer=config.distributed_optimizer == "on",
        )
        for role, head in (("policy", "lm"), ("critic", "critic"))
    }


def _train(engine: Engine, layout: Layout) -> None:
    batch = to_sequences([[5, 6, 7], [8], [9, 10], [11, 12]], [[20, 21], [22, 23, 130], [24], [25, 26]], 0)

    def last_stage(model: Any, hidden_LBH: Any, part: Any) -> Any:
        if model.head == "lm":
            return {"loss": -response_statistics(model, hidden_LBH, part, 1.0, 0).logp_N.sum() / 8}
        probs_BM = group_probabilities(model, hidden_LBH, part, reads="xy", detach=True)
        return {"loss": (response_values(model, hidden_LBH, part) - 1).square().sum() / 8 + probs_BM[:, 0].sum()}

    engine.forward_backward(micro_batches(batch, ParallelConfig(micro_batch_size=2), layout).parts, last_stage)
    engine.step()


def _save(folder: Path, step: int, engines: dict[str, Engine], keep: int = 9, extras: Any = lambda path: None) -> Path:
    sharded: dict[str, Any] = {}
    for role, engine in engines.items():
        sharded |= engine.sharded_state(role)
    return checkpoint.save(folder, step, sharded, {"note": "kept"}, keep, extras)


def _load(path: Path, engines: dict[str, Engine]) -> None:
    sharded: dict[str, Any] = {}
    for role, engine in engines.items():
        sharded |= engine.sharded_state(role, is_loading=True)
    loaded = checkpoint.load_shards(path, sharded)
    for role, engine in engines.items():
        engine.load_sharded_state(role, loaded)


# ------------------------------------------------------------------------------------------------------- any layout
def _make(rank: int, folder: Path, sizes: dict[str, Any], steps: int) -> None:
    layout, engines = _engines(sizes, seed=1)
    for _ in range(steps):
        for engine in engines.values():
            _train(engine, layout)
    _save(folder, 1, engines)


def _again(rank: int, folders: list[Path], target: Path, sizes: dict[str, Any]) -> list[Any]:
    """Load each checkpoint into freshly drawn engines of this layout, save them, take a step and save again."""
    rates = []
    for folder in folders:
        layout, engines = _engines(sizes, seed=2)
        _load(folder / "step_00000001", engines)
        rates.append([engine.lr for engine in engines.values()])
        _save(target / folder.name, 1, engines)
        for engine in engines.values():
            _train(engine, layout)
        _save(target / folder.name, 2, engines)
    return rates


def _ranks(sizes: dict[str, Any]) -> int:
    return sizes.get("tensor", 1) * sizes.get("pipeline", 1) * sizes.get("data", 1)


NAMES = ("1", "TP2", "PP2", "TP2xPP2", "DP2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each layout after two steps, under the layout's name."""
    folder = tmp_path_factory.mktemp("saved")
    for name in NAMES:
        run_ranks(_make, _ranks(LAYOUTS[name]), folder / name, LAYOUTS[name], 2)
    return folder


@pytest.fixture(scope="module")
def written(saved: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What `saved` holds, by the layout's name."""
    return dict(zip(NAMES, global_tensors(*(saved / name / "step_00000001" for name in NAMES)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_takes_up_every_other_layouts_checkpoint(
    tmp_path: Path, saved: Path, written: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    """Each global tensor and moment is bit for bit what was saved, and the step after it is the same one."""
    others = [saved / other for other in NAMES]
    rates = run_ranks(_again, _ranks(LAYOUTS[name]), others, tmp_path, LAYOUTS[name])
    # Three of four warm-up steps are ahead or done: two were taken, so the next one is the third.
    assert all(rate == pytest.approx(0.75e-2) for rank in rates for pair in rank for rate in pair)
    loaded = global_tensors(*(tmp_path / other / "step_00000001" for other in NAMES))
    stepped = dict(zip(NAMES, global_tensors(*(tmp_path / other / "step_00000002" for other in NAMES)), strict=True))
    expected = stepped[name]
    for other, read in zip(NAMES, loaded, strict=True):
        own = written[other]
        assert own.keys() == read.keys()
        for key, tensor in own.items():
            assert torch.equal(tensor, read[key]), (other, key)
        moments = [key for key in own if key.startswith("optimizer.state.exp_avg")]
        assert {"policy", "critic"} == {key.split(".")[3] for key in moments} and any(
            "group_head" in k for k in moments
        )
        assert all(own[key].abs().sum() > 0 for key in moments if "layernorm" not in key), "moments of no step"
        for key, tensor in stepped[other].items():
            assert torch.allclose(tensor, expected[key], rtol=1e-3, atol=2e-5), (other, key)


@pytest.mark.parametrize("sizes", [{}, {"tensor": 2}, SHARDED])
def test_a_checkpoint_may_come_before_the_first_step(tmp_path: Path, sizes: dict[str, Any]) -> None:
    """As in critic warm-up, when the policy has not been trained yet, or when the first steps were skipped."""
    run_ranks(_make, _ranks(sizes), tmp_path / "early", sizes, 0)
    run_ranks(_again, _ranks(sizes), [tmp_path / "early"], tmp_path / "later", sizes)
    run_ranks(_make, _ranks(sizes), tmp_path / "straight", sizes, 1)
    found, straight = global_tensors(
        tmp_path / "later" / "early" / "step_00000002", tmp_path / "straight" / "step_00000001"
    )
    for key, tensor in straight.items():
        assert torch.equal(found[key], tensor), key


def test_the_distributed_optimizer_reads_its_own_checkpoint(tmp_path: Path) -> None:
    run_ranks(_make, 2, tmp_path / "saved", SHARDED, 2)
    run_ranks(_again, 2, [tmp_path / "saved"], tmp_path / "again", SHARDED)
    run_ranks(_make, 2, tmp_path / "straight", SHARDED, 3)
    again = tmp_path / "again" / "saved"
    written, read, straight, resumed = global_tensors(
        *(tmp_path / name / "step_00000001" for name in ("saved", "again/saved", "straight")), again / "step_00000002"
    )
    assert all(torch.equal(read[key], tensor) for key, tensor in written.items())
    # The third step is that of a run that was never interrupted: moments and their step count are back.
    assert all(torch.equal(resumed[key], tensor) for key, tensor in straight.items())


def _misfit(rank: int, path: Path) -> tuple[int, str]:
    _, engines = _engines({}, seed=1, groups=3)
    try:
        _load(path, engines)
    except CheckpointError as error:
        return error.exit_code, str(error)
    return 0, ""


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    ((code, message),) = run_ranks(_misfit, 1, saved / "1" / "step_00000001")
    assert (
        code == 4 and "cannot be loaded into this configuration" in message and "another model or algorithm" in message
    )


# ------------------------------------------------------------------------------------------------------------ damage
@pytest.fixture
def three(tmp_path: Path, saved: Path) -> Path:
    """A checkpoints folder with steps 1 to 3."""
    for step in (1, 2, 3):
        target = tmp_path / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(saved / "TP2" / "step_00000001", target)
    return tmp_path / "checkpoints"


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _flip(file: Path, position: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(bytes(data))


def test_an_undamaged_checkpoint_verifies(three: Path) -> None:
    assert checkpoint.latest(three) == (three / "step_00000003", [])
    state = checkpoint.load_state(three / "step_00000003")
    assert state["note"] == "kept" and state["step"] == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_damage_to_any_file_is_found_named_and_passed_over(three: Path, damage: str) -> None:
    newest = three / "step_00000003"
    names = [file.relative_to(newest) for file in _files(newest)]
    assert {"MANIFEST.json", "state.json", "shards/.metadata", "shards/common.pt", "shards/metadata.json"} <= set(
        map(str, names)
    )
    for name in names:
        file, copy = newest / name, (newest / name).read_bytes()
        if damage == "flip":
            _flip(file, len(copy) // 2, 0)
        elif damage == "truncate":
            file.write_bytes(copy[:-1])
        elif damage == "empty":
            file.write_bytes(b"")
        else:
            file.unlink()
        found, reasons = checkpoint.latest(three)
        assert found == three / "step_00000002", name
        assert len(reasons) == 1 and str(name) in reasons[0] and str(newest) in reasons[0], reasons
        file.write_bytes(copy)
    assert checkpoint.latest(three)[0] == newest


def test_no_bit_of_the_manifest_can_change_unnoticed(three: Path) -> None:
    """Each byte in turn. What still verifies must say the same: a blank that became another blank."""
    path = three / "step_00000003"
    manifest = path / "MANIFEST.json"
    original = manifest.read_bytes()
    for position in range(len(original)):
        _flip(manifest, position, position % 7)
        try:
            checkpoint.verify(path)
        except CheckpointError:
            pass
        else:
            assert json.loads(manifest.read_bytes()) == json.loads(original), original[position - 20 : position + 20]
        manifest.write_bytes(original)


@pytest.mark.parametrize("content", ["[]", '{"files": []}', '{"files": {}}', '{"files": {"state.json": 3}}', "{}"])
def test_a_manifest_of_another_shape_is_damage(three: Path, content: str) -> None:
    path = three / "step_00000003"
    (path / "MANIFEST.json").write_text(content)
    with pytest.raises(CheckpointError, match="step_00000003"):
        checkpoint.verify(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "shards/../../secret"])
def test_a_manifest_cannot_name_files_outside(three: Path, name: str) -> None:
    (three / "secret").write_text("x")
    path = three / "step_00000003"
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        checkpoint.verify(path)


def test_all_damaged_gives_every_reason(three: Path) -> None:
    for step, name in ((1, "state.json"), (2, "shards/.metadata"), (3, "MANIFEST.json")):
        _flip(three / f"step_{step:08d}" / name, 5, 1)
    found, reasons = checkpoint.latest(three)
    assert found is None and len(reasons) == 3
    for reason, name in zip(reasons, ("MANIFEST.json", "shards/.metadata", "state.json"), strict=True):
        assert name in reason


def test_unfinished_and_foreign_folders_are_not_checkpoints(three: Path) -> None:
    shutil.copytree(three / "step_00000003", three / ".tmp-00000009")
    for name in ("step_", "step_new", "steps", "step_00000010.old", "step_9", "step_\u00b2", "step_\u0663" * 8):
        (three / name).mkdir()
    assert checkpoint.steps(three) == [1, 2, 3]
    assert checkpoint.latest(three)[0] == three / "step_00000003"
    assert checkpoint.steps(three / "nowhere") == [] and checkpoint.latest(three / "nowhere") == (None, [])


def test_another_format_is_refused(three: Path) -> None:
    path = three / "step_00000003"
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        checkpoint.load_state(path)


# ------------------------------------------------------------------------------------------------------------ saving
def _keep(rank: int, folder: Path) -> Any:
    _, engines = _engines({"data": 2}, seed=1)

    def full(path: Path) -> None:
        (path / "policy").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    def say(path: Path) -> None:
        (path / "policy").mkdir()
        (path / "policy" / "config.json").write_text("{}")

    for step in (2, 4, 6):
        _save(folder, step, engines, keep=2, extras=say)
    errors = []
    for attempt in (full, None):
        if attempt is None and rank == 0:  # one of the replicas, each of which writes a part, cannot
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            _save(folder, 8, engines, keep=2, extras=attempt or say)
        except StorageError as error:
            errors.append((error.exit_code, str(error)))
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return errors


def test_older_ones_are_removed_and_a_failed_save_leaves_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for errors in run_ranks(_keep, 2, folder):
        assert [code for code, _ in errors] == [6, 6]
        assert "No space left on device" in errors[0][1] and "File too large" in errors[1][1]
        assert all("are free on its disk. Earlier checkpoints are kept" in message for _, message in errors)
    assert checkpoint.steps(folder) == [4, 6]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [], "a temporary folder is left"
    checkpoint.verify(folder / "step_00000006")
    assert "policy/config.json" in json.loads((folder / "step_00000006" / "MANIFEST.json").read_text())["files"]
