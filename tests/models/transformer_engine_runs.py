"""What tests/models/test_transformer_engine.py starts in a process in which TransformerEngine is a stand-in.

Prints what it found as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.models import layers
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import MicroBatch, micro_batches
from gipo_mc.models.readout import response_statistics
from gipo_mc.models.weights.table import _WITHOUT_ENGINE
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron import transformer_engine
from tests.models import tiny


def _engine(layout: Layout, used: bool, **options: Any) -> Engine:
    layers.has_transformer_engine = lambda config: used
    shape = read_shape(tiny.config(num_hidden_layers=2))
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=True, seed=3)
    return Engine(model, layout, OptimizerConfig(lr=1e-2), total_steps=9, **options)


def _loss(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> dict[str, Tensor]:
    return {"loss": -response_statistics(model, hidden_LBH, part, 1.0, 3).logp_N.sum() / 9}


def _passes(engine: Engine) -> None:
    batch = to_sequences([[5, 6, 7], [8], [9, 10]], [[20, 21], [22, 23, 130, 7], [24, 1, 2]], 0)
    engine.forward_backward(micro_batches(batch, ParallelConfig(micro_batch_size=1), engine.layout).parts, _loss)


def _gradients(engine: Engine) -> dict[str, Tensor]:
    """By the names of Megatron's own layers."""
    found = {}
    for name, parameter in engine.model.named_parameters():
        for fused, own in _WITHOUT_ENGINE.items():
            name = name.replace(fused, own)
        found[name] = parameter.main_grad.clone()  # type: ignore[attr-defined]
    return found


def _difference(layout: Layout, overlap: bool) -> float:
    """Largest difference of a gradient, of three micro-batches and after others, from that of Megatron's layers."""
    ours, theirs = _engine(layout, False), _engine(layout, True, overlap=overlap)
    for engine in (ours, theirs):
        _passes(engine)
        _passes(engine)
    own, fused = _gradients(ours), _gradients(theirs)
    assert own.keys() == fused.keys(), own.keys() ^ fused.keys()
    return max(float((fused[name] - own[name]).abs().max() / own[name].abs().max()) for name in own)


def _continues(layout: Layout, folder: Path, sharded: bool) -> bool:
    """Does a run that starts again end with the bits of one that did not?"""
    whole = _engine(layout, True, distributed_optimizer=sharded)
    for step in range(3):
        if step == 2:
            folder.mkdir()
            sharded_files.write(whole.sharded_state("m"), folder)
        _passes(whole)
        whole.step()
    again = _engine(layout, True, distributed_optimizer=sharded)
    again.load_sharded_state("m", sharded_files.read(again.sharded_state("m", is_loading=True), folder))
    before = again.updates()
    _passes(again)
    again.step()
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    return before == 2 and all(torch.equal(one, other) for one, other in pairs)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/one", rank=0, world_size=1)
        layout = runtime.initialize(ParallelConfig(), "cpu")
        layer = _engine(layout, True).model.decoder.layers[0]  # type: ignore[union-attr,index]
        linears = [layer.self_attention.linear_qkv, layer.self_attention.linear_proj, layer.mlp.linear_fc1]
        found = {
            "problem": transformer_engine.problem(),
            "fused": [linear.fuse_wgrad_accumulation for linear in [*linears, layer.mlp.linear_fc2]],
            "others": layer.config.gradient_accumulation_fusion,
            "attention": type(layer.self_attention.core_attention).__name__,
            "optimizer": type(_engine(layout, True).optimizer.chained_optimizers[0].optimizer).__module__,  # type: ignore[union-attr]
            "differences": [_difference(layout, overlap) for overlap in (False, True)],
        }
        continues = partial(_continues, layout)
        found["continues"] = [continues(Path(folder) / f"{sharded}", sharded) for sharded in (False, True)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
