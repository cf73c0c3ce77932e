"""Builds and runs the C++ tests: the CPU kernels under sanitizers, the CUDA kernels on a device made of fibers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC, HERE = ROOT / "csrc", ROOT / "tests" / "csrc"
#: Compiled for every instruction set (CMakeLists.txt), and the rest of the CPU side.
OPS = ("token_statistics", "group_objective", "shape_and_gae", "rotate_and_append", "paged_attention", "sampling")
ROWS = (*OPS, "causal_attention", "layer_rows")
CUDA_OPS = (*OPS, "token_objective")
ROW_SOURCES = tuple(CSRC / f"{name}.cpp" for name in ROWS)
COMMON_SOURCES = tuple(CSRC / f"{name}.cpp" for name in ("cpu", "layers", "paged_cache", "parallel", "token_objective"))
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)


def compiled(program: Path, flags: list[str], sources: Iterable[str | Path]) -> Path:
    common = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", f"-I{HERE}", "-pthread"]
    result = command(COMPILER or "c++", *common, *flags, *sources, "-ldl", "-o", program)
    assert result.returncode == 0, result.stderr
    return program


def objects(folder: Path, flags: list[str], sources: Iterable[Path]) -> list[Path]:
    """An object file for each source, compiled on all cores at a time."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> Path:
        return compiled(folder / f"{source.name}.o", [*flags, "-c"], [source])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, sources))


