"""Several chunks of layers on each rank of a pipeline: the same numbers as with one, in training, generation, saves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch import Tensor

from gipo_mc.config import Config, OptimizerConfig, ParallelConfig
from gipo_mc.errors import ConfigError
from gipo_mc.generation.assemble import sampling_uniforms
from gipo_mc.generation.engine import Sampling
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import SafetensorsFolder, load_hf_weights
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from tests.models import tiny
from tests.models.test_layouts import as_hf
from tests.ranks import parallel_config, run_ranks

#: Lengths of micro-batches: fewer than ranks, as many, and a number that the ranks do not divide.
LENGTHS = ((9,), (14, 6), (9, 14, 6, 11, 3))


@dataclass(frozen=True)
class Part:
    tokens_BL: Tensor


def _parts(lengths: tuple[int, ...]) -> list[Part]:
    draw = torch.Generator().manual_seed(3)
    return [Part(torch.randint(0, 131, (2, length), generator=draw)) for length in lengths]


def _loss(model: Any, hidden_LBH: Tensor, part: Part) -> dict[str, Tensor]:
    logits = model.lm_logits(hidden_LBH.flatten(0, 1))  # those of padding are 0
    return {"loss": torch.sin(logits).square().sum() / 50, "length": torch.tensor(float(part.tokens_BL.shape[1]))}


def _engine(layout: Layout, folder: Path, **options: Any) -> Engine:
    model = build_model(read_shape(folder), layout, head="lm", dtype=torch.float32, trainable=True, initialize=False)
    load_hf_weights(model, folder)
    return Engine(model, layout, OptimizerConfig(lr=1e-2, clip_grad=0), **options)


def _generated(engine: Engine) -> list[list[int]]:
    """Tokens of prompts that share prefills, with as many groups of rows as ranks."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, 131, length).tolist() for length in (17, 3, 20) for _ in range(2)]
    prompts = [prompts[row - row % 2] for row in range(6)]
    generator = MegatronEngine(engine.model, None, 30)
    generator.groups = engine.layout.pipeline
    found = generator.generate(prompts, Sampling(max_new_tokens=8, eos_id=0), sampling_uniforms(1, "r", 0, range(6), 8))
    return found.response_BT.tolist()


def _numbers(layout: Layout, folder: Path) -> dict[str, Any]:
    """What a layout computes: outputs, gradients for each number of micro-batches, weights after two steps, tokens."""
    engine = _engine(layout, folder)
    found: dict[str, Any] = {}
    for lengths in LENGTHS:
        parts = _parts(lengths)
        outputs = engine.forward_backward(parts, _loss), engine.forward(parts, _loss)
        found |= {f"{len(lengths)}/{way}": out for way, out in zip(("trained", "read"), outputs, strict=True)}
        found |= {f"{len(lengths)}/{name}": value for name, value in as_hf(engine.model, "main_grad").items()}
    norms = []
    for _ in range(2):
        engine.forward_backward(_parts(LENGTHS[2]), _loss)
        norms.append(engine.step().grad_norm)
    return found | {"norms": norms, "tokens": _generated(engine), **as_hf(engine.model, "data")}


