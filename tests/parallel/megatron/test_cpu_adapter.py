"""The CPU adapter: what it replaces still exists, it does what Megatron needs, and CUDA runs never see it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from gipo_mc.config import ParallelConfig
from gipo_mc.parallel import runtime
from gipo_mc.parallel.megatron import cpu_adapter
from tests.ranks import run_ranks


def _get(module: str, attribute: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)  # raises where an upgrade moved it
    return found


@pytest.mark.parametrize(("module", "attribute"), cpu_adapter.PATCHED)
def test_what_is_replaced_exists_in_torch_and_megatron(module: str, attribute: str) -> None:
    found = _get(module, attribute)
    assert callable(found) or found is torch


def _apply(rank: int) -> Any:
    names = list(cpu_adapter.PATCHED)
    before = [_get(*name) for name in names]
    cpu_adapter.apply()
    first = [_get(*name) for name in names]
    cpu_adapter.apply()
    again = [_get(*name) for name in names]
    unchanged = [name for name, old, new in zip(names, before, first, strict=True) if old is new]
    assert first == again, "the second call changed something"

    tensor = torch.ones(2)
    schedules = importlib.import_module("megatron.core.pipeline_parallel.schedules")
    tracker = importlib.import_module("megatron.core.tensor_parallel.random")
    generator = torch.random.default_generator
    torch.cuda.manual_seed(11)
    state = tracker._get_cuda_rng_state()
    drawn = torch.rand(3)
    tracker._set_cuda_rng_state(state)
    repeats = torch.equal(torch.rand(3), drawn)
    devices = {
        name: getattr(schedules.torch, name)(*arguments, device="cuda").device.type
        for name, arguments in {"zeros": (2,), "ones": (2,), "empty": (2,), "tensor": ([1.0],)}.items()
    }
    return {
        "unchanged": unchanged,
        "current_device": torch.cuda.current_device(),
        "moved": tensor.cuda() is tensor and torch.nn.Linear(1, 1).cuda().weight.device.type,
        "type": (tensor.type(), tensor.type(torch.float64).dtype, tensor.bfloat16().type()),
        "devices": devices,
        "plain": (schedules.torch.zeros(1).device.type, schedules.torch.float32 is torch.float32),
        "torch": torch.zeros is not schedules.torch.zeros,
        "seeded": generator.initial_seed(),
        "repeats": repeats,
    }


def test_every_replacement_takes_place_and_answers_for_the_cpu() -> None:
    (found,) = run_ranks(_apply, 1)
    assert found == {
        "unchanged": [],
        "current_device": torch.device("cpu"),
        "moved": "cpu",
        "type": ("torch.cuda.FloatTensor", torch.float64, "torch.cuda.BFloat16Tensor"),
        "devices": dict.fromkeys(("zeros", "ones", "empty", "tensor"), "cpu"),
        "plain": ("cpu", True),
        "torch": True,
        "seeded": 11,
        "repeats": True,
    }


def _on(rank: int, kind: str) -> bool:
    class Reached(Exception):
        pass

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Reached

    runtime.resolve_device = lambda device: kind  # type: ignore[assignment,return-value]
    torch.cuda.set_device = stop  # type: ignore[assignment]
    runtime.dist.is_initialized = stop  # type: ignore[assignment]
    with pytest.raises(Reached):
        runtime.initialize(ParallelConfig(), "auto")
    return cpu_adapter._applied


@pytest.mark.parametrize(("kind", "applied"), [("cuda", False), ("cpu", True)])
def test_it_is_applied_on_the_cpu_alone(kind: str, applied: bool) -> None:
    assert run_ranks(_on, 1, kind) == [applied]
