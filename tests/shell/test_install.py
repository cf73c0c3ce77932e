"""How it is installed: what `make venv` says and builds, and where `pip install -e .` has Python find the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.source_rules import ROOT

#: What pip has the build backend do for `pip install -e .`.
_BUILD = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
#: A start of Python in an environment that has this one folder of packages.
_START = "import site, sys; site.addsitedir(sys.argv.pop(1)); import runpy; runpy.run_module('gipo_mc', alter_sys=True)"


def make(folder: Path, target: str, index: str = "", **chosen: str) -> subprocess.CompletedProcess[str]:
    """`make` with a Python that notes what it would run, on a machine without nvidia-smi. CUDA_TORCH: what it
    answers to whether its torch has CUDA, an exit code. FAILS: what it fails at."""
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(
        '#!/bin/sh\ncase "$1 $2" in "-m pip" | setup.py*) echo "runs: GIPO_MC_CUDA=$GIPO_MC_CUDA $*";; esac\n'
        'case "$*" in *torch.version.cuda*) exit ${CUDA_TORCH:-1};; *${FAILS:-nothing}*) exit 1;; esac\n'
    )
    python.chmod(0o755)
    for name in ("bash", "sh", "uname", "mkdir", "touch", "dirname", "nproc", "find", "sed", "getconf", "cat"):
        (folder / "bin" / name).symlink_to(str(shutil.which(name)))
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    words = [str(shutil.which("make")), "VENV=", "CONSTRAINTS=", f"TORCH_INDEX={index}", "SHELL=/bin/bash", target]
    environment = {"PATH": str(folder / "bin"), **chosen}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("index", "chosen", "said", "given"),
    [
        ("auto", {}, "Kernels: CPU only, as torch is", "0"),
        ("auto", {"CUDA_TORCH": "0"}, "takes minutes more (GIPO_MC_CUDA=0 leaves them out)", ""),
        ("auto", {"GIPO_MC_CUDA": "1"}, "takes minutes more (GIPO_MC_CUDA=0 leaves them out)", "1"),
        ("", {}, "Kernels: CPU only, as torch is", "0"),
        ("", {"CUDA_TORCH": "0"}, "takes minutes more (GIPO_MC_CUDA=0 leaves them out)", ""),
        ("", {"GIPO_MC_CUDA": "0"}, "", "0"),
    ],
)
def test_make_builds_no_cuda_kernels_for_a_torch_without_cuda(
    index: str, chosen: dict[str, str], said: str, given: str, tmp_path: Path
) -> None:
    done = make(tmp_path, "venv", index, **chosen)
    assert done.returncode == 0, done.stderr
    torch, needs, package, development = (line for line in done.stdout.splitlines() if line.startswith("runs: "))
    assert development.endswith(" -r build/needs-dev.txt")
    assert torch.endswith(" torch -r build/needs-build.txt") and needs.endswith(" -r build/needs.txt")
    kernels = (tmp_path / "build" / "kernels.log").read_text()
    assert kernels == f"runs: GIPO_MC_CUDA={given} setup.py build_ext --inplace\n"
    assert package == f"runs: GIPO_MC_CUDA={given} -m pip install --no-compile --no-build-isolation --no-deps -e ."
    assert said in done.stdout
    assert ("Kernels: " in done.stdout) == bool(said)


def test_the_demo_waits_for_what_runs_need_alone(tmp_path: Path) -> None:
    assert make(tmp_path, "demo").returncode == 0
    assert not (tmp_path / "build" / "needs-dev.txt").exists()
    assert [path.name[-11:] for path in (tmp_path / "build").glob("*.stamp")] == ["o-run.stamp"]


@pytest.mark.parametrize("fails", ["setup.py", "needs.txt", ".ci/bytecode"])
def test_make_leaves_no_stamp_where_a_part_fails(fails: str, tmp_path: Path) -> None:
    """The kernels are built beside the rest: what the compiler said is shown where that fails."""
    done = make(tmp_path, "venv", FAILS=fails)
    assert done.returncode != 0
    assert not list((tmp_path / "build").glob("*.stamp"))
    assert ("setup.py build_ext" in done.stderr) == (fails == "setup.py")
    assert "--no-deps" not in done.stdout


def test_what_pip_installs_beside_the_kernels_is_all_that_the_package_asks_for() -> None:
    """An extra that names others of this package's brings theirs."""
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, extras = described["project"], described["project"]["optional-dependencies"]
    command = [sys.executable, ROOT / ".ci" / "needs"]
    found = subprocess.run([*command, "dev"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = "gipo-mc[judge,mlflow,wandb]"
    named = [*extras["dev"], *extras["judge"], *extras["mlflow"], *extras["wandb"]]
    assert sorted(found) == sorted([*project["dependencies"], *(line for line in named if line != own)])
    built = subprocess.run([*command, "build"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert built == described["build-system"]["requires"]


def _build_kernels(folder: Path, **chosen: str) -> subprocess.CompletedProcess[str]:
    """The build of the kernels where CMake finds no compiler."""
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    (folder / "cmake").write_text("#!/bin/sh\necho No CMAKE_CXX_COMPILER could be found.; exit 1\n")
    (folder / "cmake").chmod(0o755)
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "pyproject.toml").write_text('[project]\nname = "gipo_mc"\nversion = "9.9"\n')
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "GIPO_MC_CUDA": "0", **chosen}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_a_build_without_a_compiler_ends_with_what_to_do(tmp_path: Path) -> None:
    done = _build_kernels(tmp_path)
    assert done.returncode != 0 and "needs a C++17 compiler" in done.stderr
    assert "set GIPO_MC_OPS=reference, now and for the programs" in done.stderr.splitlines()[-1]


def test_no_kernels_are_built_where_the_references_are_asked_for(tmp_path: Path) -> None:
    done = _build_kernels(tmp_path, GIPO_MC_OPS="reference")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_python_finds_the_package_from_the_folder_that_holds_the_clone(tmp_path: Path) -> None:
    """A folder `gipo_mc` in the working directory comes before all of site-packages, for all that is not a package."""
    pytest.importorskip("setuptools")
    clone, environment = tmp_path / "gipo_mc", tmp_path / "environment"
    (clone / "gipo_mc").mkdir(parents=True)
    environment.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    (clone / "gipo_mc" / "__init__.py").write_text('__version__ = "9.9"\n')
    (clone / "gipo_mc" / "__main__.py").write_text("from gipo_mc import __version__\nprint(__version__)\n")
    command = [sys.executable, "-c", _BUILD, str(environment)]
    built = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    [wheel] = environment.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(environment)
    # PYTHONPATH would find the package by another way.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", _START, str(environment)]
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60)
    assert done.stdout == "9.9\n", done.stderr
