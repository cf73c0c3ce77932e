"""What a figure was measured with: machine, versions, commit. Every benchmark prints it and writes it into its JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
#: Instruction sets that decide how fast a kernel can be, from the widest.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "fma", "asimd")


def describe_machine() -> dict[str, Any]:
    """cpu, cores, threads, instructions, load, gpu; versions; commit, dirty (None outside a checkout); date (UTC)."""
    from gipo_mc.ops import describe_build

    cpu, flags = _cpu()
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "megatron_core": _installed("megatron-core"),
        "kernels": describe_build(),
        "commit": commit,
        "dirty": None if changed is None else bool(changed),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def show_machine(machine: dict[str, Any]) -> str:
    """The same in three lines for people."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    state = {True: " with local changes", False: "", None: ""}[machine["dirty"]]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{' '.join(machine['instructions'])}{gpu}; load {machine['load']}\n"
        f"Python {machine['python']}, torch {machine['torch']}, Megatron-core {machine['megatron_core']}; "
        f"{machine['kernels']}\n"
        f"commit {machine['commit'] or 'unknown'}{state}, {machine['date']}"
    )


def _cpu() -> tuple[str, set[str]]:
    """(model name, flags) of the first core."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
    return fields.get("model name") or platform.machine(), set(
        (fields.get("flags") or fields.get("features", "")).split()
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of a git command in the repository, None where there is no git or no checkout."""
    try:
        found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
