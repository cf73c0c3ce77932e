"""The steps of benchmarks/gpu/gpu_check.py: what runs, for how long at most, and what is read out of it."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "benchmarks" / "kernels"
OPS = ("token_statistics", "paged_attention", "token_objective", "group_objective", "shape_and_gae")
#: The built-in task for runs that name their models, and so have to name their data.
_TASK = ["data.prompts=builtin", "data.preferences=builtin", "data.prompt_length=8", "data.sequence_length=24"]
_TASK += ["rollout.batch_size=64", "rollout.max_new_tokens=10", "algorithm.mini_batch_size=32"]


class Failed(Exception):
    """A step ended without doing what it is for; the message says what is missing."""


@dataclass(frozen=True)
class Step:
    """commands: tried in order until one succeeds. limit: seconds. read: figures out of the output, or Failed."""

    name: str
    commands: list[list[str]]
    limit: float
    read: Callable[[str], dict[str, Any]] = lambda output: {}
    environment: dict[str, str] = field(default_factory=dict)


def steps(options: argparse.Namespace, gpu: dict[str, Any], work: Path) -> list[Step]:
    """Every step, in the order of what is lost if time runs out."""
    device, pytest = options.device, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pytest.append("--continue-on-collection-errors")
    doctor = [sys.executable, "scripts/doctor.py", "--json"] + ["--require-cuda-kernels"] * (device == "cuda")
    return [
        _build(device, gpu),
        Step("doctor", [doctor], 60, read_doctor),
        Step("cuda_tests", [[*pytest, "-m", "gpu", "tests/ops", "tests/generation", "tests/models"]], 120, read_pytest),
        _own(options, "execution", 60, work),
        *_small_cases(device),
        *_trainings(device, work / "runs"),
        _own(options, "decode", 120, work),
        _own(options, "offload", 100, work),
        _benchmark(options, work / "kernels.json"),
        _sampling(options, work / "sampling.json"),
        Step("cpp_tests", [[*pytest, "tests/csrc"]], 180, read_pytest),
    ]


def _build(device: str, gpu: dict[str, Any]) -> Step:
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    # Without isolation nothing is fetched; where the build tools are missing pip fetches them.
    commands = [[*pip, "--no-build-isolation", "--no-deps", "-e", "."], [*pip, "-e", "."]]
    cuda = {"GIPO_MC_CUDA": "1", "GIPO_MC_CUDA_ARCHITECTURES": gpu.get("capability", "")} if device == "cuda" else {}
    return Step("build", commands, 180, environment=cuda)


def _small_cases(device: str) -> list[Step]:
    """Small cases of every kernel, repeated, and once each under two tools of compute-sanitizer."""
    small = [sys.executable, str(KERNELS / "small_cases.py"), "--device", device, "--repeats"]
    sanitizer = [tool("compute-sanitizer") or "compute-sanitizer", "--target-processes", "all"]
    sanitizer += ["--error-exitcode", "9", "--tool"]
    memcheck = [*sanitizer, "memcheck", "--report-api-errors", "no", *small, "0"]
    # racecheck is slow, and the types share their code
    racecheck = [*sanitizer, "racecheck", *small, "0", "--dtypes", "bfloat16"]
    # Without the caching allocator every tensor is an allocation of its own, whose ends memcheck knows.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step("bitwise", [[*small, "100"]], 90, read_small),
        Step("memcheck", [memcheck], 120, lambda output: read_sanitizer(output, r"ERROR SUMMARY: 0 errors"), alone),
        Step("racecheck", [racecheck], 120, lambda output: read_sanitizer(output, r"RACECHECK SUMMARY: 0 hazards")),
    ]


def _trainings(device: str, runs: Path) -> list[Step]:
    """Short trainings, each from the one before; GI-PPO without arguments would train its parents at full length."""

    def train(name: str, iterations: int, *models: str) -> list[str]:
        words = [sys.executable, f"scripts/train_{name}.py", f"device={device}", "dtype=bfloat16", f"run.dir={runs}"]
        return [*words, f"run.name={name}", f"run.iterations={iterations}", *(_TASK if models else []), *models]

    policy, reward = f"model.policy={runs / 'sft'}", f"model.reward={runs / 'reward'}"
    return [
        Step("sft", [train("sft", 30)], 120, lambda _: read_metrics(runs / "sft")),
        Step("reward_model", [train("reward", 30, policy)], 120, lambda _: read_metrics(runs / "reward")),
        Step("gi_ppo", [train("gi_ppo", 3, policy, reward)], 150, lambda _: read_metrics(runs / "gi_ppo")),
        Step("resume", [train("gi_ppo", 5, policy, reward)], 120, lambda _: read_metrics(runs / "gi_ppo")),
    ]


def _own(options: argparse.Namespace, name: str, limit: float, work: Path) -> Step:
    """A program of this folder, which says itself what it measures."""
    figures = work / f"{name}.json"
    command = [sys.executable, f"benchmarks/gpu/{name}.py", "--device", options.device, "--out", str(figures)]
    command += ["--tiny"] if options.quick else []
    return Step(name, [command], limit, lambda _: {"record": json.loads(figures.read_text())})


def _benchmark(options: argparse.Namespace, figures: Path) -> Step:
    command = [sys.executable, str(KERNELS / "kernels.py"), "--device", options.device]
    command += ["--out", str(figures), "--budget", "150", "--ops", *OPS]
    if options.quick:
        command += ["--quick", "--rows", "64", "--columns", "500", "--sequences", "8", "32"]
    else:
        command += ["--picture", str(options.out / f"gpu_{options.device}.png")]
    return Step("benchmark", [command], 260, lambda _: {"record": json.loads(figures.read_text())})


def _sampling(options: argparse.Namespace, figures: Path) -> Step:
    """Op D: CUDA's repeats, its error against float64, and its time beside the copy bandwidth."""
    command = [sys.executable, str(KERNELS / "kernels.py"), "--device", options.device, "--ops", "sample"]
    command += ["--out", str(figures), "--budget", "40"]
    if options.quick:
        command += ["--quick", "--rows", "8", "--columns", "500"]
    return Step("sampling", [command], 90, lambda _: {"record": json.loads(figures.read_text())})


