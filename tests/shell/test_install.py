"""How it is installed: what `make venv` says and builds, and where `pip install -e .` has Python find the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.source_rules import ROOT

#: What pip has the build backend do for `pip install -e .`.
_BUILD = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
#: A start of Python in an environment that has this one folder of packages.
_START = "import site, sys; site.addsitedir(sys.argv.pop(1)); import runpy; runpy.run_module('gipo_mc', alter_sys=True)"


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
    """With a Python that notes what pip would be told, on a machine without nvidia-smi. CUDA_TORCH: what it answers to
    whether its torch has CUDA, an exit code."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        '#!/bin/sh\n[ "$2" = pip ] && echo "pip: GIPO_MC_CUDA=$GIPO_MC_CUDA $*"\n'
        'case "$2" in *torch.version.cuda*) exit ${CUDA_TORCH:-1};; esac\nexit 0\n'
    )
    python.chmod(0o755)
    for name in ("bash", "sh", "uname", "mkdir", "touch", "dirname", "nproc", "find", "sed", "getconf"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    words = [str(shutil.which("make")), "VENV=", "CONSTRAINTS=", f"TORCH_INDEX={index}", "SHELL=/bin/bash", "venv"]
    environment = {"PATH": str(tmp_path / "bin"), **chosen}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    torch, package = (line for line in done.stdout.splitlines() if line.startswith("pip: "))
    assert torch.endswith(" torch") and package.startswith(f"pip: GIPO_MC_CUDA={given} ")
    assert said in done.stdout
    assert ("Kernels: " in done.stdout) == bool(said)


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
