"""What differs between versions of Megatron-core: it is so in the installed one, and still divides the supported."""

from __future__ import annotations

import inspect
import logging
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.megatron import versions
from gipo_mc.parallel.megatron.versions import DIFFERENCES, INSTALLED, SUPPORTED, Difference, minor
from tests.models import tiny
from tests.ranks import run_ranks
from tests.source_rules import ROOT

#: The first release of each minor version there may be; 0.16 begins at 0.16.1.
RELEASES = [f"0.{number}.{1 if number == 16 else 0}" for number in range(10, 30)]


def _requirements(name: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [found for found in map(Requirement, project["dependencies"]) if found.name == name]


def needless(difference: Difference, supported: str) -> bool:
    """Do all supported versions have the difference, or none of them?"""
    minors = [minor(release) for release in RELEASES if release in SpecifierSet(supported)]
    return len({found >= minor(difference.since) for found in minors}) != 2


@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_difference_divides_the_supported_versions(name: str) -> None:
    """Where a version is dropped, what served it alone goes, too."""
    assert not needless(DIFFERENCES[name], SUPPORTED), (
        f"{name} (since megatron-core {DIFFERENCES[name].since}) is the same in all of {SUPPORTED}: nothing reaches a "
        f"part of {versions.__file__}"
    )


def test_a_dropped_version_is_noticed() -> None:
    left = {supported: [name for name in DIFFERENCES if needless(DIFFERENCES[name], supported)]
            for supported in (">=0.17,<0.20", ">=0.18,<0.20", ">=0.16.1,<0.19", ">=0.16.1,<0.17")}  # fmt: skip
    assert left == {
        ">=0.17,<0.20": [],
        ">=0.18,<0.20": ["MLP_BUILDER", "TRITON", "LAYOUT_NOTICE"],
        ">=0.16.1,<0.19": ["CURRENT_STREAM", "GPT_NOTICE", "TOOLKIT_NOTICE", "MIMO_NOTICE"],
        ">=0.16.1,<0.17": list(DIFFERENCES),
    }


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_installed_version_is_as_the_difference_says(name: str) -> None:
    difference = DIFFERENCES[name]
    found = difference.line in inspect.getsource(import_module(difference.module))
    assert found == difference.here, f"megatron-core {INSTALLED}: {difference.reason}"


def test_the_list_is_whole_and_the_project_file_says_the_same() -> None:
    own = {name: value for name, value in vars(versions).items() if isinstance(value, Difference)}
    assert own == DIFFERENCES and all(difference.reason.endswith(".") for difference in own.values())
    assert INSTALLED in SpecifierSet(SUPPORTED)
    of_python = {
        python: [r.specifier for r in _requirements("megatron-core") if _applies(r, python)]
        for python in ("3.11", "3.12")
    }
    assert of_python["3.12"] == [SpecifierSet(SUPPORTED)]
    # 0.17 and later do not install on Python 3.11.
    assert of_python["3.11"] == [SpecifierSet(">=0.16.1,<0.17")]
    (triton,) = [r for r in _requirements("triton") if _applies(r, "3.12")]
    assert not _applies(triton, "3.11") and "0.18" in versions.TRITON.since


def _applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(
        {"python_version": python, "platform_system": "Linux"}
    )


@pytest.mark.parametrize(
    ("writer", "read"),
    [(INSTALLED, True), ("0.16.1", True), ("0.16.0rc0", True), ("0.99.0", False), ("1.0", False), ("", False),
     ("newest", False), (None, False), (0.16, False)],
)  # fmt: skip
def test_what_an_earlier_version_wrote_is_read_and_a_later_one_not(writer: Any, read: bool) -> None:
    assert versions.reads(writer) is read


def test_a_layer_is_told_of_its_mlp_as_its_version_takes_it() -> None:
    told = versions.mlp(MLPSubmodules(linear_fc1=torch.nn.Linear, linear_fc2=torch.nn.Linear))
    assert isinstance(told, ModuleSpec) != versions.MLP_BUILDER.here


def _said(rank: int, folder: Path) -> list[str]:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logging.getLogger().addHandler(Keep(logging.WARNING))
    layout = runtime.initialize(ParallelConfig(timeout_minutes=1), "cpu")
    shape = read_shape(tiny.config(num_hidden_layers=2))
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=True, seed=1)
    folder.mkdir()
    sharded_files.write(model.sharded_state_dict(prefix="m."), folder)
    sharded_files.read(model.sharded_state_dict(prefix="m."), folder)
    Engine(model, layout, OptimizerConfig(), distributed_optimizer=True)
    for notice in (versions.GPT_NOTICE, versions.LAYOUT_NOTICE):
        logging.getLogger(notice.module).warning("something else")
    return said


def test_megatrons_notices_to_developers_are_not_the_users(tmp_path: Path) -> None:
    assert run_ranks(_said, 1, tmp_path / "shards") == [["something else"] * 2]
