"""Run folders written line by line, as a run leaves them while it goes on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def rows(first: int, last: int) -> list[dict[str, Any]]:
    """Metrics of the iterations from `first` to `last`."""
    return [
        {
            "step": step, "reward/mean": step / 100, "reward/domain/easy": step / 50, "reward/domain/hard": 0.1,
            "worst/domain_reward": 0.1, "kl/mean": step / 10, "group/0/mass": 0.7, "group/1/mass": 0.3,
            "group/0/reward": step / 60, "group/1/reward": 0.05, "time/rollout": 1.0, "time/update_policy": 2.0,
            "time/total": 3.5, "response/length": 9.0,
        }
        for step in range(first, last + 1)
    ]  # fmt: skip


def sample(step: int, hard: bool, number: int = 0) -> dict[str, Any]:
    """One line of samples.jsonl; hard prompts are about proofs, easy ones about capitals."""
    about = f"prove lemma {number} about rings" if hard else f"name the capital of country {number}"
    return {
        "step": step, "prompt": f"Human: {about}\n\nAssistant:", "response": f"answer {number}", "reward": 0.1 * number,
        "domain": "maths" if hard else "geography", "kl": 1.0, "length": 8,
        "group_probs": [0.1, 0.9] if hard else [0.9, 0.1],
    }  # fmt: skip


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def status(path: Path, state: str, step: int, pid: int | None = None, **more: Any) -> None:
    """run_status.json of a run on this machine, now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    said = {
        "state": state, "exit_code": None, "message": "", "step": step, "command": "train_gi_ppo",
        "pid": os.getpid() if pid is None else pid, "host": socket.gethostname(), "started": now, "updated": now,
    }  # fmt: skip
    (path / "run_status.json").write_text(json.dumps(said | more))


def run(path: Path, last: int = 40, state: str = "running") -> Path:
    """A whole folder: metrics, samples, a warning, the configuration."""
    path.mkdir(parents=True)
    append(path / "metrics.jsonl", rows(1, last))
    append(path / "samples.jsonl", [sample(last, number % 3 == 0, number) for number in range(24)])
    append(path / "warnings.jsonl", [{"step": last, "text": "The responses repeat themselves: look."}])
    (path / "config.yaml").write_text("run: {iterations: 80}\nalgorithm: {name: gi_ppo}\n")
    status(path, state, last, **({"exit_code": 0} if state == "done" else {}))
    return path
