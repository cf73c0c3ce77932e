"""Jobs of two hosts, which are network namespaces of this machine: one is cut off and the other goes on alone; hosts
that are not alike; hosts that share no folder. torchrun's agent runs as it does on a cluster, over forks, which have
imported everything. `tests/nodes/measure.py` starts torchrun itself, in more cases."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gipo_mc.parallel.nodes import shared_folder
from gipo_mc.run import checkpoint
from gipo_mc.run.command import run_command
from gipo_mc.supervised import sft
from tests.nodes.hosts import Hosts, why_not
from tests.nodes.jobs import status
from tests.ranks import run_ranks
from tests.run.test_resume import _assert_equal
from tests.runs import save_models
from tests.source_rules import ROOT

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _options(models: Mapping[str, str], folder: Path, *more: str) -> list[str]:
    rows = ["data.demonstrations=[builtin]", "data.max_rows=64", "data.sequence_length=24", "train.batch_size=8"]
    runs = [f"run.dir={folder}", "run.name=run", "checkpoint.every=1", "parallel.timeout_minutes=2"]
    return ["device=cpu", f"model.policy={models['policy']}", *rows, *runs, "parallel.silence_seconds=5", *more]


def _rank(log: str, options: list[str]) -> None:
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - as long as the process
    code = run_command("test", sft.train, argv=options)
    if code:
        os._exit(code)


def _agent(hosts: int, log: str, options: list[str]) -> None:
    """`torchrun --nnodes=... --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=node1:29500`."""
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    if "connect" in vars(socket.socket):
        del socket.socket.connect  # tests/conftest.py lets tests reach loopback only; here the other hosts are as near
    sys.stderr = open(f"{log}-agent", "w")  # noqa: SIM115 - as long as the process
    config = LaunchConfig(
        hosts, hosts, 1, rdzv_backend="c10d", rdzv_endpoint="node1:29500", run_id="test", max_restarts=0,
        start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, _rank)(log, options)
    except ChildFailedError:
        os._exit(1)


def _said(folder: Path, host: int) -> str:
    return (folder / f"log-{host}").read_text()


def _ranks(rank: int, options: list[str]) -> None:
    run_command("test", sft.train, argv=options)


def test_a_host_is_cut_off_and_the_other_goes_on_alone(tmp_path: Path, models: dict[str, str]) -> None:
    options = _options(models, tmp_path, "run.iterations=100000")
    with Hosts(2, shared=[ROOT, tmp_path, Path(models["policy"]).parent]) as hosts:
        jobs = [hosts[n].fork(_agent, 2, str(tmp_path / f"log-{n}"), options) for n in range(2)]
        deadline = time.monotonic() + 60
        while status(tmp_path / "run").get("step", 0) < 2 and time.monotonic() < deadline:
            assert all(job.is_alive() for job in jobs), _said(tmp_path, 0) + _said(tmp_path, 1)
            time.sleep(0.05)
        hosts[1].cut()
        began = time.monotonic()
        jobs[0].join(60)
        assert jobs[0].exitcode == 1 and time.monotonic() - began < 30
        found = status(tmp_path / "run")
        assert (found["state"], found["exit_code"], found["host"]) == ("failed", 7, "node1")
        assert found["message"].startswith("Host node2 (10.77.0.2, ranks from 1 on) gave no sign of life for 5 seconds")
        while "error: " not in _said(tmp_path, 1) and time.monotonic() < began + 30:
            time.sleep(0.05)
        assert "error: Host node2 was cut off from the others: the store at " in _said(tmp_path, 1)

        saved = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
        alone = hosts[0].fork(_agent, 1, str(tmp_path / "log-alone"), [*options, f"run.iterations={saved + 2}"])
        alone.join(60)
        assert status(tmp_path / "run")["state"] == "done", (tmp_path / "log-alone").read_text()

    for ranks, end in ((2, saved), (1, saved + 2)):
        run_ranks(_ranks, ranks, [*options, "run.name=straight", f"run.iterations={end}"])
    _assert_equal(tmp_path / "run", tmp_path / "straight", saved + 2)


@pytest.mark.parametrize(
    ("own", "private", "expected"),
    [
        (
            ["policy.lr=1e-3"],
            False,
            "On host node2 (rank 1) and on host node1 (rank 0):\n  - policy.lr: 0.001 and ",
        ),
        ([], True, "is not what node2 sees there: put run.dir on a file system that all hosts of the job share"),
        (["train.nonsense=1"], False, "train.nonsense: there is no such key"),
    ],
    ids=["another option", "no shared folder", "a refusal on one host"],
)
def test_hosts_that_do_not_fit_end_with_one_sentence(
    tmp_path: Path,
    models: dict[str, str],
    own: list[str],
    private: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_folder, "_SECONDS", 0.5)
    runs = tmp_path / "runs"
    runs.mkdir()
    options = _options(models, runs, "run.iterations=2")
    logs = tmp_path / "logs"
    logs.mkdir()
    folders = [ROOT, logs, Path(models["policy"]).parent]
    with Hosts(
        2, shared=folders if private else [*folders, runs], private=[runs] if private else [], resolves="loopback"
    ) as hosts:
        began = time.monotonic()
        jobs = [hosts[n].fork(_agent, 2, str(logs / f"log-{n}"), [*options, *(own if n else [])]) for n in range(2)]
        for job in jobs:
            job.join(60)
        assert [job.exitcode for job in jobs] == [1, 1] and time.monotonic() - began < 40
    said = [_said(logs, n) for n in range(2)]
    assert all(expected in text for text in said) if own else any(expected in text for text in said)
    assert not list(tmp_path.rglob("step_*")), "nothing was trained"
