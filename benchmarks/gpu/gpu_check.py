"""Everything that wants a GPU, in one go: build, doctor, tests, bitwise repeats, benchmarks, GI-PPO, sanitizers.

Usually started by scripts/gpu_check.sh. Each step runs in a process of its own under a time limit; one that fails does
not stop the later ones. Everything is written, after every step, into ONE file, gpu_<name>_<date>.json in --out: date,
GPU, driver, versions, commit, and each step's status, seconds, figures and end of output. Started again on the same day
for other steps of the same sources, it adds to that file.

Exit code: 0 where every step passed, 1 where one did not (the last line says which), 2 where there is no such device.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

from benchmarks.common import record
from benchmarks.gpu.gpu_steps import ROOT, Failed, Step, names, steps, tool

TAIL = 3000  # characters of output that the file keeps of a step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try this program out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result")
    parser.add_argument("--limit", type=float, default=530, help="seconds for everything together [530]")
    parser.add_argument("--quick", action="store_true", help="small shapes in the benchmark")
    parser.add_argument("--commit", default="", help="commit of the sources, where they are no git checkout")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only these: " + ", ".join(names()))
    options = parser.parse_args()
    unknown = sorted(set(options.steps or ()) - set(names()))
    if unknown:
        parser.error(f"--steps: there is no {', '.join(unknown)}")
    gpu = _gpu() if options.device == "cuda" else {"name": "cpu"}
    if gpu is None:
        print("There is no GPU that torch can use here, and everything this checks needs one.", file=sys.stderr)
        return 2
    options.out = options.out.resolve()
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
        "nvcc": _output([tool("nvcc") or "nvcc", "--version"]).splitlines()[-1:],
        "commit_given": options.commit or None,
        "sources": record.fingerprint(),
        "machine": None,
        "steps": {},
    }
    if path.exists() and (earlier := json.loads(path.read_text()))["sources"] == result["sources"]:
        result["steps"] = earlier["steps"]  # steps of the same sources on the same day belong together
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
        problem = ""
        try:  # also where the step failed: what it found until then is worth having
            done["figures"] = step.read(output)
        except (Failed, OSError, KeyError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        if code == 0:
            done |= {"status": "failed" if problem else "passed", "reason": problem}
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
    program = (
        "import json; from benchmarks.common.machine import describe_machine; print(json.dumps(describe_machine()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _output(command: list[str]) -> str:
    """What a command prints; empty where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
