"""Checkpoints from version to version of Megatron-core: forward exactly, backward refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.megatron.versions import INSTALLED, minor
from gipo_mc.run import checkpoint, manifest
from tests.run.test_resume import _assert_equal
from tests.run.versions.other_python import train, train_with

EARLIER = os.environ.get("GIPO_MC_EARLIER_PYTHON", "")


@pytest.mark.skipif(not EARLIER, reason="needs an environment with an earlier Megatron-core: make test-matrix has one")
@pytest.mark.parametrize("layout", ["1", "DP2"])
def test_a_run_continues_exactly_on_a_later_version_and_not_on_an_earlier(tmp_path: Path, layout: str) -> None:
    """The run of GI-PPO that the earlier version makes alone is also what both make together. DP2: with the distributed
    optimizer."""
    earlier, ended = train_with(EARLIER, tmp_path, layout, "straight")
    assert ended == "done" and minor(earlier) < minor(INSTALLED), f"{EARLIER} has megatron-core {earlier}"
    assert train_with(EARLIER, tmp_path, layout, "broken", 3)[1] == "interrupted"
    assert checkpoint.steps(tmp_path / "broken" / "checkpoints") == [2]
    assert train(tmp_path, layout, "broken") == "done"
    _assert_equal(tmp_path / "broken", tmp_path / "straight", 4)
    by = [checkpoint.load_state(tmp_path / "broken" / f"checkpoints/step_0000000{step}") for step in (2, 4)]
    assert [state[manifest.WRITER] for state in by] == [earlier, INSTALLED]
    _, ended = train_with(EARLIER, tmp_path, layout, "broken")
    assert ended.startswith("4: ") and f"was written with megatron-core {INSTALLED}, and {earlier} is" in ended


def _make(path: Path, step: int, of_state: dict[str, Any], of_manifest: dict[str, Any]) -> Path:
    """A checkpoint of nothing but state.json, with what else the two files say."""
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"format": 1, "step": step, **of_state}))
    data = (path / "state.json").read_bytes()
    files = {"state.json": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    (path / "MANIFEST.json").write_text(json.dumps({"format": 1, "step": step, "files": files, **of_manifest}))
    return path


def test_a_checkpoint_of_a_later_version_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    """An older one would be continued in its place, and the newer one would be gone."""
    for step, writer in enumerate(({}, {"megatron-core": "0.16.1"}, {"megatron-core": INSTALLED})):
        path = _make(tmp_path / f"step_{step:08d}", step, writer, writer)
        assert checkpoint.latest(tmp_path) == (path, []) and checkpoint.load_state(path)["step"] == step
    later = {"megatron-core": "0.99.1"}
    path = _make(tmp_path / "step_00000003", 3, later, later)
    assert checkpoint.latest(tmp_path) == (path, [])
    with pytest.raises(
        CheckpointError, match=rf"step_00000003 was written with megatron-core 0\.99\.1, and {INSTALLED} is"
    ):
        checkpoint.load_state(path)


@pytest.mark.parametrize(("of_state", "of_manifest"), [("0.16.1", "0.19.2"), (None, "0.16.1"), ("0.16.1", None)])
def test_the_writers_version_is_under_a_sum(tmp_path: Path, of_state: str | None, of_manifest: str | None) -> None:
    said = [{"megatron-core": version} if version else {} for version in (of_state, of_manifest)]
    path = _make(tmp_path / "step_00000001", 1, *said)
    with pytest.raises(CheckpointError, match=r"does not agree with state\.json"):
        checkpoint.verify(path)
