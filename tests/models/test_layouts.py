"""The same model in every layout: initial weights, gradients (against transformers' autograd), checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from torch import Tensor
from transformers import AutoModelForCausalLM

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.errors import ConfigError
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.stage import StageModel
from gipo_mc.models.weights.hf_load import load_hf_weights
from gipo_mc.models.weights.initialisation import RandomWeights
from gipo_mc.models.weights.table import EMBEDDING, OUTPUT, stage_mappings, trunk_tensors
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from tests.models.tiny import VARIANTS, config, let_this_rank_write, save_lm
from tests.ranks import LAYOUTS, parallel_config, run_ranks

ALL = LAYOUTS | {"TP2xPP2+SP": {"tensor": 2, "pipeline": 2, "sequence": True}, "PP4": {"pipeline": 4}}
SOME = {name: ALL[name] for name in ("TP2", "TP2xPP2+SP", "DP2")}
LENGTHS = (9, 14, 6, 11)  # micro-batches differ, and 9 and 11 are not multiples of the tensor ranks


@dataclass(frozen=True)
class Batch:
    tokens_BL: Tensor


def batches(vocab: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(11)
    return [Batch(torch.randint(0, vocab, (2, length), generator=draw)) for length in LENGTHS]


def weights(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(12))


def as_hf(model: StageModel, value: str) -> dict[str, Tensor]:
    """Parameters ("data") or accumulated gradients ("main_grad") of this stage as Hugging Face tensors, heads too."""
    found: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, mapping in stage_mappings(model).items():
        shard = getattr(parameters[name], value)
        shards = gather_in_rank_order(shard, parallel_state.get_tensor_model_parallel_group())
        for tensor, whole in mapping.merge(list(shards.unbind())).items():
            # Tied: both copies on first and last stage; they must agree.
            found["lm_head copy" if tensor in found or name.endswith("output_layer.weight") else tensor] = whole.clone()
    return found | {n: getattr(p, value).clone() for n, p in parameters.items() if "group_head." in n}


def loss_on_last_stage(model: StageModel, hidden_LBH: Tensor, batch: Batch) -> dict[str, Tensor]:
    """A loss that needs every logit or head output. On a tensor rank the logits' part is this shard's alone."""
    hidden = hidden_LBH.shape[-1]
    hidden_NH = hidden_LBH.transpose(0, 1).reshape(-1, hidden)
    if model.head == "lm":
        logits = model.lm_logits(hidden_NH)
        columns = weights(model.padded_vocab)
        columns[model.vocab_size :] = 0  # padding takes part in no loss
        shard = columns[model.vocab_start : model.vocab_start + logits.shape[1]]
        return {"loss": (torch.sin(logits) * shard).sum()}
    value = model.value(hidden_NH) if model.head == "critic" else model.reward(hidden_NH)
    loss = (value * weights(value.shape[0])).sum()
    if model.head == "critic":
        logits = model.group_logits(hidden_NH)
        loss = loss + (torch.softmax(logits, -1) * weights(*logits.shape)).sum()
    return {"loss": loss}


def gradients(rank: int, parallel: ParallelConfig, folder: Path, head: Any) -> dict[str, Tensor]:
    return stage_gradients(runtime.initialize(parallel, "cpu"), folder, head)


def stage_gradients(layout: Layout, folder: Path, head: Any) -> dict[str, Tensor]:
    """Gradients of this rank's stage, as Hugging Face tensors."""
    shape = read_shape(folder)
    model = build_model(shape, layout, head=head, groups=3, dtype=torch.float32, trainable=True, initialize=False)
    load_hf_weights(model, folder)
    if head != "lm" and layout.is_last_stage:  # a fresh head of 0 would send no gradient to the trunk
        scalar = model.value_head if head == "critic" else model.reward_head
        scalar.weight.data.copy_(weights(1, shape.hidden_size))
    engine = Engine(model, layout, OptimizerConfig())
    engine.forward_backward(batches(shape.vocab_size)[layout.data_rank :: layout.data], loss_on_last_stage)
    return as_hf(model, "main_grad")


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def gradient_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative error of each tensor; a tied model's copy of the embedding on the last stage counts, too."""
    output = OUTPUT if OUTPUT in expected else EMBEDDING
    return {
        tensor: relative_error(gradient, expected[output if tensor == "lm_head copy" else tensor])
        for tensor, gradient in found.items()
    }


