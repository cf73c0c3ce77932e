"""torch, Megatron-core and TransformerEngine as they are on this machine: read from their installed files, which takes
milliseconds, or asked for by importing them, which takes seconds, in a process of its own: a library that does not fit
may end the process that imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import mmap
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

#: Seconds after which an import is taken to hang.
PATIENCE = 300.0
_CUDA = re.compile(r"^cuda\b[^=]*= *'([^']+)'", re.MULTILINE)
_PROGRAM = [sys.executable, "-m", "gipo_mc.tools.libraries"]
_MEGATRON = "megatron.core.parallel_state"
#: Backend -> a symbol, mangled as C++ compilers do, of a torch that was built with it.
_SIGNS = {"gloo": b"c10d16ProcessGroupGloo", "nccl": b"c10d16ProcessGroupNCCL"}


@dataclass(frozen=True)
class Gpu:
    """memory: bytes. major, minor: compute capability."""

    name: str
    memory: int
    major: int
    minor: int


@dataclass(frozen=True)
class Libraries:
    """imported: they were, and not only read. torch_error, megatron_error: why it cannot be used; "" where nothing
    speaks against it. cuda: the version torch is built for, "" for none. backends: of torch.distributed, nccl with its
    version. gpus: what torch sees. engine: why a run on CUDA does without TransformerEngine; "" where it does not."""

    imported: bool
    torch_error: str = ""
    cuda: str = ""
    backends: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    megatron_error: str = ""
    engine: str = ""


def look(imports: bool = False) -> Libraries:
    """What there is. They are imported where that is asked for, and where there is a GPU that torch may use: only the
    driver knows which."""
    found = read()
    return ask() if imports or (driver() and found.cuda and not found.torch_error) else found


def driver() -> bool:
    """Is there an NVIDIA driver?"""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").is_file()


def read() -> Libraries:
    """By the installed files alone."""
    megatron = _folder("megatron")
    there = megatron is not None and (megatron / "core" / "parallel_state.py").is_file()
    missing = "" if there else f"No module named '{_MEGATRON}'"
    torch = _folder("torch")
    if torch is None:
        return Libraries(False, "No module named 'torch'", megatron_error=missing)
    if not any((torch / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        version = ".".join(map(str, sys.version_info[:2]))
        return Libraries(False, f"{torch} has no library for Python {version}", megatron_error=missing)
    cuda = _CUDA.search((torch / "version.py").read_text(encoding="utf-8"))
    backends = tuple(name for name, sign in _SIGNS.items() if _holds(torch / "lib" / "libtorch_python.so", sign))
    return Libraries(False, "", cuda[1] if cuda else "", backends, megatron_error=missing)


def ask() -> Libraries:
    """By importing them in a process of its own."""
    try:
        done = subprocess.run(_PROGRAM, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Libraries(True, f"the import did not end within {PATIENCE:.0f} seconds")
    if done.returncode < 0:
        return Libraries(True, f"the import was ended by {signal.Signals(-done.returncode).name}")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return Libraries(**found | {"backends": tuple(found["backends"]), "gpus": _gpus(found["gpus"])})
    except (ValueError, IndexError, TypeError, KeyError):
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Libraries(True, f"the import failed: {said[0]}")


def _holds(library: Path, sign: bytes) -> bool:
    if not library.is_file():
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(sign) >= 0


def _folder(name: str) -> Path | None:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _gpus(found: Sequence[dict[str, Any]]) -> tuple[Gpu, ...]:
    return tuple(Gpu(**gpu) for gpu in found)


def tried(name: str) -> tuple[Any, str]:
    """(module, "") or (None, why not). Any failure counts: a broken library fails in ways of its own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Megatron warns of each accelerator library that is absent
            return importlib.import_module(name), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def imported() -> Libraries:
    """By importing them into this process."""
    torch, error = tried("torch")
    _, megatron_error = tried(_MEGATRON)
    if error:
        return Libraries(True, error, megatron_error=megatron_error)
    cuda = torch.cuda.is_available()
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count() if cuda else 0)]
    backends = []
    if torch.distributed.is_available():
        backends += ["gloo"] if torch.distributed.is_gloo_available() else []
        if torch.distributed.is_nccl_available():
            backends.append(f"nccl {'.'.join(map(str, torch.cuda.nccl.version()))}" if cuda else "nccl")
    engine = ""
    if cuda:
        engine_module, error = tried("gipo_mc.parallel.megatron.transformer_engine")
        engine = error or str(engine_module.problem())
    gpus = tuple(Gpu(gpu.name, gpu.total_memory, gpu.major, gpu.minor) for gpu in properties)
    return Libraries(True, "", torch.version.cuda or "", tuple(backends), gpus, megatron_error, engine)


if __name__ == "__main__":
    print(json.dumps(asdict(imported())))