def _by_layouts(rank: int, folder: Path, layouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One layout after the other on the same ranks, as the trainings of one command may be."""
    found = []
    for sizes in layouts:
        with pytest.MonkeyPatch.context() as patch:
            if sizes["virtual_pipeline"] == 1:  # shapes that are known are not exchanged
                patch.setattr(P2PCommunicator, "_communicate_shapes", None)
            found.append(_numbers(runtime.initialize(parallel_config(**sizes)[0], "cpu"), folder))
    return found


@pytest.mark.parametrize("sizes", [{"pipeline": 2}, {"tensor": 2, "pipeline": 2, "sequence": True}])
def test_chunks_change_no_number(tmp_path: Path, sizes: dict[str, Any]) -> None:
    """Bit for bit: outputs, gradients, steps, tokens. The norm alone is summed over other parts of the model. The
    embedding is tied, so that the first chunk and the last one share it."""
    chunks = (1, 2, 4) if len(sizes) == 1 else (1, 2)
    tiny.save_lm(tmp_path, num_hidden_layers=2 * chunks[-1], tie_word_embeddings=True)
    results = run_ranks(
        _by_layouts, 2 * sizes.get("tensor", 1), tmp_path, [sizes | {"virtual_pipeline": count} for count in chunks]
    )
    plain, *others = ({name: v for result in results for name, v in result[n].items()} for n in range(len(chunks)))
    lengths = [[int(out["length"]) for out in plain[f"{len(wanted)}/read"]] for wanted in LENGTHS]
    assert lengths == [list(wanted) for wanted in LENGTHS]
    for found in others:
        assert found.pop("norms") == pytest.approx(plain["norms"], rel=1e-6)
        assert found.keys() == plain.keys() - {"norms"}
        for name, value in found.items():
            torch.testing.assert_close(value, plain[name], rtol=0, atol=0, msg=name)


def _saved(rank: int, folder: Path, out: Path, saved: dict[str, Any], others: list[dict[str, Any]]) -> Any:
    """A step, a checkpoint and an export with chunks; then in other layouts the step after it."""
    tiny.let_this_rank_write()
    expected: dict[str, dict[str, Tensor]] = {}
    found = []
    for sharded in (False, True):
        engine = _engine(runtime.initialize(parallel_config(**saved)[0], "cpu"), folder, distributed_optimizer=sharded)
        engine.forward_backward(_parts(LENGTHS[2]), _loss)
        engine.step()
        if rank == 0:
            (out / f"{sharded}").mkdir(parents=True)
        torch.distributed.barrier()
        sharded_files.write(engine.sharded_state("m"), out / f"{sharded}")
        export_hf_weights(engine.model, out / f"hf-{sharded}", shard_bytes=20_000)  # type: ignore[arg-type]
        engine.forward_backward(_parts(LENGTHS[0]), _loss)
        engine.step()
        expected |= as_hf(engine.model, "data")  # type: ignore[arg-type]
        for sizes in others:
            engine = _engine(
                runtime.initialize(parallel_config(**sizes)[0], "cpu"), folder, distributed_optimizer=sharded
            )
            state = sharded_files.read(engine.sharded_state("m", is_loading=True), out / f"{sharded}")
            engine.load_sharded_state("m", state)
            engine.forward_backward(_parts(LENGTHS[0]), _loss)
            engine.step()
            found.append(as_hf(engine.model, "data"))  # type: ignore[arg-type]
    return expected, found


def test_a_checkpoint_with_chunks_continues_in_every_layout_and_exports_the_same_model(tmp_path: Path) -> None:
    tiny.save_lm(tmp_path / "start", num_hidden_layers=8)
    chunked, plain = {"pipeline": 2, "virtual_pipeline": 2}, {"pipeline": 2}
    others = [chunked, plain, {"tensor": 2}]
    arguments = tmp_path / "start", tmp_path / "out", chunked, others
    results = run_ranks(_saved, 2, *arguments)
    expected = {name: value for wanted, _ in results for name, value in wanted.items()}
    for wanted, found in results:
        assert len(found) == 2 * len(others) and wanted
        for number, weights in enumerate(found):
            for name, value in weights.items():
                assert value.shape == expected[name].shape
                exact = number % len(others) < 2
                torch.testing.assert_close(value, expected[name], rtol=0, atol=0 if exact else 2e-4, msg=name)
    exported = SafetensorsFolder(tmp_path / "out" / "hf-False")
    start = SafetensorsFolder(tmp_path / "start")
    assert exported.shapes == start.shapes and len(set(exported.files.values())) > 4
    changed = [n for n in start.shapes if not torch.equal(exported.read(n, slice(None)), start.read(n, slice(None)))]
    assert len(changed) == len(start.shapes)


def test_layouts_that_cannot_be_are_refused_with_what_works() -> None:
    with pytest.raises(ValueError, match=r"virtual_pipeline=2 .* there is no pipeline: set parallel\.pipeline=2"):
        Config(parallel=ParallelConfig(virtual_pipeline=2))
    shape = read_shape(tiny.config(num_hidden_layers=12))
    shape.check(1, 2, 3)
    with pytest.raises(ConfigError) as error:
        shape.check(1, 2, 4)
    assert (
        "parallel.virtual_pipeline=4 does not divide the 6 layers that each of parallel.pipeline=2 ranks has: use one "
        "of 1, 2, 3, 6" in str(error.value)
    )
