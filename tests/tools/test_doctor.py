"""The doctor calls a machine ready only when it is, and says what to do when it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gipo_mc.tools import doctor, libraries
from gipo_mc.tools.libraries import Gpu, Libraries
from tests.scripts import run_script
from tests.source_rules import ROOT


def _named(findings: list[doctor.Finding], name: str) -> doctor.Finding:
    return next(finding for finding in findings if finding.name == name)


def _fake_native(monkeypatch: pytest.MonkeyPatch, info: dict[str, object]) -> None:
    monkeypatch.setattr(libraries, "tried", lambda name: (SimpleNamespace(build_info=lambda: info), ""))


def _with_gpu(major: int, minor: int) -> Libraries:
    return Libraries(True, cuda="13.0", backends=("gloo", "nccl"), gpus=(Gpu("H", 2**30, major, minor),))


def test_what_is_read_is_what_torch_says() -> None:
    found = libraries.read()
    assert not found.imported and not found.torch_error and not found.megatron_error
    assert found.cuda == (torch.version.cuda or "")
    assert ("gloo" in found.backends, "nccl" in found.backends) == (
        torch.distributed.is_gloo_available(),
        torch.distributed.is_nccl_available(),
    )


def test_what_is_imported_says_the_same() -> None:
    """In this process, whose imports are done; `ask` does it in one of its own."""
    found = libraries.imported()
    assert found.imported and found.backends == libraries.read().backends and not found.megatron_error


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("raise ImportError('libcudart.so.13')", "ImportError: libcudart.so.13"),
        ("print('hello')", "the import failed"),
    ],
)
def test_an_import_that_ends_its_process_is_told(monkeypatch: pytest.MonkeyPatch, program: str, said: str) -> None:
    monkeypatch.setattr(libraries, "_PROGRAM", [sys.executable, "-ISc", program])
    found = libraries.ask()
    assert found.imported and said in found.torch_error
    assert _named(list(doctor._torch(found)), "torch import").state == "problem"
    assert doctor.defaults(found) == {}


def test_torch_of_another_python_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libraries, "_folder", lambda name: tmp_path if name == "torch" else None)
    found = libraries.look()
    assert "has no library for Python" in found.torch_error and found.megatron_error
    assert doctor.exit_code([*doctor._torch(found), *doctor._megatron(found)]) == 2


def test_this_environment_is_ready():
    found = libraries.look()
    findings = doctor.examine(found)
    problems = [finding for finding in findings if finding.state == "problem"]
    assert not problems
    assert doctor.exit_code(findings) == 0
    assert _named(findings, "torch").value == metadata.version("torch")
    assert {"device", "dtype", "kernels", "ranks"} <= doctor.defaults(found).keys()


def test_missing_and_old_packages_are_problems(monkeypatch: pytest.MonkeyPatch):
    required = ["no-such-package>=1", "rich>=9999", "wandb>=1; extra == 'wandb'", "numpy>=1"]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    findings = list(doctor._requirements())
    assert _named(findings, "no-such-package").state == "problem"
    assert "needs >=9999" in _named(findings, "rich").value
    assert _named(findings, "numpy").state == "ok"
    assert "wandb" not in {finding.name for finding in findings}
    assert doctor.exit_code(findings) == 2
    assert all(finding.advice for finding in findings if finding.state == "problem")


def test_an_extension_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gipo_mc._C", None)  # how Python records a module that may not be imported
    (finding,) = doctor._native(Libraries(False), False)
    assert finding.state == "problem"
    assert "pip install" in finding.advice
    assert doctor.defaults(libraries.look()) == {}, "nothing is used where a run would not start"
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    assert doctor.defaults(libraries.look())["kernels"] == "eager torch (GIPO_MC_OPS=reference)"


def test_cuda_kernels_are_required_only_where_they_would_be_used(monkeypatch: pytest.MonkeyPatch):
    _fake_native(monkeypatch, {"cuda": False, "cuda_version": "", "cuda_architectures": "", "compiler": "13.2"})
    assert [f.state for f in doctor._native(Libraries(False), False)] == ["ok"]
    assert [f.state for f in doctor._native(Libraries(False), True)] == ["problem"]
    assert [f.state for f in doctor._native(_with_gpu(9, 0), False)] == ["problem"]


@pytest.mark.parametrize(
    ("capability", "state"), [((8, 0), "ok"), ((8, 6), "ok"), ((9, 0), "ok"), ((7, 5), "problem"), ((10, 0), "problem")]
)
def test_kernels_must_fit_the_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], state: str):
    _fake_native(monkeypatch, {"cuda": True, "cuda_version": "13.0", "cuda_architectures": "80;90"})
    assert [f.state for f in doctor._native(_with_gpu(*capability), False)] == [state]


def test_the_report_is_readable_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    findings = [doctor.Finding("torch", "problem", "missing [x]", "install it"), doctor.Finding("cores", "ok", "2")]
    doctor.show(findings, {"device": "cpu"}, True)
    with_rich = capsys.readouterr().out
    monkeypatch.setattr(libraries, "tried", lambda name: (None, "ImportError"))
    doctor.show(findings, {}, True)
    plain = capsys.readouterr().out
    for text in (with_rich, plain):
        assert "PROBLEM" in text and "missing [x]" in text and "install it" in text


def test_the_last_line_says_how_much_was_tried(capsys: pytest.CaptureFixture[str]):
    findings = [doctor.Finding("cores", "ok", "2")]
    for imported, said in (
        (True, "Ready."),
        (False, "Ready, as far as installed versions tell. To try the"),
    ):
        doctor.show(findings, {}, imported)
        assert said in " ".join(capsys.readouterr().out.split())


def test_the_command_prints_json_and_says_when_nothing_is_installed(tmp_path):
    script = ROOT / "scripts" / "doctor.py"
    run = run_script(script, "--json", cwd=ROOT)
    report = json.loads(run.stdout)
    assert report["ready"] == (run.returncode == 0)
    assert {"name", "state", "value", "advice"} == set(report["findings"][0])
    # -I and -S: no site-packages, so no gipo_mc.
    bare = subprocess.run(
        [sys.executable, "-I", "-S", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ,
    )
    assert bare.returncode == 2
    assert "is not installed" in bare.stderr
