"""The engine and kinds of faults that other trainers had: shared parameters, weight decay, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import micro_batches
from gipo_mc.models.readout import response_statistics
from gipo_mc.models.weights.hf_load import load_hf_weights
from gipo_mc.parallel import sharded_files
from gipo_mc.parallel.engine import Engine
from tests.models import tiny
from tests.parallel.test_engine import ROWS, Part, _engine, _initialize, _parameters, _parts, _squares
from tests.ranks import run_ranks


def _train_lm(rank: int, folder: Path, layouts: list[tuple[dict[str, Any], bool]]) -> list[list[float]]:
    """Gradient norms of three steps of a language model in each layout (sizes, distributed optimizer)."""
    batch = to_sequences([[5, 6, 7], [8], [9, 10], [13]], [[20, 21], [22, 23, 130], [24], [1]], 0)

    def loss(model: Any, hidden_LBH: Tensor, part: Any) -> dict[str, Tensor]:
        return {"loss": -response_statistics(model, hidden_LBH, part, 1.0, 0).logp_N.sum() / 7}

    found = []
    for sizes, sharded in layouts:
        layout = _initialize(sizes)
        model = build_model(
            read_shape(folder), layout, head="lm", dtype=torch.float32, trainable=True, initialize=False
        )
        load_hf_weights(model, folder)
        engine = Engine(model, layout, OptimizerConfig(lr=1e-2), distributed_optimizer=sharded)
        norms = []
        for _ in range(3):
            engine.forward_backward(micro_batches(batch, ParallelConfig(micro_batch_size=2), layout).parts, loss)
            norms.append(engine.step().grad_norm)
        found.append(norms)
    return found


def _continued(rank: int, folder: Path, sizes: dict[str, Any], sharded: bool) -> list[float]:
    """Learning rates of an engine, and of another one with another rate that continues from it."""
    layout, rates = _initialize(sizes), []
    for number, lr in enumerate((1e-2, 3e-2)):
        model = build_model(
            read_shape(tiny.config(num_hidden_layers=2)), layout, head="lm", dtype=torch.float32, trainable=True, seed=1
        )
        engine = Engine(model, layout, OptimizerConfig(lr=lr), distributed_optimizer=sharded)
        if number:
            loaded = sharded_files.read(engine.sharded_state("m", is_loading=True), folder)
            engine.load_sharded_state("m", loaded)
        else:
            if rank == 0:
                folder.mkdir()
            torch.distributed.barrier()
            sharded_files.write(engine.sharded_state("m"), folder)
        rates.append(engine.lr)
    return rates


@pytest.mark.parametrize("sharded", [False, True])
def test_a_schedule_is_the_configurations_and_not_the_checkpoints(tmp_path: Path, sharded: bool) -> None:
    for found in run_ranks(_continued, 2, tmp_path / "shards", {"data": 2}, sharded):
        assert found == [pytest.approx(1e-2), pytest.approx(3e-2)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_what_ranks_share_counts_once(tmp_path: Path, family: str) -> None:
    """Tied embeddings, norms and biases of heads: on several ranks, but one parameter with one gradient, also where
    optimizer state is sharded and first and last stage hold other shards of the embedding."""
    tiny.save_lm(tmp_path, family, num_hidden_layers=2, tie_word_embeddings=True)
    ((expected,),) = run_ranks(_train_lm, 1, tmp_path, [({}, False)])
    pairs = [({"tensor": 2}, False), ({"tensor": 2, "sequence": True}, False), ({"pipeline": 2}, False)]
    fours = [({"pipeline": 2, "data": 2}, False), ({"pipeline": 2, "data": 2}, True)]
    for ranks, layouts in ((2, pairs), (4, fours)):
        for found in run_ranks(_train_lm, ranks, tmp_path, layouts):
            for norms in found:
                assert norms == pytest.approx(expected, rel=1e-5)


def _decayed(rank: int) -> dict[str, float]:
    layout = _initialize({})
    shape = read_shape(tiny.config("qwen2", num_hidden_layers=1))
    model = build_model(shape, layout, head="critic", groups=2, dtype=torch.float32, trainable=True)
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    engine = Engine(model, layout, OptimizerConfig(lr=0.1, weight_decay=0.5))

    def nothing(model: Any, hidden_LBH: Tensor, part: Part) -> dict[str, Tensor]:
        states = hidden_LBH.flatten(0, 1)
        return {"loss": 0.0 * (model.value(states).sum() + model.group_logits(states).sum())}

    engine.forward_backward(_parts(layout, ROWS), nothing)
    engine.step()
    return {name: float(p.detach().mean()) / 0.5 for name, p in model.named_parameters()}


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    """Decoupled: without a gradient a matrix shrinks by lr * weight_decay, and nothing else moves."""
    (found,) = run_ranks(_decayed, 1)
    spared = {name for name, factor in found.items() if factor == 1.0}
    assert spared == {name for name in found if "norm" in name or name.endswith(".bias")} and len(spared) >= 6
    assert all(found[name] == pytest.approx(0.95) for name in found.keys() - spared)


def _precise(rank: int, sharded: bool) -> Any:
    layout = _initialize({})
    engine = _engine(layout, OptimizerConfig(lr=1e-6), dtype=torch.bfloat16, distributed_optimizer=sharded)
    before = _parameters(engine)
    (part,) = engine.optimizer.chained_optimizers  # type: ignore[union-attr]
    groups = part.shard_fp32_from_float16_groups if sharded else part.fp32_from_float16_groups
    masters = [master for group in groups for master in group]
    begin = [master.clone() for master in masters]
    started = sum(float(master.double().sum()) for master in masters)
    for _ in range(4):
        engine.forward_backward(_parts(layout, ROWS), _squares)
        engine.step()
    stored = [value for own in part.optimizer.state.values() for value in own.values() if isinstance(value, Tensor)]
    return {
        "starts as the weights": started == sum(float(p.double().sum()) for p in before.values()),
        "moved in float32": all(not torch.equal(old, new) for old, new in zip(begin, masters, strict=True)),
        "no large weight moved": all(
            torch.equal(p, before[n]) for n, p in engine.model.named_parameters() if "norm" in n
        ),
        "dtypes": {value.dtype for value in [*masters, *stored]}
        | {p.main_grad.dtype for p in engine.model.parameters()},
        "rotary": engine.model.rotary_pos_emb.inv_freq.dtype,
    }


@pytest.mark.parametrize("sharded", [False, True])
def test_bfloat16_weights_have_float32_masters_moments_gradients_and_angles(sharded: bool) -> None:
    """Steps of 1e-6 are below what bfloat16 resolves around 1: they add up in the masters, which begin as the weights
    that were loaded. Rotary angles in bfloat16 would be wrong from position 256 on."""
    (found,) = run_ranks(_precise, 1, sharded)
    assert found["dtypes"] == {torch.float32} and found["rotary"] is torch.float32
    assert found["starts as the weights"] and found["moved in float32"] and found["no large weight moved"]