def run(program: Path, *arguments: str) -> str:
    result = command(program, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def sanitizers(names: str, folder: Path) -> list[str]:
    """Flags for these sanitizers; skips where the compiler or its libraries have none.

    Functions that kernels want inlined at any price stay functions here: a sanitizer checks the same accesses, and the
    code that it adds to each would make compilation take twenty times as long. (The compiler's own headers spell the
    attribute with underscores.)
    """
    flags = [f"-fsanitize={names}", "-fno-sanitize-recover=all", "-Dalways_inline="]
    (folder / "empty.cpp").write_text("int main() {}\n")
    if command(COMPILER or "c++", *flags, folder / "empty.cpp", "-o", folder / "empty").returncode:
        pytest.skip(f"the compiler has no sanitizers {names}")
    return flags


AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq"))]
WIDTHS = ("16 bytes", "32 bytes", "64 bytes")


def has(*features: str) -> bool:
    """Whether this machine runs code for all of these instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and set(features) <= set(cpuinfo.read_text().split())


def flags_of(width: str) -> list[str]:
    """Flags for a width of registers. Without AVX-512 the compiler lowers 64 bytes to what every machine has: the code
    has the same shape."""
    flags = ["-ffp-contract=off"]
    if width == "32 bytes":
        if not has("avx2", "fma", "f16c"):
            pytest.skip("this machine has not all of avx2, fma, f16c")
        flags += AVX2
    elif width == "64 bytes" and has("avx512f", "avx512bw", "avx512vl", "avx512dq", "f16c"):
        # The compiler's own headers look uninitialised to it.
        flags += [*AVX512, "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    elif width == "64 bytes":
        flags += ["-DGIPO_VECTOR_BYTES=64", "-Wno-psabi"]
    return flags


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_and_lanes_under_sanitizers(tmp_path: Path, width: str) -> None:
    flags = ["-O1", *sanitizers("address,undefined", tmp_path), *flags_of(width)]
    said = run(compiled(tmp_path / "numbers", flags, [HERE / "test_numbers.cpp"]))
    assert said == f"{width} a register\n"


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[Path]]:
    """Flags of the sanitizers, and objects under them of what knows no register width: compiled once for all."""
    folder = tmp_path_factory.mktemp("checked")
    flags = ["-O0", "-g", *sanitizers("address,undefined", folder)]
    return flags, objects(folder, [*flags, *flags_of("16 bytes")], [HERE / "test_cpu_kernels.cpp", *COMMON_SOURCES])


@pytest.mark.parametrize("width", WIDTHS)
def test_cpu_kernels_under_address_and_undefined_behaviour_sanitizers(
    tmp_path: Path, checked: tuple[list[str], list[Path]], width: str
) -> None:
    flags, common = checked
    rows = objects(tmp_path, [*flags, *flags_of(width)], ROW_SOURCES)
    assert run(compiled(tmp_path / "cpu", flags, [*common, *rows])).count("cases") == 4  # types of elements


def test_helper_threads_under_the_thread_sanitizer(tmp_path: Path) -> None:
    """In float32 alone: which thread takes which rows does not depend on the type of their elements."""
    flags = ["-O0", *sanitizers("thread", tmp_path), *flags_of("16 bytes")]
    sources = [HERE / "test_cpu_kernels.cpp", *COMMON_SOURCES, *ROW_SOURCES]
    program = compiled(tmp_path / "threads", flags, objects(tmp_path, flags, sources))
    assert run(program, "float32").count("cases") == 1


@pytest.mark.parametrize("openmp", [[], ["-fopenmp", "-Wl,--no-as-needed"]], ids=["own threads", "OpenMP"])
def test_what_a_thread_throws_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openmp: list[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    if command(COMPILER or "c++", *openmp, tmp_path / "empty.cpp", "-o", tmp_path / "empty").returncode:
        pytest.skip("the compiler has no OpenMP")
    sources = [HERE / "test_parallel.cpp", CSRC / "parallel.cpp"]
    assert run(compiled(tmp_path / "throws", ["-O1", *openmp], sources)) == "20 rounds\n"


@pytest.mark.skipif(platform.system() != "Linux", reason="sleeps on futexes")
def test_ranks_in_one_room_under_the_thread_sanitizer(tmp_path: Path) -> None:
    flags = ["-O1", *sanitizers("thread", tmp_path)]
    sources = [HERE / "test_shared_memory.cpp", CSRC / "shared_memory.cpp"]
    assert run(compiled(tmp_path / "room", flags, sources)) == "600 turns\n"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other architectures have one set")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("isa", [("avx2", "-mavx2", "-mfma", "-mf16c"), ("avx512", "-mavx512f", "-mavx512bw")])
def test_code_of_an_instruction_set_stays_by_itself(tmp_path: Path, isa: tuple[str, ...]) -> None:
    """A function that the linker may share between object files would hold instructions that other machines lack. There
    are most of them without optimisation, which would inline some; none throws, so that nothing refers to the runtime
    of exceptions."""
    name, *flags = isa
    for path in objects(tmp_path, ["-O0", "-fno-exceptions", "-w", f"-DGIPO_ISA={name}", *flags], ROW_SOURCES):
        symbols = command("nm", "-C", "--defined-only", path)
        defined = [line.split(maxsplit=2)[1:] for line in symbols.stdout.splitlines()]
        assert not [symbol for kind, symbol in defined if kind in "WVu"]
        assert {kind for kind, symbol in defined if f"gipo::{name}::" in symbol} & set("RDrd"), "the table of kernels"


def test_cuda_kernels_on_fibers_agree_with_the_cpu_kernels(tmp_path: Path) -> None:
    flags = ["-O1", *sanitizers("alignment", tmp_path)]  # a device refuses what a CPU forgives
    device = [*flags, f"-I{HERE / 'cuda_on_cpu'}", "-Wno-unknown-pragmas", "-x", "c++"]
    kernels = objects(tmp_path, device, [CSRC / f"{op}.cu" for op in CUDA_OPS])
    cases = objects(tmp_path, flags, [HERE / "test_cuda_on_cpu.cpp"])
    others = objects(tmp_path, [*flags, "-O0"], [*COMMON_SOURCES, *ROW_SOURCES])  # which run for a second
    said = run(compiled(tmp_path / "cuda", flags, [*kernels, *cases, *others]))
    assert said.count("largest relative difference") == 3