def transformers_gradients(folder: Path) -> dict[str, Tensor]:
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    oracle.model.embed_tokens.padding_idx = None  # transformers drops the gradient of that token
    vocab = oracle.config.vocab_size
    for batch in batches(vocab):
        logits = oracle(batch.tokens_BL).logits.flatten(0, 1)
        columns = weights(-(-vocab // 64) * 64)[:vocab]
        (torch.sin(logits) * columns).sum().backward()
    return {name: parameter.grad for name, parameter in oracle.named_parameters()}


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_transformers_in_every_layout(name: str, tmp_path: Path) -> None:
    save_lm(tmp_path, **VARIANTS[name])
    expected = transformers_gradients(tmp_path)
    for layout, sizes in ALL.items():
        parallel, ranks = parallel_config(**sizes)
        for found in run_ranks(gradients, ranks, parallel, tmp_path, "lm"):
            errors = gradient_errors(found, expected)
            assert max(errors.values()) <= 1e-5, (layout, errors)


@pytest.mark.parametrize("head", ["critic", "reward"])
def test_head_and_trunk_gradients_do_not_depend_on_the_layout(head: str, tmp_path: Path) -> None:
    save_lm(tmp_path, **VARIANTS["llama3"])
    parallel, ranks = parallel_config()
    expected = run_ranks(gradients, ranks, parallel, tmp_path, head)[0]
    assert "score.weight" in expected and all(g.abs().max() > 0 for g in expected.values())
    for layout, sizes in SOME.items():
        parallel, ranks = parallel_config(**sizes)
        seen = set()
        for found in run_ranks(gradients, ranks, parallel, tmp_path, head):
            seen |= set(found)
            for tensor, gradient in found.items():
                assert relative_error(gradient, expected[tensor]) <= 1e-5, (layout, tensor)
        assert seen == set(expected)


def initial_weights(rank: int, parallel: ParallelConfig, head: Any, tied: bool) -> dict[str, Tensor]:
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(config(tie_word_embeddings=tied))
    return as_hf(build_model(shape, layout, head=head, groups=2, dtype=torch.float32, trainable=True, seed=9), "data")


@pytest.mark.parametrize(("head", "tied"), [("lm", False), ("lm", True), ("critic", False)])
def test_a_seed_gives_one_model_in_every_layout(head: str, tied: bool) -> None:
    shape = read_shape(config(tie_word_embeddings=tied))
    random = RandomWeights(shape, seed=9)
    first: dict[str, Tensor] = {}
    for layout, sizes in (LAYOUTS if head == "lm" else SOME).items():
        parallel, ranks = parallel_config(**sizes)
        for found in run_ranks(initial_weights, ranks, parallel, head, tied):
            for tensor, value in found.items():
                assert torch.equal(value, first.setdefault(tensor, value)), (layout, tensor)
    for tensor in trunk_tensors(shape):
        assert torch.equal(first[tensor], random.read(tensor, slice(None))), tensor
    if head == "lm":
        stream = "model.embed_tokens.weight" if tied else OUTPUT
        assert torch.equal(first["lm_head copy"], random.read(stream, slice(None)))
    else:
        assert not first["score.weight"].any() and first["group_head.output.weight"].any()
    other = RandomWeights(shape, seed=10).read("model.layers.0.self_attn.q_proj.weight", slice(None))
    assert not torch.equal(first["model.layers.0.self_attn.q_proj.weight"], other)


def save_sharded(rank: int, parallel: ParallelConfig, folder: Path, head: Any, tied: bool) -> dict[str, Tensor]:
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(config(tie_word_embeddings=tied))
    model = build_model(shape, layout, head=head, groups=2, dtype=torch.float32, trainable=True)
    for parameter in model.parameters():  # heads that start at 0 would hide a head that is not saved
        parameter.data.add_(0.125)
    let_this_rank_write()
    sharded_files.write(model.sharded_state_dict(), folder)
    return as_hf(model, "data")


def load_sharded(rank: int, parallel: ParallelConfig, folder: Path, head: Any, tied: bool) -> dict[str, Tensor]:
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(config(tie_word_embeddings=tied))
    model = build_model(shape, layout, head=head, groups=2, dtype=torch.float32, trainable=True, seed=77)
    loaded = sharded_files.read(model.sharded_state_dict(), folder)
    missing, unexpected = model.load_state_dict(loaded, strict=False)
    assert all(name.endswith("_extra_state") for name in [*missing, *unexpected])
    return as_hf(model, "data")


@pytest.mark.parametrize(("head", "tied"), [("lm", True), ("critic", False)])
def test_a_checkpoint_of_one_layout_loads_in_another(head: str, tied: bool, tmp_path: Path) -> None:
    saved: dict[str, Tensor] = {}
    parallel, ranks = parallel_config(**LAYOUTS["TP2xPP2"])
    for part in run_ranks(save_sharded, ranks, parallel, tmp_path, head, tied):
        saved |= part
    for layout in ("1", "TP2", "PP2", "DP2"):
        parallel, ranks = parallel_config(**LAYOUTS[layout])
        for found in run_ranks(load_sharded, ranks, parallel, tmp_path, head, tied):
            for tensor, value in found.items():
                key = "model.embed_tokens.weight" if tied and tensor == "lm_head copy" else tensor
                assert torch.equal(value, saved[key]), (layout, tensor)


def _odd_embedding(rank: int, parallel: ParallelConfig, folder: Path, save: bool) -> tuple[Tensor, Tensor]:
    """(embedding, Adam's first moment of it) of this rank, of a model that three ranks can share."""
    layout = runtime.initialize(parallel, "cpu")
    sizes = {"vocab_size": 70, "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}
    shape = read_shape(config(**sizes, num_hidden_layers=1))
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=True, seed=1 if save else 2)
    engine = Engine(model, layout, OptimizerConfig(lr=1e-2))
    if save:
        engine.forward_backward([Batch(torch.arange(70)[None])], loss_on_last_stage)
        engine.step()
        let_this_rank_write()
        sharded_files.write(engine.sharded_state("model"), folder)
    else:
        engine.load_sharded_state("model", sharded_files.read(engine.sharded_state("model", is_loading=True), folder))
    weight = model.embedding.word_embeddings.weight
    (part,) = engine.optimizer.chained_optimizers  # type: ignore[union-attr]
    return weight.detach(), part.optimizer.state[weight]["exp_avg"]


def test_a_checkpoint_loads_where_the_vocabulary_is_padded_otherwise(tmp_path: Path) -> None:
    """70 tokens are 128 rows for one rank and 192 for three: the rows that are tokens are the same, moments too."""
    one, three = parallel_config()[0], parallel_config(tensor=3)[0]
    ((weight, moment),) = run_ranks(_odd_embedding, 1, one, tmp_path, True)
    found = run_ranks(_odd_embedding, 3, three, tmp_path, False)
    assert weight.shape == (128, 48) and all(w.shape == (64, 48) for w, _ in found) and moment[:70].any()
    for whole, shards in ((weight, [w for w, _ in found]), (moment, [m for _, m in found])):
        assert torch.equal(torch.cat(shards)[:70], whole[:70])


def projection_memory(rank: int, parallel: ParallelConfig) -> None:
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(config())
    counts = {}
    for head in ("lm", "value", "reward", "critic"):
        model = build_model(shape, layout, head=head, groups=1, dtype=torch.bfloat16, trainable=head == "lm")  # type: ignore[arg-type]
        assert all(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
        assert all(parameter.requires_grad == (head == "lm") for parameter in model.parameters())
        assert model.training == (head == "lm")
        counts[head] = sum(parameter.numel() for parameter in model.parameters())
    projection = shape.padded_vocab(1) * shape.hidden_size
    assert counts["lm"] - counts["value"] == projection - shape.hidden_size
    assert counts["value"] == counts["reward"] < counts["critic"] < counts["lm"]
    hidden = torch.randn(5, shape.hidden_size, dtype=torch.bfloat16)
    model = build_model(shape, layout, head="critic", groups=3, dtype=torch.bfloat16, trainable=True)
    assert model.value(hidden).dtype is torch.float32 and model.value(hidden).shape == (5,)
    assert model.group_logits(hidden).dtype is torch.float32 and model.group_logits(hidden).shape == (5, 3)
    with pytest.raises(ConfigError, match=r"algorithm\.groups"):
        build_model(shape, layout, head="critic", groups=0, dtype=torch.bfloat16, trainable=True)


def test_only_language_models_hold_a_projection_and_heads_answer_in_float32() -> None:
    run_ranks(projection_memory, 1, ParallelConfig())


def logits_dtype(rank: int, parallel: ParallelConfig) -> None:
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(config())
    model = build_model(shape, layout, head="lm", dtype=torch.bfloat16, trainable=True)
    logits = model.lm_logits(torch.randn(5, shape.hidden_size, dtype=torch.bfloat16))
    assert logits.dtype is torch.bfloat16 and logits.shape == (5, 96) and logits.is_contiguous()
    assert model.vocab_start == 96 * rank and model.vocab_size == 131 and model.padded_vocab == 192


def test_logits_keep_the_models_dtype() -> None:
    parallel, ranks = parallel_config(tensor=2)
    run_ranks(logits_dtype, ranks, parallel)
