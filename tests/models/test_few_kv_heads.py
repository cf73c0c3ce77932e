"""More tensor-parallel ranks than key-value heads: ranks that share a head all read it, and no number changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gipo_mc.config import OptimizerConfig
from gipo_mc.generation.engine import Sampling
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.kv_cache import PAGE, page_bytes
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import SafetensorsFolder, load_hf_weights
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from tests.models.test_layouts import (
    as_hf,
    batches,
    gradient_errors,
    loss_on_last_stage,
    stage_gradients,
    transformers_gradients,
)
from tests.models.tiny import let_this_rank_write, save_lm
from tests.ranks import parallel_config, run_ranks

#: Family -> what is not `tiny.config`'s. 2 key-value heads for 4 ranks; with biases; with norms of heads; 1 head.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"num_attention_heads": 8, "num_key_value_heads": 1},
}
PROMPTS = [[5, 6, 7, 8], [9], list(range(20, 40))]
NEW = 4


def _stepped(layout: Layout, folder: Path, shards: Path, *, load: bool) -> dict[str, Tensor]:
    """Weights after a step, which is written; or after a second one, behind the first of another layout."""
    shape = read_shape(folder)
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=True, initialize=False)
    load_hf_weights(model, folder)
    engine = Engine(model, layout, OptimizerConfig(lr=1e-3))
    if load:
        engine.load_sharded_state("m", sharded_files.read(engine.sharded_state("m", is_loading=True), shards))
    engine.forward_backward(batches(shape.vocab_size), loss_on_last_stage)
    engine.step()
    if not load:
        sharded_files.write(engine.sharded_state("m"), shards)
        return _stepped(layout, folder, shards, load=True)
    return as_hf(model, "data")


def _on_four(rank: int, folder: Path, family: str) -> Any:
    """Gradients, greedy tokens, and the weights behind a checkpoint; an export as a folder."""
    layout = runtime.initialize(parallel_config(tensor=4, sequence=True)[0], "cpu")
    gradients = stage_gradients(layout, folder / family, "lm")
    shape = read_shape(folder / family)
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=False, initialize=False)
    load_hf_weights(model, folder / family)
    export_hf_weights(model, folder / f"{family}-exported")
    found = MegatronEngine(model).generate(PROMPTS, Sampling(max_new_tokens=NEW, eos_id=0, greedy=True))
    assert page_bytes(shape, layout, torch.float32) == 2 * shape.layers * 1 * PAGE * shape.head_dim * 4
    return gradients, found.response_BT.tolist()


def _all_on_four(rank: int, folder: Path) -> Any:
    found = {family: _on_four(rank, folder, family) for family in MODELS}
    let_this_rank_write()
    layout = runtime.initialize(parallel_config(tensor=4, sequence=True)[0], "cpu")
    return found, _stepped(layout, folder / "llama", folder / "shards", load=False)


def _on_one(rank: int, folder: Path) -> dict[str, Tensor]:
    layout = runtime.initialize(parallel_config()[0], "cpu")
    return _stepped(layout, folder / "llama", folder / "shards", load=True)


def test_ranks_that_share_a_key_value_head_compute_what_one_rank_does(tmp_path: Path) -> None:
    for family, changes in MODELS.items():
        save_lm(tmp_path / family, family, num_hidden_layers=2, **changes)
    (tmp_path / "shards").mkdir()
    results = run_ranks(_all_on_four, 4, tmp_path)
    (continued,) = run_ranks(_on_one, 1, tmp_path)
    for _, after in results:
        for name, value in continued.items():
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-5, msg=name)
    for family in MODELS:
        expected, said = transformers_gradients(tmp_path / family), _greedy(tmp_path / family)
        for found, _ in results:
            gradients, tokens = found[family]
            errors = gradient_errors(gradients, expected)
            assert max(errors.values()) <= 1e-5 and tokens == said, (family, errors)
        start, copy = SafetensorsFolder(tmp_path / family), SafetensorsFolder(tmp_path / f"{family}-exported")
        assert start.shapes == copy.shapes
        assert all(torch.equal(start.read(n, slice(None)), copy.read(n, slice(None))) for n in start.shapes), family


def _greedy(folder: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for ids in PROMPTS:
        tokens = torch.tensor([ids])
        mask = torch.ones_like(tokens)
        out = model.generate(tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        found.append(out[0, len(ids) :].tolist())
    return found
