"""TransformerEngine's layers, for which a stand-in with its signatures computes on the CPU, in a process of its own;
what is said where it does not load; and FP8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gipo_mc.errors import ConfigError
from gipo_mc.models import execution
from gipo_mc.models.execution import Execution, check_machine
from gipo_mc.models.families import read_shape
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron import transformer_engine
from gipo_mc.tools import doctor
from gipo_mc.tools.libraries import Gpu, Libraries
from tests.models import tiny

ROOT = Path(__file__).resolve().parents[2]


def test_a_model_with_its_linears_trains_as_one_without_and_continues() -> None:
    """Its fused Adam knows no step of a parameter, which a checkpoint without distributed optimizer used to give it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "standins")])}
    command = [sys.executable, str(ROOT / "tests" / "models" / "transformer_engine_runs.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problem"] == "" and found["optimizer"].startswith("transformer_engine")
    assert found["fused"] == [True] * 4 and found["others"] is False, "Megatron's own linears would need Apex"
    assert found["attention"] == "CausalAttention"
    assert max(found["differences"]) < 1e-5, "of gradients, without and with overlap"
    assert found["continues"] == [True, True], "without and with the distributed optimizer"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TransformerEngine that is there and does not load."""
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file\\nmore')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    transformer_engine.problem.cache_clear()
    yield
    transformer_engine.problem.cache_clear()


@pytest.mark.usefixtures("broken")
def test_one_that_does_not_load_is_named_with_the_reason() -> None:
    reason = "it cannot be imported (OSError: libcudart.so.13: cannot open shared object file)"
    assert transformer_engine.problem() == reason
    assert reason in transformer_engine.warning(torch.device("cuda"))
    assert transformer_engine.warning(torch.device("cpu")) == ""
    finding = doctor._transformer_engine(Libraries(True, gpus=(Gpu("H100", 1, 9, 0),), engine=reason))
    assert finding.state == "note" and reason in finding.value and finding.advice


def test_one_that_is_not_installed_is_no_warning() -> None:
    assert transformer_engine.problem() == transformer_engine.NOT_INSTALLED
    assert transformer_engine.warning(torch.device("cuda")) == ""


def _layout(device: str, tensor: int = 1) -> Layout:
    return Layout(tensor, 0, tensor, 1, 1, 0, 0, 0, False, torch.device(device))


def test_fp8_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, fp8 = read_shape(tiny.config(hidden_size=64, intermediate_size=96, head_dim=16)), Execution(fp8=True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match="needs a GPU and bfloat16, and this model is bfloat16 on cpu"):
        check_machine(fp8, shape, _layout("cpu"), torch.bfloat16)
    with pytest.raises(ConfigError, match="float32 on cuda"):
        check_machine(fp8, shape, _layout("cuda"), torch.float32)
    with pytest.raises(ConfigError, match=r"capability 8\.9 or more .* NVIDIA A100 has 8\.0"):
        check_machine(fp8, shape, _layout("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ConfigError, match="needs TransformerEngine: not installed"):
        check_machine(fp8, shape, _layout("cuda"), torch.bfloat16)
    monkeypatch.setattr(execution, "transformer_engine", SimpleNamespace(problem=lambda: ""))
    check_machine(fp8, shape, _layout("cuda", 2), torch.bfloat16)
    with pytest.raises(ConfigError, match="intermediate_size / tensor=24"):
        check_machine(fp8, shape, _layout("cuda", 4), torch.bfloat16)
    check_machine(Execution(), shape, _layout("cpu"), torch.float32)


def test_fp8_pads_sequences_to_what_its_kernels_take() -> None:
    assert Execution(fp8=True).length_multiple(_layout("cuda")) == 16
    assert Execution().length_multiple(_layout("cuda")) == 1
    assert Execution(fp8=True).megatron == {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