def names() -> list[str]:
    """Names of all steps, in order."""
    blank = argparse.Namespace(device="cuda", quick=False, out=Path())
    return [step.name for step in steps(blank, {}, Path())]


def read_doctor(output: str) -> dict[str, Any]:
    """What a run would use, and every finding that is not ok."""
    report = json.loads(output[output.index("{") :])
    return {"uses": report["uses"], "not_ok": [f for f in report["findings"] if f["state"] != "ok"]}


def read_pytest(output: str) -> dict[str, Any]:
    """Tests passed, skipped and so on; Failed where none passed."""
    found = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|skipped|failed|errors?)\b", output)}
    if not found.get("passed"):
        raise Failed("no test passed: all were skipped, or none was found")
    return found


def read_small(output: str) -> dict[str, Any]:
    """Cases, repeats and wrong ones of benchmarks/kernels/small_cases.py."""
    match = re.search(r"(\d+) cases on \w+, (\d+) repeats each, (\d+) wrong", output)
    if not match:
        raise Failed("benchmarks/kernels/small_cases.py did not come to its end")
    return dict(zip(("cases", "repeats", "wrong"), map(int, match.groups()), strict=True))


def read_sanitizer(output: str, clean: str) -> dict[str, Any]:
    """The same, where the sanitizer's summary matches `clean`; else Failed."""
    if not re.search(clean, output):
        raise Failed("the sanitizer's summary does not say that all is well")
    return read_small(output)


def read_metrics(run: Path) -> dict[str, Any]:
    """The last line of the run's metrics; every number in it must be finite."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    bad = [k for k, v in last.items() if isinstance(v, int | float) and not math.isfinite(v)]
    if bad:
        raise Failed(f"metrics that are not finite: {', '.join(bad)}")
    return {"lines": len(lines), "last": last}


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, on PATH or where the toolkit is."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(f"{home}/bin/{name}")
