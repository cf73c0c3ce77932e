"""Jobs of several hosts (`tests.nodes.hosts`): the documented torchrun line on each, with a tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.nodes.hosts import Hosts
from tests.source_rules import ROOT

#: As docs/clusters.md has it; HOST and PORT are where the hosts meet.
MEET = ("--rdzv-backend=c10d", "--rdzv-id=1", "--rdzv-endpoint=node1:29500")
RL = [
    "device=cpu", "data.prompts=[builtin]", "data.evaluation=[builtin:easy]", "data.prompt_length=8",
    "data.max_rows=64", "rollout.batch_size=18", "rollout.max_new_tokens=8",
    "algorithm.mini_batch_size=6", "algorithm.epochs=2",
    "eval.prompts=4", "run.name=run",
]  # fmt: skip


class Job:
    """One torchrun on each host. logs: what each printed."""

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        options: Sequence[str],
        *,
        on: Sequence[int] | None = None,
        meet: Sequence[str] = MEET,
        ranks: int = 1,
        own: Mapping[int, Sequence[str]] | None = None,
        script: str = "train_gi_ppo.py",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """folder: of the logs, outside. on: numbers of the hosts that take part (all). own: number -> options that this
        host alone is given."""
        numbers = range(len(hosts)) if on is None else on
        words = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(numbers)}", f"--nproc-per-node={ranks}"]
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}

        def at(number: int, place: int) -> list[str]:
            return [word.replace("RANK", str(place)).replace("ADDRESS", hosts[number].address) for word in meet]

        self.logs = {number: folder / f"log-{number}" for number in numbers}
        for log in self.logs.values():
            log.unlink(missing_ok=True)
        self.processes: dict[int, subprocess.Popen[bytes]] = {
            number: hosts[number].start(
                [*words, *at(number, place), str(ROOT / "scripts" / script)]
                + [*options, *(own or {}).get(number, ())],
                self.logs[number], variables, ROOT,
            )
            for place, number in enumerate(numbers)
        }  # fmt: skip

    def wait(self, seconds: float, on: Sequence[int] | None = None) -> dict[int, float]:
        """Wait until the torchrun of each host (of `on`) has ended; host -> seconds from now; a host that did not is
        missing."""
        began, ended = time.monotonic(), dict[int, float]()
        wanted = self.processes if on is None else on
        while len(ended) < len(wanted) and time.monotonic() < began + seconds:
            for number in wanted:
                if number not in ended and self.processes[number].poll() is not None:
                    ended[number] = time.monotonic() - began
            time.sleep(0.05)
        return ended

    def wait_for(self, seen: Callable[[], Any], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            ended = [number for number, process in self.processes.items() if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, f"hosts {ended} ended: {self.said()}"
            time.sleep(0.05)

    def said(self) -> str:
        return "\n".join(f"--- host {number}\n{log.read_text()}" for number, log in self.logs.items())


def status(run: Path) -> dict[str, Any]:
    """run_status.json, {} where there is none yet."""
    path = run / "run_status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def sentence(log: Path) -> str:
    """The error or the last words of a command in what torchrun and it printed, without times and addresses in them."""
    parts = re.findall(
        r"^(?:error: |warning: The name|Asked to)(?:.*\n)(?:  - .*\n|Give every.*\n)*", log.read_text(), re.M
    )
    return parts[-1].strip() if parts else ""
