"""Who writes which chunk; files that torch reads, with sums; pieces of the distributed optimizer."""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blake3 import blake3
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async

from gipo_mc.config import OptimizerConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.parallel import runtime, sharded_files
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.saving import files
from gipo_mc.parallel.saving.files import SummedFile, write_chunks
from gipo_mc.parallel.saving.optimizer_shards import FORMAT
from gipo_mc.parallel.saving.plan import Chunk, assigned, check_whole
from tests.models import tiny
from tests.ranks import parallel_config, run_ranks


def _chunk(key: str, size: int, offset: int = 0, whole: int = 0) -> Chunk:
    return Chunk(key, (offset,), (size,), (whole or size,), torch.uint8, size)


# ------------------------------------------------------------------------------------------------------- who writes
def test_what_all_hold_is_spread_evenly_around_what_one_holds() -> None:
    shared = [_chunk(f"w{i}", 10) for i in range(10)]
    own = _chunk("moment", 40)
    found = assigned([[*shared, own], shared])
    assert found[own] == 0 and len(found) == 11
    load = [sum(chunk.bytes for chunk, rank in found.items() if rank == of) for of in (0, 1)]
    assert load == [70, 70]
    assert assigned([[own, *reversed(shared)], shared]) == found, "the order in which they are named does not matter"


def test_a_tensor_with_a_hole_or_of_two_shapes_is_not_saved() -> None:
    check_whole({_chunk("a", 5, 0, 10): 0, _chunk("a", 5, 5, 10): 1})
    with pytest.raises(RuntimeError, match=r"do not agree on a: .* hold 5 elements"):
        check_whole({_chunk("a", 5, 0, 10): 0})
    with pytest.raises(RuntimeError, match="do not agree on a"):
        check_whole({_chunk("a", 5, 0, 10): 0, _chunk("a", 5, 5, 11): 0})


# ------------------------------------------------------------------------------------------------------------- files
def test_a_file_has_the_sums_that_reading_it_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART", 1000)
    for size in (0, 1, 999, 1000, 1001, 2500):
        data = os.urandom(size)
        file = SummedFile(tmp_path / "x")
        for begin in range(0, size, 700):
            file.write(data[begin : begin + 700])
        file.close()
        assert (tmp_path / "x").read_bytes() == data and file.size == size
        assert file.sums == [blake3(data[i : i + 1000]).hexdigest() for i in range(0, max(size, 1), 1000)]


def test_pieces_of_a_buffer_are_written_without_the_rest_and_without_a_copy(tmp_path: Path) -> None:
    """torch.save writes the storage behind a view, which is the whole buffer."""
    buffer = torch.randn(1_000_000)
    tensors = {
        "row": buffer[10:30].view(4, 5), "column": buffer[:100].view(10, 10)[:, 3], "half": buffer[5:9].bfloat16()[1:],
        "number": torch.tensor(3.0), "none": torch.empty(0, 4),
    }  # fmt: skip
    own = [(Chunk(name, (), (), (), t.dtype, t.nbytes), t) for name, t in tensors.items()]
    before = torch.serialization.get_crc32_options()
    written = write_chunks(own, tmp_path, 3)
    assert torch.serialization.get_crc32_options() == before
    assert [one.name for one in written] == ["__3_0.distcp", "__3_1.distcp"]
    for one in written:
        assert (tmp_path / one.name).stat().st_size == one.size < 10_000
        for key, _, begin, length in one.places:
            (tmp_path / "one").write_bytes((tmp_path / one.name).read_bytes()[begin : begin + length])
            assert torch.equal(torch.load(tmp_path / "one", weights_only=True), tensors[key]), key


# ------------------------------------------------------------------------------------- the distributed optimizer
def _trained(sizes: dict[str, Any], seed: int) -> Engine:
    layout = runtime.initialize(parallel_config(**sizes)[0], "cpu")
    shape = read_shape(tiny.config(num_hidden_layers=2, tie_word_embeddings=True))
    model = build_model(shape, layout, head="lm", dtype=torch.bfloat16, trainable=True, seed=seed)
    engine = Engine(model, layout, OptimizerConfig(lr=1e-2), distributed_optimizer=True)
    assert engine.optimizer is not None
    draw = torch.Generator().manual_seed(seed * 10 + layout.rank)
    for own in engine.optimizer.optimizer.state.values():  # type: ignore[attr-defined]
        for name in ("exp_avg", "exp_avg_sq"):
            own[name].copy_(torch.rand(own[name].shape, generator=draw))
        own["step"].fill_(3)
    return engine


def _both(rank: int, sizes: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Save as Megatron gathers it, and as this package does; load each into other engines: what those then hold."""
    engine = _trained(sizes, 1)
    for name in ("gathered", "pieces"):
        if rank == 0:
            (folder / name).mkdir(parents=True)
        dist.barrier()
        state = engine.sharded_state("m")
        if name == "pieces":
            sharded_files.write(state, folder / name)
            continue
        weights = engine.model.sharded_state_dict(prefix="m.model.")  # type: ignore[operator]
        state["m.optimizer"] = engine.optimizer.sharded_state_dict(  # type: ignore[union-attr]
            weights, metadata={"distrib_optim_sharding_type": FORMAT}
        )
        common = save_preprocess(dict(state), validate_access_integrity=False)[1]
        filesystem_async._results_queue = queue.Queue()  # as a manager process would start
        dist_checkpointing.save(state, str(folder / name), async_sharded_save=False)
        if rank == 0 and not (folder / name / "common.pt").exists():
            sharded_files.write_common(common, folder / name)  # 0.19 puts it among the objects; ours never was there
        dist.barrier()
    held = {}
    for name in ("gathered", "pieces"):
        other = _trained(sizes, 2)
        other.load_sharded_state("m", sharded_files.read(other.sharded_state("m", is_loading=True), folder / name))
        held |= {f"{name}/{key}": value.clone() for key, value in other.model.named_parameters()}
        for number, own in enumerate(other.optimizer.optimizer.state.values()):  # type: ignore[union-attr]
            held |= {f"{name}/{number}.{key}": value.clone() for key, value in own.items()}
    return held


def _plain(rank: int, folder: Path) -> dict[str, torch.Tensor]:
    runtime.initialize(parallel_config()[0], "cpu")
    loaded = dist_checkpointing.load_plain_tensors(str(folder))
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"data": 2, "pipeline": 2}])
def test_pieces_are_what_megatron_gathers_and_either_is_read(tmp_path: Path, sizes: dict[str, Any]) -> None:
    """Checkpoints of before were gathered."""
    ranks = parallel_config(**sizes)[1]
    for held in run_ranks(_both, ranks, sizes, tmp_path):
        names = [name.removeprefix("gathered/") for name in held if name.startswith("gathered/")]
        assert any(".exp_avg_sq" in name for name in names)
        for name in names:
            assert torch.equal(held[f"gathered/{name}"], held[f"pieces/{name}"]), name
    gathered, pieces = (run_ranks(_plain, 1, tmp_path / name)[0] for name in ("gathered", "pieces"))
    assert gathered.keys() == pieces.keys() and any("exp_avg_sq" in key for key in gathered)
    for key, value in gathered.items():
        assert pieces[key].dtype == value.dtype and torch.equal(pieces[key], value), key
