"""Everything that wants a GPU, in one go: build, doctor, tests, bitwise repeats, benchmarks, GI-PPO, sanitizers.

Usually started by scripts/gpu_check.sh. Each step runs in a process of its own under a time limit; one that fails does
not stop the later ones. Everything is written, after every step, into ONE file, gpu_<name>_<date>.json in --out: date,
GPU, driver, versions, commit, and each step's status, seconds, figures and end of output.

Exit code: 0 where every step passed, 1 where one did not (the last line says which), 2 where there is no such device.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed

from benchmarks import record

ROOT = Path(__file__).resolve().parent.parent
TAIL = 3000  # characters of output that the file keeps of a step
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try this program out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result")
    parser.add_argument("--limit", type=float, default=530, help="seconds for everything together [530]")
    parser.add_argument("--quick", action="store_true", help="small shapes in the benchmark")
    parser.add_argument("--commit", default="", help="commit of the sources, where they are no git checkout")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only these: " + ", ".join(_names()))
    options = parser.parse_args()
    unknown = sorted(set(options.steps or ()) - set(_names()))
    if unknown:
        parser.error(f"--steps: there is no {', '.join(unknown)}")
    gpu = _gpu() if options.device == "cuda" else {"name": "cpu"}
    if gpu is None:
        print("There is no GPU that torch can use here, and everything this checks needs one.", file=sys.stderr)
        return 2
    return check(options, gpu)


def check(options: argparse.Namespace, gpu: dict[str, Any]) -> int:
    """Run the steps, and keep the file up to date."""
    begin, now = time.monotonic(), datetime.now(UTC)
    slug = re.sub(r"[^a-z0-9]+", "_", gpu["name"].lower()).strip("_")
    path = options.out / f"gpu_{slug}_{now:%Y-%m-%d}.json"
    result: dict[str, Any] = {
        "check": "gpu",
        "date": now.isoformat(timespec="seconds"),
        "device": options.device,
        "gpu": gpu,
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "nvcc": _output([_tool("nvcc") or "nvcc", "--version"]).splitlines()[-1:],
        "commit_given": options.commit or None,
        "machine": None,
        "steps": {},
    }
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as work:
        for step in steps(options, gpu, Path(work)):
            if options.steps and step.name not in options.steps:
                continue
            left = options.limit - (time.monotonic() - begin)
            print(f"{step.name} ...", end=" ", flush=True)
            done = _run(step, left, Path(work))
            result["steps"][step.name] = done
            if step.name == "build" or result["machine"] is None:
                result["machine"] = _machine()
            result["seconds"] = time.monotonic() - begin
            record.write(path, result)
            print(f"{done['status']}, {done['seconds']:.0f} s", flush=True)
            if done["status"] != "passed":
                print("    " + done["reason"])
    failed = [name for name, done in result["steps"].items() if done["status"] != "passed"]
    print(f"{path}: " + (f"not passed: {', '.join(failed)}" if failed else "every step passed"))
    return 1 if failed else 0


def steps(options: argparse.Namespace, gpu: dict[str, Any], work: Path) -> list[Step]:
    """Every step, in the order of what is lost if time runs out."""
    python, device = sys.executable, options.device
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    cuda = {"GIPO_MC_CUDA": "1", "GIPO_MC_CUDA_ARCHITECTURES": gpu.get("capability", "")} if device == "cuda" else {}
    kernels, small = str(ROOT / "benchmarks" / "kernels.py"), str(ROOT / "benchmarks" / "small_cases.py")
    figures, runs = work / "kernels.json", work / "runs"
    policy, reward = f"model.policy={runs / 'sft'}", f"model.reward={runs / 'reward'}"
    sanitizer = [_tool("compute-sanitizer") or "compute-sanitizer", "--target-processes", "all"]
    sanitizer += ["--error-exitcode", "9", "--tool"]
    small_once = [python, small, "--device", device, "--repeats", "0"]
    # Without the caching allocator every tensor is an allocation of its own, whose ends memcheck knows.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    one_type = ["--dtypes", "bfloat16"]  # racecheck is slow, and the types share their code

    def train(name: str, iterations: int, *rest: str) -> list[str]:
        words = [python, f"scripts/train_{name}.py", f"device={device}", "dtype=bfloat16", f"run.dir={runs}"]
        return [*words, f"run.name={name}", f"run.iterations={iterations}", *(_TASK if rest else []), *rest]

    return [
        # Without isolation nothing is fetched; where the build tools are missing pip fetches them.
        Step(
            "build", [[*pip, "--no-build-isolation", "--no-deps", "-e", "."], [*pip, "-e", "."]], 180, environment=cuda
        ),
        Step(
            "doctor",
            [[python, "scripts/doctor.py", "--json", *(["--require-cuda-kernels"] if device == "cuda" else [])]],
            60,
            _read_doctor,
        ),
        Step("cuda_tests", [[*pytest, "-m", "gpu", "tests/ops"]], 120, _read_pytest),
        Step("bitwise", [[python, small, "--device", device, "--repeats", "100"]], 90, _read_small),
        Step(
            "benchmark",
            [
                [python, kernels, "--device", device, "--out", str(figures), "--budget", "130"]
                + (["--quick", "--rows", "64", "--columns", "500", "--sequences", "8", "32"] if options.quick else [])
                + ["--picture", str(options.out / f"gpu_{device}.png")] * (not options.quick)
            ],
            220,
            lambda _: {"record": json.loads(figures.read_text())},
        ),
        # Short trainings, each from the one before; GI-PPO without arguments would train its parents at full length.
        Step("sft", [train("sft", 30)], 120, lambda _: _read_metrics(runs / "sft")),
        Step("reward_model", [train("reward", 30, policy)], 120, lambda _: _read_metrics(runs / "reward")),
        Step("gi_ppo", [train("gi_ppo", 3, policy, reward)], 150, lambda _: _read_metrics(runs / "gi_ppo")),
        Step(
            "memcheck",
            [[*sanitizer, "memcheck", "--report-api-errors", "no", *small_once]],
            120,
            lambda output: _read_sanitizer(output, r"ERROR SUMMARY: 0 errors"),
            alone,
        ),
        Step(
            "racecheck",
            [[*sanitizer, "racecheck", *small_once, *one_type]],
            120,
            lambda output: _read_sanitizer(output, r"RACECHECK SUMMARY: 0 hazards"),
        ),
        Step("cpp_tests", [[*pytest, "tests/csrc"]], 180, _read_pytest),
    ]


def _names() -> list[str]:
    blank = argparse.Namespace(device="cuda", quick=False, out=Path())
    return [step.name for step in steps(blank, {}, Path())]


def _run(step: Step, left: float, work: Path) -> dict[str, Any]:
    begin = time.monotonic()
    done: dict[str, Any] = {"status": "failed", "reason": "no time was left for it", "seconds": 0.0}
    for command in step.commands:
        limit = min(step.limit, left) - (time.monotonic() - begin)
        if limit < 5:
            break
        if shutil.which(command[0]) is None:
            done["reason"] = f"there is no {Path(command[0]).name} on PATH or in the CUDA toolkit"
            break
        code, output = _bounded(command, limit, step.environment)
        done |= {"command": _without_paths(" ".join(command), work), "exit_code": code}
        done["output"] = _without_paths(output, work)[-TAIL:]
        if code == 0:
            try:
                done |= {"status": "passed", "reason": "", "figures": step.read(output)}
            except (Failed, OSError, KeyError, ValueError) as error:
                done["reason"] = f"{type(error).__name__}: {error}"
            break
        last = (done["output"].strip().splitlines() or [""])[-1]
        done["reason"] = f"stopped after {limit:.0f} s" if code is None else f"exit code {code}: {last[:300]}"
    return done | {"seconds": time.monotonic() - begin}


def _bounded(command: list[str], limit: float, environment: dict[str, str]) -> tuple[int | None, str]:
    """(exit code, or None where the limit ended it; output). The whole process group ends with the limit."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = None
        output.seek(0)
        return code, output.read()


