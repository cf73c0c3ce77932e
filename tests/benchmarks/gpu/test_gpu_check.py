"""The collector of scripts/gpu_check.sh, on a machine without a GPU: its steps are replaced by small ones."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import gpu_check, gpu_steps
from benchmarks.gpu.gpu_steps import Step

ROOT = Path(__file__).resolve().parents[3]


def python(program: str) -> list[list[str]]:
    return [[sys.executable, "-c", program]]


def check(monkeypatch: pytest.MonkeyPatch, out: Path, steps: list[Step], *options: str) -> tuple[int, dict]:
    monkeypatch.setattr(gpu_check, "steps", lambda *_: steps)
    monkeypatch.setattr(gpu_check, "_machine", lambda: {"torch": torch.__version__})
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--out", str(out), *options])
    code = gpu_check.main()
    (path,) = out.glob("gpu_cpu_*.json")
    return code, json.loads(path.read_text())


def test_a_step_that_fails_stops_neither_the_others_nor_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        Step("build", [*python("raise SystemExit(3)"), *python("print('second try')")], 60),
        Step("broken", python("print('the reason'); raise SystemExit(4)"), 60),
        Step("absent", [["no-such-program-anywhere"]], 60),
        Step("slow", python("import time; time.sleep(60)"), 6),
        Step("silent", python("print('1 skipped')"), 60, gpu_steps.read_pytest),
        Step("good", python("print('3 passed, 1 skipped')"), 60, gpu_steps.read_pytest),
    ]
    code, result = check(monkeypatch, tmp_path, steps)
    assert code == 1
    done = result["steps"]
    assert {name: step["status"] for name, step in done.items()} == {
        "build": "passed",
        "broken": "failed",
        "absent": "failed",
        "slow": "failed",
        "silent": "failed",
        "good": "passed",
    }
    assert "second try" in done["build"]["output"]
    assert done["broken"]["reason"] == "exit code 4: the reason"
    assert "no-such-program-anywhere" in done["absent"]["reason"]
    assert done["slow"]["reason"].startswith("stopped after") and done["slow"]["seconds"] < 30
    assert "no test passed" in done["silent"]["reason"]
    assert done["good"]["figures"] == {"passed": 3, "skipped": 1}
    assert "not passed: broken, absent, slow, silent" in capsys.readouterr().out


def test_all_well_and_out_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = [Step("one", python(f"print({str(ROOT)!r} + '/csrc')"), 60), Step("two", python(""), 60)]
    code, result = check(monkeypatch, tmp_path / "a", steps)
    assert code == 0 and result["steps"]["one"]["output"] == "./csrc\n"  # paths of the machine are left out
    added = [Step("three", python(""), 60)]
    assert list(check(monkeypatch, tmp_path / "a", added)[1]["steps"]) == ["one", "two", "three"]
    monkeypatch.setattr(gpu_check.record, "fingerprint", lambda: "other sources")
    assert list(check(monkeypatch, tmp_path / "a", added)[1]["steps"]) == ["three"]
    code, result = check(monkeypatch, tmp_path / "b", steps, "--limit", "1")
    assert code == 1 and "no time was left" in result["steps"]["two"]["reason"]


def test_what_is_read_from_outputs(tmp_path: Path) -> None:
    last = "42 cases on cuda, 0 repeats each, 0 wrong"
    clean = f"{last}\n========= ERROR SUMMARY: 0 errors"
    assert gpu_steps.read_sanitizer(clean, "ERROR SUMMARY: 0 errors")["cases"] == 42
    with pytest.raises(gpu_steps.Failed, match="did not come to its end"):
        gpu_steps.read_sanitizer("========= ERROR SUMMARY: 0 errors", "ERROR SUMMARY: 0 errors")
    with pytest.raises(gpu_steps.Failed, match="does not say"):
        gpu_steps.read_sanitizer(f"{last}\n========= ERROR SUMMARY: 7 errors", "ERROR SUMMARY: 0 errors")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 0, "reward": 1.0}\n{"step": 1, "reward": 2.0}\n')
    assert gpu_steps.read_metrics(tmp_path) == {"lines": 2, "last": {"step": 1, "reward": 2.0}}
    metrics.write_text('{"step": 0, "reward": NaN}\n')
    with pytest.raises(gpu_steps.Failed, match="not finite: reward"):
        gpu_steps.read_metrics(tmp_path)


def test_the_steps_name_what_is_there(tmp_path: Path) -> None:
    options = argparse.Namespace(device="cuda", quick=False, out=tmp_path)
    steps = gpu_steps.steps(options, {"capability": "90"}, tmp_path)
    named = {word for step in steps for command in step.commands for word in command}
    files = {Path(w) for w in named if w.endswith(".py")} | {Path(w) for w in named if w.startswith("tests/")}
    assert len(files) >= 6 and all((ROOT / file).exists() for file in files)
    assert steps[0].environment["GIPO_MC_CUDA_ARCHITECTURES"] == "90"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    script = ROOT / "scripts" / "gpu_check.sh"
    done = subprocess.run([script], env={"PYTHON": sys.executable}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("There is no GPU") and not done.stdout
    assert subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout.count("\n") > 5
