"""The gate on the CUDA kernels where nvcc is present: scripts/check_cuda_build.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


@pytest.mark.skipif(nvcc() is None, reason="needs nvcc")
def test_cuda_kernels_pass_the_gate_on_compiled_code() -> None:
    result = subprocess.run(
        [ROOT / "scripts" / "check_cuda_build.sh"],
        env={**os.environ, "NVCC": nvcc() or ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    sources = list((ROOT / "csrc").glob("*.cu"))
    assert result.stdout.count(" 0 spill registers") == len(sources) > 0
    assert "The CUDA kernels pass." in result.stdout
