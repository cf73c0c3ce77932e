"""The engine on a tiny model: gradients that no layout changes, steps that bad numbers cannot poison, schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from megatron.core.optimizer import optimizer as megatron_optimizer
from torch import Tensor

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import replicate_rows
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout, split_rows
from tests.models import tiny
from tests.ranks import LAYOUTS, run_ranks

ROWS, LENGTH = 6, 8


@dataclass(frozen=True)
class Part:
    tokens_BL: Tensor
    target_B: Tensor


def _engine(layout: Layout, optimizer: OptimizerConfig | None = None, **options: Any) -> Engine:
    shape = read_shape(tiny.config(num_hidden_layers=2))
    model = build_model(shape, layout, head="value", dtype=options.pop("dtype", torch.float32), trainable=True, seed=3)
    return Engine(model, layout, optimizer, **options)


def _parts(layout: Layout, size: int) -> list[Part]:
    generator = torch.Generator().manual_seed(5)
    tokens_BL = torch.randint(0, 131, (ROWS, LENGTH), generator=generator)
    target_B = torch.randn(ROWS, generator=generator)
    own = split_rows(ROWS, layout.data)[layout.data_rank]
    return [
        Part(tokens_BL[start : min(start + size, own.stop)], target_B[start : min(start + size, own.stop)])
        for start in range(own.start, own.stop, size)
    ]


def _squares(model: Any, hidden_LBH: Tensor, part: Part) -> dict[str, Tensor]:
    value_B = model.value(hidden_LBH[-1])
    return {"loss": (value_B - part.target_B).square().sum() / ROWS, "value": value_B}


def _values(outputs: list[dict[str, Tensor]], layout: Layout) -> Tensor:
    columns = {"value": torch.cat([o["value"] for o in outputs])} if outputs else None
    return replicate_rows(columns, {"value": 0}, split_rows(ROWS, layout.data), layout)["value"]


def _parameters(engine: Engine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def _initialize(sizes: dict[str, Any]) -> Layout:
    parallel = {name: value for name, value in sizes.items() if name != "data"}
    return runtime.initialize(ParallelConfig(timeout_minutes=1, **parallel), "cpu")


def _frozen(rank: int) -> Any:
    layout = _initialize({})
    engine = _engine(layout)
    outputs = engine.forward(_parts(layout, 4), _squares)
    no_gradients = all(p.grad is None and not hasattr(p, "main_grad") for p in engine.model.parameters())
    refused = []
    for call in (lambda: engine.forward_backward(_parts(layout, 4), _squares), engine.step, lambda: engine.lr):
        try:
            call()
        except AssertionError as error:
            refused.append(str(error))
    return (
        any(p.requires_grad for p in engine.model.parameters()),
        outputs[0]["value"].requires_grad,
        no_gradients,
        [len(o["value"]) for o in outputs],
        refused,
        sorted(engine.sharded_state("m")),
    )


def test_a_frozen_model_has_no_gradients_and_cannot_be_trained() -> None:
    (found,) = run_ranks(_frozen, 1)
    assert found == (
        False,
        False,
        True,
        [4, 2],
        ["a frozen model has no gradients", "a frozen model cannot step", "a frozen model has no learning rate"],
        ["m.model"],
    )


def _norms(rank: int, layouts: list[tuple[dict[str, Any], int]]) -> Any:
    """(gradient norm, values before and after two steps) in each layout, one after the other."""
    found = []
    for sizes, micro_batch in layouts:
        layout = _initialize(sizes)
        engine = _engine(layout, OptimizerConfig(lr=1e-2))
        parts = _parts(layout, micro_batch)
        before = _values(engine.forward(parts, _squares), layout)
        trained = _values(engine.forward_backward(parts, _squares), layout)
        results = [engine.step()]
        engine.forward_backward(parts, _squares)
        results.append(engine.step())
        after = _values(engine.forward(parts, _squares), layout)
        found.append(([r.grad_norm for r in results], before, trained, after, all(r.updated for r in results)))
    return found


@pytest.fixture(scope="module")
def alone() -> Any:
    found = run_ranks(_norms, 1, [({}, ROWS), ({}, 1)])[0]
    _assert_close(found[1], found[0])
    norms, before, trained, after, updated = found[0]
    assert updated and norms[0] > 0.1 and torch.equal(before, trained)
    assert not torch.allclose(before, after, atol=1e-3), "two steps moved nothing"
    return found[0]


def _assert_close(found: Any, expected: Any) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for own, wanted in zip(found[1:4], expected[1:4], strict=True):
        assert torch.allclose(own, wanted, rtol=1e-4, atol=1e-5)
    assert found[4]


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        (
            2,
            [
                (LAYOUTS["TP2"], 2),
                (LAYOUTS["PP2"], 2),
                (LAYOUTS["DP2"], 2),
                (LAYOUTS["DP2"], 3),
                (LAYOUTS["TP2+SP"], 4),
            ],
        ),
        (
            4,
            [(LAYOUTS["TP2xPP2"], 2), ({"pipeline": 2, "data": 2}, 2), ({"tensor": 2, "data": 2, "sequence": True}, 1)],
        ),
    ],
)
def test_gradient_norm_and_steps_agree_over_layouts(alone: Any, ranks: int, layouts: Any) -> None:
    for result in run_ranks(_norms, ranks, layouts):
        for found in result:
            _assert_close(found, alone)


def _sharded_optimizer(rank: int) -> Any:
    layout = _initialize({"data": 2})
    engine = _engine(layout, OptimizerConfig(lr=1e-2), distributed_optimizer=True)
    parts = _parts(layout, 2)
    norms = []
    for _ in range(2):
        engine.forward_backward(parts, _squares)
        norms.append(engine.step().grad_norm)
    return norms, _values(engine.forward(parts, _squares), layout)


def test_the_distributed_optimizer_takes_the_same_steps(alone: Any) -> None:
    for norms, after in run_ranks(_sharded_optimizer, 2):
        assert norms == pytest.approx(alone[0], rel=1e-5)
        assert torch.allclose(after, alone[3], rtol=1e-4, atol=1e-5)


def _poisoned(rank: int, sizes: dict[str, Any], bad_rank: int, value: float, options: dict[str, Any]) -> Any:
    layout = _initialize(sizes)
    engine = _engine(layout, OptimizerConfig(lr=1e-2), **options)
    parts = _parts(layout, 2)

    def poisoned(model: Any, hidden_LBH: Tensor, part: Part) -> dict[str, Tensor]:
        outputs = _squares(model, hidden_LBH, part)
        return outputs | {"loss": outputs["loss"] * (value if rank == bad_rank else 1.0)}

    def train(last_stage: Callable[..., Any]) -> Any:
        engine.forward_backward(parts, last_stage)
        return engine.step()

    train(_squares)
    before = _parameters(engine)
    bad = train(poisoned)
    unchanged = all(torch.equal(old, before[name]) for name, old in _parameters(engine).items())
    good = train(_squares)
    # The step that never was: an engine that did not see it ends in the same place.
    other = _engine(layout, OptimizerConfig(lr=1e-2), **options)
    for _ in range(2):
        other.forward_backward(parts, _squares)
        last = other.step()
    expected = _parameters(other)
    equal = all(torch.equal(new, expected[name]) for name, new in _parameters(engine).items())
    moved = any(not torch.equal(new, before[name]) for name, new in _parameters(engine).items())
    return bad.updated, unchanged, good.updated, last.grad_norm == good.grad_norm, equal, moved


@pytest.mark.parametrize(
    ("sizes", "bad_rank", "value", "options"),
    [
        ({"data": 2}, 1, float("nan"), {}),
        ({"data": 2}, 0, float("inf"), {}),
        ({"data": 2}, 1, 1e30, {}),
        ({"tensor": 2}, 0, 1e30, {}),
        ({"data": 2}, 1, float("nan"), {"distributed_optimizer": True}),
        ({"tensor": 2}, 1, float("nan"), {}),
        ({"pipeline": 2}, 1, float("nan"), {}),
        ({"data": 2}, 1, float("nan"), {"dtype": torch.bfloat16}),
    ],
)
def test_a_gradient_that_is_not_finite_changes_nothing_on_any_rank(
    sizes: dict[str, Any], bad_rank: int, value: float, options: dict[str, Any]
) -> None:
    for found in run_ranks(_poisoned, 2, sizes, bad_rank, value, options):
        assert found == (False, True, True, True, True, True)


def _clipped(rank: int, clip: float) -> Any:
    layout = _initialize({})
    engine = _engine(layout, OptimizerConfig(lr=1e-2, clip_grad=clip))
    engine.forward_backward(_parts(layout, 3), _squares)
    add_up, sums = megatron_optimizer.get_grad_norm_fp32, []

    def noted(*args: Any, **options: Any) -> float:
        sums.append(add_up(*args, **options))
        return sums[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_optimizer, "get_grad_norm_fp32", noted)
        reported = engine.step().grad_norm
    assert sums == [reported], "added up over the ranks once"
    applied = sum(float(p.grad.double().square().sum()) for p in engine.model.parameters()) ** 0.5
    return reported, applied


def test_the_norm_is_reported_before_clipping_and_clipped_after() -> None:
    ((reported, applied),) = run_ranks(_clipped, 1, 0.0)
    assert applied == pytest.approx(reported, rel=1e-6), "clip_grad=0 is off"
    ((again, clipped),) = run_ranks(_clipped, 1, 0.01)
    assert again == reported > 0.01 and clipped == pytest.approx(0.01, rel=1e-3)


def _rates(rank: int, optimizer: OptimizerConfig, total: int, steps: int) -> list[float]:
    layout = _initialize({})
    engine = _engine(layout, optimizer, total_steps=total)
    engine.forward_backward(_parts(layout, 6), _squares)
    return [engine.step().lr for _ in range(steps)]


def test_learning_rates_of_every_schedule_by_hand() -> None:
    warm = {"lr": 1.0, "warmup": 3}
    (rates,) = run_ranks(_rates, 1, OptimizerConfig(**warm), 6, 6)
    # The first step counts: a quarter of the peak, not 0.
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    (rates,) = run_ranks(_rates, 1, OptimizerConfig(**warm, schedule="linear", min_lr=0.1), 7, 9)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1])
    (rates,) = run_ranks(_rates, 1, OptimizerConfig(lr=1.0, schedule="cosine"), 4, 5)
    assert rates == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
    (rates,) = run_ranks(_rates, 1, OptimizerConfig(lr=0.5, warmup=9), 2, 3)
    assert rates == pytest.approx([0.05, 0.1, 0.15]), "a warm-up longer than the run"
