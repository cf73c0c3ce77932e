"""What every test stands on: one thread, fixed seeds, caches of its own, and no connection but loopback."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

# Read when torch, transformers and datasets are imported, so they are set before any of them is.
_cache = tempfile.mkdtemp(prefix="gipo_mc-tests-")
os.environ.update(
    HF_HOME=_cache,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    CUBLAS_WORKSPACE_CONFIG=":4096:8",
    # Megatron asks for it: a sequence-parallel collective must be queued before the kernel that overlaps it.
    CUDA_DEVICE_MAX_CONNECTIONS="1",
)
os.environ.pop("GIPO_MC_OPS", None)

import hypothesis  # noqa: E402
import torch  # noqa: E402

# The same examples every time: a failure is found by whoever changed something, and can be repeated.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

_connect = socket.socket.connect
_LOOPBACK = ("127.", "::1", "localhost")


def _connect_to_loopback_only(self: socket.socket, address: object) -> None:
    host = address[0] if isinstance(address, tuple) else None
    if isinstance(host, str) and self.family in (socket.AF_INET, socket.AF_INET6):
        host = host.removeprefix("::ffff:")
        if not host.startswith(_LOOPBACK) and host != socket.gethostname():
            raise AssertionError(f"a test opened a connection to {address}: the tests use nothing but loopback")
    _connect(self, address)  # type: ignore[arg-type]


def pytest_configure(config: pytest.Config) -> None:
    socket.socket.connect = _connect_to_loopback_only  # type: ignore[method-assign, assignment]
    torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    socket.socket.connect = _connect  # type: ignore[method-assign]
    shutil.rmtree(_cache, ignore_errors=True)


#: Files that take longest: begun first, so that no worker is left alone with one at the end.
_LONG = (
    "csrc/test_csrc.py",
    "test_readme.py",
    "csrc/test_cuda_build.py",
    "benchmarks/studies/test_group_robustness.py",
    "run/test_resume.py",
    "run/test_torchrun.py",
    "tools/dry_run/test_dry_run.py",
    "soak/test_soak.py",
    "bad_input/test_bad_input.py",
    "benchmarks/studies/test_hh_gold.py",
    "run/test_watch.py",
    "run/test_checkpoint.py",
    "run/test_command.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """Seeds and thread count do not depend on which tests ran before."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
