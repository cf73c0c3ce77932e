"""The CUDA tests need an extension that was built with CUDA."""

from __future__ import annotations

import pytest
import torch

from gipo_mc.ops import native


@pytest.fixture(autouse=True)
def _built_with_cuda() -> None:
    torch.manual_seed(0)
    if not native.module().build_info()["cuda"]:
        pytest.fail(
            "There is a CUDA device, but gipo_mc._C was built without CUDA kernels: put nvcc on PATH and rebuild."
        )
