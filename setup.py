"""Build of the native extension: setuptools calls CMake + ninja over csrc/. Everything else is in pyproject.toml.

Neither torch nor a GPU is needed. CUDA kernels are built where a CUDA compiler is found; a GPU is looked for at run
time only. Environment variables:

- GIPO_MC_CUDA=0 builds the CPU kernels only, GIPO_MC_CUDA=1 fails where there is no CUDA compiler.
- GIPO_MC_OPS=reference builds no kernels, and needs no compiler: the programs then need the same variable, with which
  they use the slow eager references.
- CUDACXX, CUDA_HOME or CUDA_PATH say where nvcc is, if it is neither on PATH nor in /usr/local/cuda.
- GIPO_MC_CUDA_ARCHITECTURES="80;90" replaces the default list of GPU architectures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = ("80", "90", "100", "120")
WITHOUT_COMPILER = (
    "It needs a C++17 compiler (such as the package g++). Without one, set GIPO_MC_OPS=reference, now and for the "
    "programs: no kernels are built, and the slow eager references take their place."
)


def find_nvcc() -> str | None:
    """Path of the CUDA compiler, or None."""
    candidates = [os.environ.get("CUDACXX"), "nvcc"]
    candidates += [
        os.path.join(os.environ[name], "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)
    ]
    candidates.append("/usr/local/cuda/bin/nvcc")
    for candidate in candidates:
        path = shutil.which(candidate) if candidate else None
        if path:
            return path
    return None


def wanted_nvcc() -> tuple[str | None, str]:
    """(CUDA compiler to use or None, why), from GIPO_MC_CUDA and what the machine has."""
    choice = os.environ.get("GIPO_MC_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"GIPO_MC_CUDA={choice}: set it to 0 (CPU only), 1 (CUDA required) or auto.")
    if choice == "0":
        return None, "GIPO_MC_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None and choice == "1":
        raise SystemExit(
            "GIPO_MC_CUDA=1, but no CUDA compiler was found: put nvcc on PATH or set CUDA_HOME to its toolkit."
        )
    return nvcc, f"nvcc is {nvcc}" if nvcc else "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"


def architectures(nvcc: str) -> str:
    """The CMake list of GPU architectures: what was asked for, or the defaults that this nvcc knows."""
    asked = os.environ.get("GIPO_MC_CUDA_ARCHITECTURES")
    if asked:
        return asked
    listing = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    if listing.returncode != 0:
        raise SystemExit(
            f"{nvcc} --list-gpu-arch failed: {listing.stderr.strip()}\n"
            "Repair the CUDA toolkit, or build the CPU kernels only with GIPO_MC_CUDA=0."
        )
    known = set(listing.stdout.split())
    usable = [a for a in DEFAULT_ARCHITECTURES if f"compute_{a}" in known]
    if not usable:
        raise SystemExit(
            f"{nvcc} knows none of the architectures {', '.join(DEFAULT_ARCHITECTURES)}: update the CUDA toolkit, "
            "name others in GIPO_MC_CUDA_ARCHITECTURES, or build the CPU kernels only with GIPO_MC_CUDA=0."
        )
    return ";".join(usable)


class CMakeBuild(build_ext):
    """Configures and builds csrc/ with CMake, straight into the place where setuptools expects the module."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        nvcc, reason = wanted_nvcc()
        archs = architectures(nvcc) if nvcc else ""
        built = f"CPU and CUDA kernels (sm_{archs.replace(';', ', sm_')})" if nvcc else "CPU kernels only"
        minutes = ". That takes minutes; GIPO_MC_CUDA=0 builds the CPU kernels only" if nvcc else ""
        print(f"gipo_mc: building {built}; {reason}{minutes}", flush=True)

        kind = "cuda" if nvcc else "cpu"
        tree = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{kind}"
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(tree), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",  # the path of an isolated build changes every time
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DGIPO_MC_MODULE_FILE={target.name}",
            f"-DGIPO_MC_CUDA={'ON' if nvcc else 'OFF'}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if nvcc:
            configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={archs}"]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(tree), "--parallel", jobs], check=True)
        except subprocess.CalledProcessError as error:
            hint = "GIPO_MC_CUDA=0 builds the CPU kernels only." if nvcc else WITHOUT_COMPILER
            raise SystemExit(
                f"The native build failed ({' '.join(error.cmd[:2])}); its output is above. {hint}"
            ) from None
        if not target.is_file():
            raise SystemExit(f"CMake ended without writing {target}: remove {tree} and build again.")
        print(f"gipo_mc: built {built} into {target}", flush=True)


kernels = [] if os.environ.get("GIPO_MC_OPS") == "reference" else [Extension("gipo_mc._C", sources=[])]
setup(ext_modules=kernels, cmdclass={"build_ext": CMakeBuild})
