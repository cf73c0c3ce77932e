"""What this machine has, what a run would use by default, and what to install for more.

Nothing is trained and no connection is opened. Nothing but the standard library is imported at the top, because saying
that the rest is missing or broken is what this is for. What torch and Megatron-core are is found in `libraries`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from gipo_mc.run.terminal.ending import REINSTALL
from gipo_mc.tools import libraries
from gipo_mc.tools.libraries import Libraries

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One fact. `problem`: a run would not start; `note`: it would, but there is something to know.

    advice: what to do about it, a sentence; empty where there is nothing to do.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    value: str
    advice: str = ""


def examine(found: Libraries, require_cuda_kernels: bool = False) -> list[Finding]:
    """Every finding, in the order in which a reader would look for the reason of a failure. found: of
    `gipo_mc.tools.libraries.look`."""
    parts: tuple[Iterator[Finding], ...] = (
        _python(),
        _requirements(),
        _torch(found),
        _megatron(found),
        _native(found, require_cuda_kernels),
        _backends(found),
        _machine(),
        _optional(found),
    )
    return [finding for part in parts for finding in part]


def defaults(found: Libraries) -> dict[str, str]:
    """What a run with device=auto and dtype=auto uses on one rank here; empty where a run could not start."""
    reference = os.environ.get("GIPO_MC_OPS") == "reference"
    if found.torch_error or found.megatron_error or not (reference or libraries.tried("gipo_mc._C")[0]):
        return {}
    cuda = bool(found.gpus)
    ranks = len(found.gpus) if cuda else len(_affinity())
    te = cuda and not found.engine
    return {
        "device": "cuda" if cuda else "cpu",
        "dtype": "bfloat16" if cuda else "float32",
        "collectives": "nccl (gloo for CPU tensors)" if cuda else "gloo",
        "kernels": "eager torch (GIPO_MC_OPS=reference)" if reference else "native",
        "layers": "TransformerEngine" if te else "Megatron-core with torch's scaled_dot_product_attention",
        "ranks": f"up to {ranks} here: torchrun --nproc-per-node {ranks} -m gipo_mc train gi-ppo",
    }


def exit_code(findings: list[Finding]) -> int:
    """0, or 2 where a run would not start: the contract's code for what is refused before the start."""
    return 2 if any(finding.state == "problem" for finding in findings) else 0


def as_json(findings: list[Finding], uses: dict[str, str], imported: bool) -> dict[str, Any]:
    """The report for programs."""
    return {
        "ready": exit_code(findings) == 0,
        "imported": imported,
        "uses": uses,
        "findings": [asdict(finding) for finding in findings],
    }


def show(findings: list[Finding], uses: dict[str, str], imported: bool) -> None:
    """Print the report: a table where rich is installed, else plain lines."""
    marks = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
    advice = [f for f in findings if f.advice]
    rich_console, missing = libraries.tried("rich.console")
    if missing:
        for finding in findings:
            print(f"{marks[finding.state]:8} {finding.name}: {finding.value}")
        for finding in advice:
            print(f"{finding.name}: {finding.advice}")
        return
    from rich.markup import escape
    from rich.table import Table

    console = rich_console.Console(highlight=False)
    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table(title="What this machine has", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = f"[{colours[finding.state]}]{marks[finding.state]}[/]"
        table.add_row(mark, escape(finding.name), escape(finding.value))
    console.print(table)
    if uses:
        table = Table(title="\nWhat a run uses by default", title_justify="left", box=None, show_header=False)
        for name, value in uses.items():
            table.add_row(escape(name), escape(value))
        console.print(table)
    if advice:
        console.print("\nWhat to do")
        for finding in advice:
            console.print(f"  [{colours[finding.state]}]{escape(finding.name)}[/]: {escape(finding.advice)}")
    ready = exit_code(findings) == 0
    by = "" if imported else ", as far as installed versions tell. To try the imports, too: gipo-mc doctor --imports"
    console.print(f"\n[green]Ready[/]{by or '.'}" if ready else "\n[bold red]Not ready: see PROBLEM above.[/]")


def _affinity() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _python() -> Iterator[Finding]:
    value = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        yield Finding("python", "ok", value)
    else:
        yield Finding("python", "problem", value, "make an environment with Python 3.11 or 3.12")


def _requirements() -> Iterator[Finding]:
    """The installed versions against the ranges of pyproject.toml, as the installed package records them."""
    try:
        required = metadata.requires("gipo-mc") or []
        from packaging.requirements import Requirement
    except (metadata.PackageNotFoundError, ImportError) as error:
        yield Finding("gipo-mc", "problem", f"not installed in this environment ({error})", REINSTALL)
        return
    yield Finding("gipo-mc", "ok", metadata.version("gipo-mc"))
    for requirement in map(Requirement, required):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "problem", f"missing, needs {requirement.specifier}", REINSTALL)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "ok", version)
        else:
            yield Finding(requirement.name, "problem", f"{version}, needs {requirement.specifier}", REINSTALL)


