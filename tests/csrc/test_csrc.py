"""Builds and runs the C++ tests: the CPU kernels under sanitizers, the CUDA kernels on a device made of fibers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC, HERE = ROOT / "csrc", ROOT / "tests" / "csrc"
OPS = ("token_statistics", "group_objective", "shape_and_gae", "token_objective")
CPU_SOURCES = tuple(CSRC / f"{name}.cpp" for name in ("cpu", "parallel", *OPS))
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


#: Flags for a register width, and the features that a machine needs to run what they give. The last makes the compiler
#: lower 64-byte registers to what every machine has: the shape of the AVX-512 code, on machines without it.
WIDTHS = {
    "16 bytes": ([], ()),
    "32 bytes": (["-mavx2", "-mfma", "-mf16c"], ("avx2", "fma", "f16c")),
    "64 bytes": (["-DGIPO_VECTOR_BYTES=64", "-Wno-psabi"], ()),
}


def flags_of(width: str) -> list[str]:
    flags, features = WIDTHS[width]
    cpuinfo = Path("/proc/cpuinfo")
    if features and (not cpuinfo.exists() or not set(features) <= set(cpuinfo.read_text().split())):
        pytest.skip(f"this machine has not all of {', '.join(features)}")
    return ["-ffp-contract=off", *flags]


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_and_lanes_under_sanitizers(tmp_path: Path, width: str) -> None:
    flags = ["-O1", *sanitizers("address,undefined", tmp_path), *flags_of(width)]
    assert run(compiled(tmp_path / "numbers", flags, [HERE / "test_numbers.cpp"])) == f"{width} a register\n"


@pytest.mark.parametrize("width", ["16 bytes", "32 bytes"])
def test_cpu_kernels_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path, width: str) -> None:
    flags = ["-O0", "-g", *sanitizers("address,undefined", tmp_path), *flags_of(width)]
    sources: list[str | Path] = [HERE / "test_cpu_kernels.cpp", *CPU_SOURCES]
    assert run(compiled(tmp_path / "cpu", flags, sources)).count("cases") == 4


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other architectures have one set")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("isa", [("avx2", "-mavx2", "-mfma", "-mf16c"), ("avx512", "-mavx512f", "-mavx512bw")])
def test_code_of_an_instruction_set_stays_by_itself(tmp_path: Path, isa: tuple[str, ...]) -> None:
    """A function that the linker may share between object files would hold instructions that other machines lack."""
    name, *flags = isa
    for op in ("token_statistics", "group_objective", "shape_and_gae"):
        options = ["-O1", "-w", "-c", f"-DGIPO_ISA={name}", *flags]
        symbols = command("nm", "-C", "--defined-only", compiled(tmp_path / f"{op}.o", options, [CSRC / f"{op}.cpp"]))
        defined = [line.split(maxsplit=2)[1:] for line in symbols.stdout.splitlines()]
        assert not [symbol for kind, symbol in defined if kind in "WVu"]
        assert {kind for kind, symbol in defined if f"gipo::{name}::" in symbol} & set("RDrd"), "the table of kernels"


def test_cuda_kernels_on_fibers_agree_with_the_cpu_kernels(tmp_path: Path) -> None:
    optimise = ["-O1", *sanitizers("alignment", tmp_path)]  # a device refuses what a CPU forgives
    for op in OPS:
        device = [*optimise, f"-I{HERE / 'cuda_on_cpu'}", "-Wno-unknown-pragmas", "-x", "c++", "-c"]
        compiled(tmp_path / f"{op}.o", device, [CSRC / f"{op}.cu"])
    objects = [tmp_path / f"{op}.o" for op in OPS]
    sources: list[str | Path] = [HERE / "test_cuda_on_cpu.cpp", *CPU_SOURCES, *objects]
    assert run(compiled(tmp_path / "cuda", optimise, sources)).count("largest relative difference") == 3
