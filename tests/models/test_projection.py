"""Logits in float32 of a bfloat16 model, and the weight's gradient without Megatron's buffer."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.models import projection
from gipo_mc.models.build import build_model
from gipo_mc.models.execution import Execution
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import MicroBatch, micro_batches
from gipo_mc.models.readout import response_states, response_statistics
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.engine import Engine
from tests.models import tiny
from tests.ranks import LAYOUTS, parallel_config, run_ranks

ROWS, HIDDEN, VOCABULARY = 7, 32, 67


def _material(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state_NH = torch.randn(ROWS, HIDDEN, generator=generator).to(dtype)
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype)
    return state_NH, weight_VH, torch.randn(ROWS, generator=generator)


def _of_logits(logits_NV: Tensor, factor_N: Tensor) -> tuple[Tensor, ...]:
    wide_NV = logits_NV.double() if logits_NV.dtype is torch.float64 else logits_NV.float()
    return wide_NV.logsumexp(1) * factor_N, wide_NV.square().mean(1), wide_NV[:, 0]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("buffer", [False, True])
def test_parts_have_the_gradients_of_the_whole(rows: int, buffer: bool) -> None:
    """With Megatron's buffer beside the weight, which has what autograd is not given, and without."""
    state_NH, weight_VH, factor_N = (x.double() for x in _material(torch.float64))
    state_NH.requires_grad_(), weight_VH.requires_grad_()
    found = projection.in_parts(_of_logits, state_NH, weight_VH, factor_N, rows=rows)
    whole = _of_logits(state_NH @ weight_VH.t(), factor_N)
    wanted = torch.autograd.grad((whole[0] + 3 * whole[1]).sum(), [state_NH, weight_VH])
    if buffer:
        weight_VH.main_grad = torch.ones_like(weight_VH)  # type: ignore[attr-defined]
    (found[0] + 3 * found[1]).sum().backward()  # the third output is not used
    assert state_NH.grad is not None and weight_VH.grad is not None
    total = weight_VH.grad + (weight_VH.main_grad - 1 if buffer else 0)  # type: ignore[attr-defined]
    for one, other in ((state_NH.grad, wanted[0]), (total, wanted[1]), *zip(found, whole)):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_second_derivatives_are_an_error() -> None:
    """Both would come out as 0, in silence, where the gradient that comes in has none itself."""
    state_NH, weight_VH, factor_N = _material(torch.float32)
    state_NH.requires_grad_()
    for output in (
        projection.logits(state_NH, weight_VH, float32=False).square().sum(1),
        projection.in_parts(_of_logits, state_NH, weight_VH, factor_N, rows=3)[0],
    ):
        (gradient,) = torch.autograd.grad(output.sum(), state_NH, create_graph=True)
        with pytest.raises(RuntimeError, match="there are no second derivatives"):
            gradient.sum().backward()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_products_of_bfloat16_are_summed_and_kept_in_float32(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_BLOCK", 20)
    state_NH, weight_VH, factor_N = (x.to(device) for x in _material(torch.bfloat16))
    state_NH.requires_grad_(), weight_VH.requires_grad_()
    logits_NV = projection.logits(state_NH, weight_VH, float32=True)
    exact_NV = state_NH.double() @ weight_VH.double().t()
    assert logits_NV.dtype is torch.float32
    assert (logits_NV - exact_NV).abs().max() < 1e-5 < (logits_NV.bfloat16() - exact_NV).abs().max()
    sum(output.sum() for output in _of_logits(logits_NV, factor_N)).backward()  # type: ignore[union-attr]
    wanted = torch.autograd.grad(sum(o.sum() for o in _of_logits(exact_NV, factor_N)), [state_NH, weight_VH])  # type: ignore[arg-type]
    for parameter, right in zip((state_NH, weight_VH), wanted, strict=True):
        assert parameter.grad is not None and parameter.grad.dtype is torch.bfloat16
        assert (parameter.grad - right).norm() < 0.02 * right.norm()


def _errors(rank: int, name: str, tied: bool) -> dict[bool, list[float]]:
    """Of a bfloat16 model with logits of tens, for fp32_logits off and on: the largest error of log-probs in training
    with all logits at once and five rows at a time, against float64 from the same states, and the norms of the head's
    gradient."""
    layout = runtime.initialize(parallel_config(**LAYOUTS[name])[0], "cpu")
    shape = read_shape(tiny.config(num_hidden_layers=2, tie_word_embeddings=tied))
    batch = to_sequences([[5, 6, 7], [8, 9, 20], [9, 10, 99]], [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], 0)
    found: dict[bool, list[float]] = {}
    for fp32 in (False, True):
        execution = Execution(fp32_logits=fp32)
        model = build_model(shape, layout, head="lm", dtype=torch.bfloat16, trainable=True, seed=3, execution=execution)
        with torch.no_grad():
            model.head_weight.mul_(20)
        engine = Engine(model, layout, OptimizerConfig())
        parts = micro_batches(batch, ParallelConfig(micro_batch_size=3), layout).parts

        def loss(model: Any, hidden_LBH: Tensor, part: MicroBatch, rows: int) -> dict[str, Tensor]:
            logp_N = response_statistics(model, hidden_LBH, part, 1.0, rows).logp_N
            shard_NV = response_states(hidden_LBH, part).detach().double() @ model.head_weight.detach().double().t()
            group = parallel_state.get_tensor_model_parallel_group()
            exact_NV = torch.cat(list(gather_in_rank_order(shard_NV, group)), dim=1)[:, : model.vocab_size]
            exact_N = exact_NV.log_softmax(1).gather(1, part.target_N[:, None])[:, 0]
            return {"loss": logp_N.mean(), "error": (logp_N - exact_N).abs().max()}

        assert model.lm_logits(torch.ones(1, 32, dtype=torch.bfloat16)).dtype is (
            torch.float32 if fp32 else torch.bfloat16
        ), "what generation draws from"
        found[fp32] = []
        for rows in (0, 5):
            (output,) = engine.forward_backward(parts, partial(loss, rows=rows))
            found[fp32] += [float(output["error"]), float(model.head_weight.main_grad.norm())]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("name", "tied"), [("1", False), ("TP2", True)])
def test_float32_logits_take_the_noise_out_of_ratios(name: str, tied: bool) -> None:
    """Logits of 16 to 32 are 0.125 apart in bfloat16, and a ratio is exp of a difference of log-probs."""
    for found in run_ranks(_errors, parallel_config(**LAYOUTS[name])[1], name, tied):
        assert max(found[True][0::2]) < 1e-4 and min(found[False][0::2]) > 0.02, found
        (whole, parts), (whole_32, parts_32) = found[False][1::2], found[True][1::2]
        assert parts == pytest.approx(whole, rel=0.01) and parts_32 == pytest.approx(whole_32, rel=0.01)
        assert whole_32 == pytest.approx(whole, rel=0.1)