def _torch(found: Libraries) -> Iterator[Finding]:
    if found.torch_error:
        yield Finding("torch import", "problem", found.torch_error, REINSTALL)
        return
    built = f"CUDA {found.cuda}" if found.cuda else "CPU only"
    driver = libraries.driver()
    if found.gpus:
        yield Finding("torch build", "ok", built)
    elif driver and not found.cuda:
        advice = (
            "there is an NVIDIA driver here: install a torch built for CUDA (the comments of constraints.txt say how)"
        )
        yield Finding("torch build", "note", built, advice)
    elif driver:
        advice = "torch does not reach the driver: look at nvidia-smi, CUDA_VISIBLE_DEVICES and the driver's version"
        yield Finding("torch build", "note", f"{built}, but no GPU usable", advice)
    else:
        yield Finding("torch build", "ok", f"{built}, no NVIDIA driver")
    for index, gpu in enumerate(found.gpus):
        value = f"{gpu.name}, {gpu.memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        if gpu.major >= 8:
            yield Finding(f"GPU {index}", "ok", value)
        else:
            yield Finding(f"GPU {index}", "note", value, "no bfloat16 and no kernels for it: run with device=cpu")


def _megatron(found: Libraries) -> Iterator[Finding]:
    if found.megatron_error:
        yield Finding("megatron-core import", "problem", found.megatron_error, REINSTALL)