def _without_paths(text: str, work: Path) -> str:
    """Where the repository, the environment and the work folder are is nobody's business."""
    for path, name in ((str(work), "<work>"), (str(ROOT), "."), (sys.prefix, "<environment>")):
        text = text.replace(path, name)
    return text


def _read_doctor(output: str) -> dict[str, Any]:
    report = json.loads(output[output.index("{") :])
    return {"uses": report["uses"], "not_ok": [f for f in report["findings"] if f["state"] != "ok"]}


def _read_pytest(output: str) -> dict[str, Any]:
    found = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|skipped|failed|errors?)\b", output)}
    if not found.get("passed"):
        raise Failed("no test passed: all were skipped, or none was found")
    return found


def _read_small(output: str) -> dict[str, Any]:
    match = re.search(r"(\d+) cases on \w+, (\d+) repeats each, (\d+) wrong", output)
    if not match:
        raise Failed("benchmarks/small_cases.py did not come to its end")
    return dict(zip(("cases", "repeats", "wrong"), map(int, match.groups()), strict=True))


def _read_sanitizer(output: str, clean: str) -> dict[str, Any]:
    if not re.search(clean, output):
        raise Failed("the sanitizer's summary does not say that all is well")
    return _read_small(output)


def _read_metrics(run: Path) -> dict[str, Any]:
    """The last line of the run's metrics; every number in it must be finite."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    bad = [k for k, v in last.items() if isinstance(v, int | float) and not math.isfinite(v)]
    if bad:
        raise Failed(f"metrics that are not finite: {', '.join(bad)}")
    return {"lines": len(lines), "last": last}


def _gpu() -> dict[str, Any] | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    memory = round(found.total_memory / 2**30, 1)
    return {"name": found.name, "capability": f"{found.major}{found.minor}", "memory_gib": memory}


def _machine() -> dict[str, Any]:
    """describe_machine() in a process of its own: what it imports may have been built a moment ago."""
    program = "import json; from benchmarks.machine import describe_machine; print(json.dumps(describe_machine()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _tool(name: str) -> str | None:
    """A program of the CUDA toolkit, on PATH or where the toolkit is."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(f"{home}/bin/{name}")


def _output(command: list[str]) -> str:
    """What a command prints; empty where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
