"""This working tree beside that of an earlier version: the same iterations of GI-PPO on four ranks, TP2 x PP2.

Models are made and trained once with this tree and exported as Hugging Face folders, from which both sides start. Each
tree has kernels compiled from its own sources, and each measurement is a job of its own under torchrun, of which the
iterations after the first two count: seconds by the run's own metrics, processor time of all its ranks as metrics.jsonl
grows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rivals.protocol import ONE_THREAD, ROOT, tree_seconds
from benchmarks.rivals.table import OURS, summary

UNITS = ("demo", "hh")
RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4")
#: Iterations of a job; the first two are the warm-up.
ITERATIONS, WARM_UP = 10, 2
#: What every job is given beside its own options.
COMMON = (
    "parallel.tensor=2",
    "parallel.pipeline=2",
    "device=cpu",
    "eval.every=0",
    "eval.prompts=0",
    "checkpoint.every=0",
    f"run.iterations={ITERATIONS}",
    "run.resume=false",
)
#: The options of the demo's GI-PPO.
DEMO = (
    "data.prompts=builtin",
    "data.prompt_length=8",
    "rollout.batch_size=128",
    "rollout.max_new_tokens=10",
    "algorithm.mini_batch_size=64",
    "parallel.micro_batch_size=64",
    "policy.lr=1e-4",
    "critic.lr=1e-3",
)


def run(name: str, options: argparse.Namespace, folder: Path, record: dict[str, Any]) -> None:
    """Let both trees take turns, and put the case into the record."""
    trees = {OURS: ROOT, "old": options.against.resolve()}
    for side, tree in trees.items():
        check(tree)
        record["sides"].setdefault(side, {})["commit"] = _output("git", "-C", str(tree), "rev-parse", "HEAD").strip()
    models = folder / "builds" / name
    if not (models / "reward").exists():
        prepare(name, models, options.data)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in trees}
    for turn in range(options.repeat):
        for side in list(trees)[:: 1 if turn % 2 else -1]:
            runs[side].append(measure(name, trees[side], models, options.data))
            found = runs[side][-1]
            figures = (
                f"{found['processor']:.2f} s of the processor, {found['wall']:.2f} s, {found['tokens']:.0f} tokens"
            )
            print(f"round {turn + 1}: {name}, {side}: {figures} an iteration", file=sys.stderr, flush=True)
    record["cases"].append({"workload": name, "unit": name, "runs": runs, "summary": summary(runs)})


def check(tree: Path) -> None:
    """Raises SystemExit where the tree has no kernels of its own, or another gipo_mc would be measured."""
    if not list((tree / "gipo_mc").glob("_C*.so")):
        raise SystemExit(
            f"{tree} has no compiled kernels: run `GIPO_MC_CUDA=0 python setup.py build_ext --inplace` in it."
        )
    found = _output(sys.executable, "-c", "import gipo_mc; print(gipo_mc.__file__)", tree=tree).strip()
    if Path(found).resolve().parents[1] != tree.resolve():
        raise SystemExit(f"In {tree} Python imports {found}: start the benchmark without another copy on its path.")


def prepare(name: str, models: Path, data: Path | None) -> None:
    """Train the policy and the reward model that an iteration starts from, and export both."""
    runs = models / "runs"
    print(f"{name}: training what the iterations start from (minutes) ...", file=sys.stderr, flush=True)
    quiet = [f"run.dir={runs}", "device=cpu", "eval.every=0", "eval.prompts=0", "checkpoint.every=0"]
    if name == "demo":
        _script(ROOT, "train_sft.py", *quiet, "run.iterations=150", data=data)
        _script(ROOT, "train_reward.py", *quiet, "run.iterations=100", data=data)
        policy, reward = runs / "builtin_sft", runs / "builtin_reward"
    else:
        if data is None:
            raise SystemExit("hh trains on HH-RLHF: give the folder of its files, --data FOLDER.")
        files = [str(data / f"{domain}_base_train.jsonl.gz") for domain in ("harmless", "helpful")]
        tiny = str(models / "tiny")
        _script(ROOT, "new_model.py", "--out", tiny, "--vocab", "1024", "--hidden", "64", "--data", *files, data=data)
        sft = ["--config", str(ROOT / "configs/hh_tiny_sft.yaml"), f"model.policy={tiny}", *quiet]
        _script(ROOT, "train_sft.py", *sft, data=data)
        policy, reward = runs / "hh_sft", runs / "hh_reward"
        trained = ["--config", str(ROOT / "configs/hh_tiny_reward.yaml"), f"model.policy={policy}", *quiet]
        _script(ROOT, "train_reward.py", *trained, data=data)
    _script(ROOT, "convert_checkpoint.py", "--to-hf", str(policy), str(models / "policy"), data=data)
    _script(ROOT, "convert_checkpoint.py", "--to-hf", str(reward), str(models / "reward"), data=data)


def measure(name: str, tree: Path, models: Path, data: Path | None) -> dict[str, Any]:
    """One job: the medians of its iterations after the warm-up. Raises RuntimeError with the job's last lines."""
    runs = models / "measured"
    shutil.rmtree(runs, ignore_errors=True)
    settings = [f"model.policy={models / 'policy'}", f"model.reward={models / 'reward'}", f"run.dir={runs}", *COMMON]
    if name == "demo":
        settings += [*DEMO, "algorithm.name=gi_ppo", "run.name=measured"]
    else:
        settings = ["--config", str(ROOT / "configs/hh_tiny.yaml"), *settings, "run.name=measured"]
    command = [sys.executable, *RANKS, str(tree / "scripts" / "train_gi_ppo.py"), *settings]
    runs.mkdir(parents=True)
    with (runs / "log").open("w", encoding="utf-8") as log:
        job = subprocess.Popen(command, cwd=models, env=_environment(tree, data), stdout=log, stderr=log)
        marks = follow(job, runs / "measured" / "metrics.jsonl")
    if job.wait() or len(marks) < ITERATIONS:
        last = "\n".join((runs / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise RuntimeError(f"The job of {tree} ended with exit code {job.returncode}:\n{last}")
    rows = [json.loads(line) for line in (runs / "measured" / "metrics.jsonl").read_text().splitlines()]
    return of_job(rows[-ITERATIONS:], marks[-ITERATIONS:])


def follow(job: subprocess.Popen[bytes], metrics: Path) -> list[float]:
    """Processor seconds of the job so far at each new line of metrics.jsonl, until the job ends."""
    marks: list[float] = []
    while job.poll() is None:
        seconds = tree_seconds(job.pid)
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        marks += [seconds] * (lines - len(marks))
        time.sleep(0.02)
    return marks


def of_job(rows: Sequence[dict[str, float]], marks: Sequence[float]) -> dict[str, Any]:
    """Medians over the iterations after the warm-up. rows: the metrics of each; marks: processor seconds at its end."""
    rows, spent = rows[WARM_UP:], [b - a for a, b in zip(marks[WARM_UP - 1 :], marks[WARM_UP:])]
    phases = sorted({key for row in rows for key in row if key.startswith("time/")})
    found = {key.removeprefix("time/"): statistics.median(row.get(key, 0.0) for row in rows) for key in phases}
    tokens = statistics.median(row["time/total"] * row["throughput/tokens_per_second"] for row in rows)
    return {"wall": found["total"], "processor": statistics.median(spent), "tokens": tokens, "phases": found}


def _script(tree: Path, script: str, *arguments: str, data: Path | None) -> None:
    command = [sys.executable, str(tree / "scripts" / script), *arguments]
    done = subprocess.run(command, env=_environment(tree, data), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} ended with exit code {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")


def _output(*command: str, tree: Path = ROOT) -> str:
    return subprocess.run(
        command, env=_environment(tree, None), cwd=tree, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _environment(tree: Path, data: Path | None) -> dict[str, str]:
    given = {"PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore"} | ONE_THREAD
    return {**os.environ, **given, **({"HH_DATA": str(data.resolve())} if data else {})}
