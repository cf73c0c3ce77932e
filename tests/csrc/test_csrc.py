"""Builds and runs the C++ tests: the CPU kernels under sanitizers, the CUDA kernels on a device made of fibers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC, HERE = ROOT / "csrc", ROOT / "tests" / "csrc"
OPS = ("token_statistics", "group_objective", "shape_and_gae")
CPU_SOURCES = tuple(CSRC / f"{name}.cpp" for name in ("cpu", *OPS))
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)


def compiled(program: Path, flags: list[str], sources: list[str | Path]) -> Path:
    common = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", f"-I{HERE}", "-pthread"]
    result = command(COMPILER or "c++", *common, *flags, *sources, "-o", program)
    assert result.returncode == 0, result.stderr
    return program


def run(program: Path) -> str:
    result = command(program)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def sanitizers(names: str, folder: Path) -> list[str]:
    """Flags for these sanitizers; skips where the compiler or its libraries have none."""
    flags = [f"-fsanitize={names}", "-fno-sanitize-recover=all"]
    (folder / "empty.cpp").write_text("int main() {}\n")
    if command(COMPILER or "c++", *flags, folder / "empty.cpp", "-o", folder / "empty").returncode:
        pytest.skip(f"the compiler has no sanitizers {names}")
    return flags


def test_cpu_kernels_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    sanitize = ["-O0", "-g", *sanitizers("address,undefined", tmp_path)]
    sources: list[str | Path] = [HERE / "test_cpu_kernels.cpp", *CPU_SOURCES]
    assert run(compiled(tmp_path / "cpu", sanitize, sources)).count("cases") == 4


def test_cuda_kernels_on_fibers_agree_with_the_cpu_kernels(tmp_path: Path) -> None:
    optimise = ["-O1", *sanitizers("alignment", tmp_path)]  # a device refuses what a CPU forgives
    for op in OPS:
        device = [*optimise, f"-I{HERE / 'cuda_on_cpu'}", "-Wno-unknown-pragmas", "-x", "c++", "-c"]
        compiled(tmp_path / f"{op}.o", device, [CSRC / f"{op}.cu"])
    objects = [tmp_path / f"{op}.o" for op in OPS]
    sources: list[str | Path] = [HERE / "test_cuda_on_cpu.cpp", *CPU_SOURCES, *objects]
    assert run(compiled(tmp_path / "cuda", optimise, sources)).count("largest relative difference") == 3
