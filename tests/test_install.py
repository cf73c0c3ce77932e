"""`pip install -e .`: the clone's folder, which has the package's name, does not hide the package."""

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