def _native(found: Libraries, require_cuda: bool) -> Iterator[Finding]:
    native, error = libraries.tried("gipo_mc._C")
    if error:
        advice = f"{REINSTALL}; it needs a C++17 compiler (apt install g++), neither torch nor nvcc"
        yield Finding("native kernels", "problem", error, advice)
        return
    info = native.build_info()
    parts = [f"CUDA {info['cuda_version']} for {info['cuda_architectures']}" if info["cuda"] else "no CUDA kernels"]
    parts += [f"{key} {value}" for key, value in info.items() if not key.startswith("cuda") and value not in ("", None)]
    value = f"CPU kernels, {', '.join(parts)}"
    install = "install the CUDA toolkit (nvcc, for example in /usr/local/cuda) and build again with GIPO_MC_CUDA=1: "
    if not info["cuda"] and (found.gpus or require_cuda):
        yield Finding("native kernels", "problem", value, install + REINSTALL)
        return
    built = [int(number) for number in re.findall(r"\d+", str(info["cuda_architectures"]))]
    for index, gpu in enumerate(found.gpus):
        # Machine code runs on devices of the same major version and the same or a higher minor one.
        if not any(number // 10 == gpu.major and number % 10 <= gpu.minor for number in built):
            kind = f"{gpu.major}{gpu.minor}"
            advice = f"build again with GIPO_MC_CUDA_ARCHITECTURES={kind}: {REINSTALL}"
            yield Finding("native kernels", "problem", f"{value}, none for GPU {index} (sm_{kind})", advice)
            return
    yield Finding("native kernels", "ok", value)


def unfit_for_gpus() -> Iterator[str]:
    """A sentence on each thing for which a run on GPUs of this installation would be refused; torch is not imported."""
    found = libraries.read()
    if not found.torch_error and not found.cuda:
        yield (
            "torch is a build for the CPU in this installation, which refuses to train on GPUs: `make venv "
            "TORCH_INDEX=` installs the one for CUDA."
        )
    native, error = libraries.tried("gipo_mc._C")
    if os.environ.get("GIPO_MC_OPS") != "reference" and not (native and native.build_info()["cuda"]):
        has = f"cannot load its kernels ({error})" if error else "has no CUDA kernels"
        yield (
            f"this installation {has}, and refuses to train on GPUs: build them with GIPO_MC_CUDA=1, behind `module "
            "load cuda` or its like. gipo-mc doctor --require-cuda-kernels ends with 0 once they are there."
        )


def _backends(found: Libraries) -> Iterator[Finding]:
    if found.torch_error:
        return
    state: Literal["ok", "problem"] = "ok" if "gloo" in found.backends else "problem"
    advice = "" if state == "ok" else "gloo is needed on every device: install an official torch build"
    yield Finding("collectives", state, ", ".join(found.backends) or "none", advice)


def _machine() -> Iterator[Finding]:
    yield Finding("cores", "ok", _cores())
    psutil, error = libraries.tried("psutil")
    if not error:
        memory = psutil.virtual_memory()
        limit = _cgroup("memory.max")
        total = min(memory.total, int(limit)) if limit.isdigit() else memory.total
        value = f"{total / GIB:.1f} GiB, {min(memory.available, total) / GIB:.1f} GiB free"
        small = total < 4 * GIB
        advice = "make demo and make test want about 4 GiB" if small else ""
        yield Finding("memory", "note" if small else "ok", value, advice)
    free = shutil.disk_usage(Path.cwd()).free
    small = free < 5 * GIB
    advice = "a checkpoint holds 16 bytes or so a parameter; run.dir may lie on another disk" if small else ""
    yield Finding("disk here", "note" if small else "ok", f"{free / GIB:.1f} GiB free in {Path.cwd()}", advice)
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < GIB // 4:
        advice = "NCCL and data loading use it: start the container with --shm-size=1g or more"
        yield Finding("/dev/shm", "note", f"{size / 2**20:.0f} MiB", advice)


def _cores() -> str:
    """Cores this process may use, and the container's limit of time on them where there is one."""
    cores = len(_affinity())
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and (limit := int(quota[0]) / int(quota[1])) < cores:
        return f"{cores}, limited to the time of {limit:.1f}"
    return str(cores)


def _cgroup(name: str) -> str:
    """A limit of the container (cgroup v2); empty where there is none."""
    path = Path("/sys/fs/cgroup") / name
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


def _optional(found: Libraries) -> Iterator[Finding]:
    """Optional libraries by name only: importing them may take long, and a run imports them only where it uses them.
    TransformerEngine was tried, where a run would use it."""
    yield _transformer_engine(found)
    for module, package in (("wandb", "wandb"), ("mlflow", "mlflow-skinny")):
        there = importlib.util.find_spec(module)
        missing = f"not installed (optional: pip install -e '.[{module}]')"
        yield Finding(module, "ok", _version(package) if there else missing)
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(name, "") not in ("", "0")]
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    if offline:
        advice = "unset it to use hub names that are not in the cache"
        yield Finding("Hugging Face hub", "note", f"{' and '.join(offline)} set; only the cache {cache}", advice)
    else:
        yield Finding("Hugging Face hub", "ok", f"asked only for hub names (not probed here); cache {cache}")


def _transformer_engine(found: Libraries) -> Finding:
    name, there = "transformer-engine", importlib.util.find_spec("transformer_engine") is not None
    if not found.gpus:
        return Finding(
            name, "ok", f"{_version(name)}, not used on CPU" if there else "not installed (optional, CUDA only)"
        )
    if not there:
        return Finding(name, "note", found.engine, "faster layers: pip install -e '.[te]'")
    if found.engine:
        advice = (
            "runs use Megatron-core's own layers; install one that fits this torch and CUDA: pip install -e '.[te]'"
        )
        return Finding(name, "note", f"{_version(name)}: {found.engine}", advice)
    return Finding(name, "ok", _version(name))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "installed, version unknown"
