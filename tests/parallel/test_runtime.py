"""Starting and stopping the ranks, and the layouts they find themselves in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from gipo_mc.config import ParallelConfig, check_layout, validate
from gipo_mc.errors import ConfigError
from gipo_mc.parallel import runtime
from tests.ranks import run_ranks


def _where(rank: int, layouts: list[dict[str, Any]]) -> Any:
    found = []
    for layout in layouts:
        config = ParallelConfig(timeout_minutes=1, **layout)
        here = runtime.initialize(config, "cpu")
        group_sum = torch.tensor([float(rank)])
        dist.all_reduce(group_sum, group=parallel_state.get_tensor_model_parallel_group())
        assert runtime.initialize(config, "cpu") == here, "the same layout again is the same groups"
        found.append((here, group_sum.item()))
    runtime.shutdown()
    assert not dist.is_initialized()
    runtime.shutdown()  # idempotent
    return found


def test_one_job_can_go_from_layout_to_layout() -> None:
    """As a command does that trains several models one after the other."""
    layouts: list[dict[str, Any]] = [
        {"tensor": 2, "pipeline": 2},
        {"pipeline": 2},
        {"tensor": 2, "sequence": True},
        {"tensor": 4},
        {"sequence": True},
    ]
    results = run_ranks(_where, 4, layouts)
    grids = [[(h.data_rank, h.pipeline_rank, h.tensor_rank) for h, _ in rank] for rank in results]
    # Tensor innermost, then data, pipeline outermost: neighbours share the fastest links.
    assert [grid[0] for grid in grids] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    assert [grid[1] for grid in grids] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert [grid[2] for grid in grids] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    assert [grid[3] for grid in grids] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)]
    assert [grid[4] for grid in grids] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert [[total for _, total in rank] for rank in results] == [
        [1.0, 0.0, 1.0, 6.0, 0.0],
        [1.0, 1.0, 1.0, 6.0, 1.0],
        [5.0, 2.0, 5.0, 6.0, 2.0],
        [5.0, 3.0, 5.0, 6.0, 3.0],
    ]
    for rank, found in enumerate(results):
        for (here, _), wanted in zip(found, layouts, strict=True):
            assert here.rank == rank and here.world_size == 4 and here.device == torch.device("cpu")
            assert (here.tensor, here.pipeline) == (wanted.get("tensor", 1), wanted.get("pipeline", 1))
            assert here.tensor * here.pipeline * here.data == 4
            assert here.sequence == (wanted.get("sequence", False) and here.tensor > 1)


@pytest.mark.parametrize(("tensor", "pipeline", "ranks"), [(2, 2, 6), (3, 1, 2), (2, 1, 1)])
def test_a_layout_that_does_not_fit_the_ranks_is_refused_before_anything_starts(
    tensor: int, pipeline: int, ranks: int
) -> None:
    config = validate({"parallel": {"tensor": tensor, "pipeline": pipeline}})
    with pytest.raises(ConfigError, match=rf"= {tensor * pipeline} does not divide the {ranks} ranks"):
        check_layout(config, ranks)


def test_a_cpu_build_of_torch_is_named_where_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"is a build for the CPU.*make venv TORCH_INDEX=.*device=cpu"):
        runtime.resolve_device("cuda")
    assert runtime.resolve_device("auto") == "cpu"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert runtime.resolve_device("auto") == "cuda" and runtime.resolve_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert runtime.resolve_device("auto") == "cpu", "a GPU for each rank, or none"
    with pytest.raises(ConfigError, match="2 usable GPUs for 4 local ranks"):
        runtime.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="0 usable GPUs"):
        runtime.resolve_device("cuda")


@pytest.mark.parametrize(
    "said",
    [
        "Application timeout caused pair closure",  # gloo, asked again after a time-out; without its file name
        "[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:1: Connection reset by peer. This is typically caused.",
    ],
)
def test_what_gloo_says_of_a_lost_rank(said: str) -> None:
    lost = runtime.lost_peer(RuntimeError(said))
    assert lost is not None and "typically" not in str(lost)
    assert runtime.lost_peer(RuntimeError("shapes do not match")) is None


def test_small_models_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process is a command's own and OMP_NUM_THREADS says nothing; a larger model ends it for good."""
    usual = torch.get_num_threads()
    monkeypatch.setattr(runtime, "_usual_threads", None)
    try:
        torch.set_num_threads(3)
        for given, wanted in (("2", [3, 3, 3]), (None, [1, 3, 3])):
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            if given:
                monkeypatch.setenv("OMP_NUM_THREADS", given)
            runtime.let_models_choose_threads()
            found = []
            for parameters in (300_000, 8_000_000, 300_000):
                runtime.suit_threads(parameters)
                found.append(torch.get_num_threads())
            assert found == wanted
    finally:
        torch.set_num_threads(usual)
