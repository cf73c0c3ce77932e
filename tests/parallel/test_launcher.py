"""Ranks from Slurm's variables, as srun sets them; one process where srun started one."""

from __future__ import annotations

import pytest

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError
from gipo_mc.parallel.launcher import adopt_slurm, several_hosts, suit_cuda, world_size

TASK = {
    "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "8",
}  # fmt: skip


def _adopted(**changes: str) -> dict[str, str]:
    environment = TASK | changes
    adopt_slurm(environment)
    return {key: value for key, value in environment.items() if not key.startswith("SLURM")}


def test_a_task_of_srun_knows_its_rank() -> None:
    assert _adopted() == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "20375",
    }  # fmt: skip
    assert _adopted(RANK="0") == {"RANK": "0"}, "torchrun has said it"
    assert _adopted(SLURM_STEP_NUM_TASKS="1") == {}


def test_the_shell_of_a_batch_script_is_one_rank() -> None:
    environment = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    adopt_slurm(environment)
    assert "RANK" not in environment


def test_several_nodes_need_an_address() -> None:
    nodes = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    with pytest.raises(ConfigError, match=r"scontrol show hostnames"):
        _adopted(**nodes)
    found = _adopted(**nodes, MASTER_ADDR="node1", MASTER_PORT="29500")
    assert (found["LOCAL_WORLD_SIZE"], found["MASTER_ADDR"], found["MASTER_PORT"]) == ("4", "node1", "29500")


def test_the_ranks_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert world_size() == 6


def test_ranks_on_one_host_or_on_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    for here, several in (("6", False), ("2", True)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        assert several_hosts() == several
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert not several_hosts(), "whoever sets RANK without it has one host"


@pytest.mark.parametrize(
    ("options", "given", "added"),
    [
        ([], {}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        (["parallel.tensor=2"], {"PYTORCH_ALLOC_CONF": "x"}, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
        (["parallel.tensor=2", "rollout.engine=vllm"], {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, {}),
    ],
)
def test_cuda_is_suited_where_the_user_has_not(
    options: list[str], given: dict[str, str], added: dict[str, str]
) -> None:
    environment = dict(given)
    suit_cuda(load_config(None, options), environment)
    assert environment == given | added
