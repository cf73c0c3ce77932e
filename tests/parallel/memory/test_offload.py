"""The offloader: what is on the device when, and whole runs that it does not change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor, UntypedStorage

from gipo_mc.config import ParallelConfig
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.memory.offload import Offloader, Resident
from gipo_mc.parallel.memory.snapshot import optimizer_tensors
from gipo_mc.plan.hardware import hardware
from gipo_mc.plan.plan import make_plan
from gipo_mc.plan.run import read_run
from gipo_mc.rl import gi_ppo
from tests.ranks import run_ranks
from tests.runs import read_metrics, rl_config, save_models

FAST = ["rollout.batch_size=12", "algorithm.mini_batch_size=6", "algorithm.epochs=1", "parallel.micro_batch_size=12"]
FAST += ["data.max_rows=12", "eval.prompts=2", "run.iterations=1"]
EVERYTHING = "memory.offload=[frozen,optimizer,idle]"


# ------------------------------------------------------------------------------------------------ with a mover of paper
class _Paper:
    """Moves at once, and notes what."""

    place = "paper"

    def __init__(self) -> None:
        self.moved: list[str] = []

    def room(self, name: str, storages: Sequence[UntypedStorage]) -> _PaperCopy:
        return _PaperCopy(name.removeprefix("the "), storages, self.moved)

    def close(self) -> None:
        self.moved.append("closed")


class _PaperCopy:
    size = 0

    def __init__(self, name: str, storages: Sequence[UntypedStorage], moved: list[str]) -> None:
        self._name, self._storages, self._moved = name, storages, moved
        self._contents = [storage.clone() for storage in storages]

    def save(self) -> _PaperCopy:
        self._moved.append(f"- {self._name}")
        for storage, content in zip(self._storages, self._contents, strict=True):
            content.copy_(storage)
            storage.resize_(0)
        return self

    def load(self) -> _PaperCopy:
        self._moved.append(f"+ {self._name}")
        for storage, content in zip(self._storages, self._contents, strict=True):
            storage.resize_(content.nbytes())
            storage.copy_(content)
        return self

    def close(self) -> None:
        self._moved.append(f"x {self._name}")

    def wait(self) -> None:
        return None


class _Model:
    """Tensors of a model: weights, and where it is trained gradients and moments."""

    def __init__(self, trained: bool) -> None:
        self.weights = [torch.ones(4), torch.ones(2)]
        self.gradients = [torch.zeros(6)] if trained else []
        self.moments = [torch.full((6,), 2.0)] if trained else []

    def given_to(self, offloader: Offloader, name: str) -> Resident:
        # The weights are among the optimizer's tensors, as in float32.
        found = offloader.take(
            name, lambda: self.weights, lambda: self.gradients, lambda: [*self.weights, *self.moments]
        )
        assert found is not None
        return found

    @property
    def here(self) -> str:
        """Letters of what is on the device."""
        parts = {"w": self.weights, "g": self.gradients, "o": self.moments}
        return "".join(
            letter for letter, tensors in parts.items() if tensors and tensors[0].untyped_storage().nbytes() > 0
        )


def _all_here(models: dict[str, _Model]) -> dict[str, str]:
    return {name: model.here for name, model in models.items() if model.here}


def test_a_save_copies_a_model_only_where_something_of_it_leaves() -> None:
    """With memory.offload=[frozen] the trained models stay, and their checkpoint is written from where they are."""
    weights = torch.ones(3)
    state = {"m": ShardedTensor.from_rank_offsets("m", weights)}
    for kinds, copied in ((["frozen"], False), (["optimizer"], True)):
        resident = _Model(trained=True).given_to(Offloader(kinds, _Paper()), "policy")  # type: ignore[arg-type]
        engine: Any = SimpleNamespace(whole=nullcontext, sharded_state=lambda prefix: state, resident=resident)
        found = Engine.snapshot(engine, "policy")
        assert (found is not state) is copied
        assert (found["m"].data.data_ptr() != weights.data_ptr()) is copied


def test_two_models_score_beside_each_other_and_one_trains_alone() -> None:
    paper = _Paper()
    offloader = Offloader(["frozen", "optimizer", "idle"], paper)
    models = {name: _Model(name in ("policy", "critic")) for name in ("policy", "reference", "critic", "reward")}
    take = {name: model.given_to(offloader, name) for name, model in models.items()}
    offloader.in_turn(take[name] for name in ("policy", "reference", "critic", "reward", "critic"))
    assert _all_here(models) == {}
    paper.moved.clear()

    take["policy"].generate()
    assert _all_here(models) == {"policy": "w"}, "the KV cache wants the room"
    take["policy"].score()
    assert _all_here(models) == {"policy": "w", "reference": "w"}
    take["reference"].score()
    assert _all_here(models) == {"reference": "w", "critic": "w"}
    take["critic"].score()
    take["reward"].score()
    assert _all_here(models) == {"reward": "w", "critic": "w"}
    assert paper.moved == [f"+ weights of {name}" for name in ("policy", "reference", "critic", "reward")]

    take["critic"].train()
    assert _all_here(models) == {"critic": "wgo"}, "the optimizer's state is on its way"
    take["critic"].step()
    models["critic"].weights[0] += 1
    models["critic"].moments[0] += 1
    take["critic"].score()  # the probabilities of a mini-batch
    assert _all_here(models) == {"critic": "wgo"}
    paper.moved.clear()
    take["policy"].train()
    assert _all_here(models) == {"policy": "wgo"}
    assert paper.moved[:2] == ["- weights of critic", "- optimizer state of critic"], "gradients are not kept"

    paper.moved.clear()
    with take["critic"].whole():
        assert _all_here(models) == {"critic": "wo"}
        assert models["critic"].weights[0].tolist() == [2.0] * 4 and models["critic"].moments[0].tolist() == [3.0] * 6
    assert _all_here(models) == {}
    assert "- weights of critic" not in paper.moved, "what did not change is not copied again"
    offloader.close()
    assert paper.moved[-1] == "closed"


def test_what_is_not_named_stays_and_a_model_out_of_turn_is_only_not_expected() -> None:
    offloader = Offloader(["frozen"], _Paper())
    policy, reference, gold = _Model(True), _Model(False), _Model(False)
    ours, theirs, last = (m.given_to(offloader, n) for m, n in ((policy, "p"), (reference, "r"), (gold, "g")))
    offloader.in_turn([ours, theirs])
    assert (policy.here, reference.here, gold.here) == ("wgo", "", "")
    ours.score()
    assert (reference.here, gold.here) == ("w", "")
    last.score()
    assert (reference.here, gold.here) == ("", "w")
    theirs.score()
    assert (reference.here, gold.here) == ("w", "")
    ours.train()
    ours.score()  # the first pass over a mini-batch
    assert (policy.here, reference.here, gold.here) == ("wgo", "", "")
    assert Offloader().take("x", lambda: [torch.ones(1)], list, list) is None


def test_an_optimizer_that_was_given_new_tensors_leaves_with_these() -> None:
    """As torch's `load_state_dict` does."""
    paper = _Paper()
    offloader, model = Offloader(["optimizer"], paper), _Model(True)
    resident = model.given_to(offloader, "policy")
    with resident.whole(changes=True):
        model.moments = [torch.full((6,), 7.0)]
    assert model.here == "wg" and "x optimizer state of policy" in paper.moved
    resident.step()
    assert model.moments[0].tolist() == [7.0] * 6


def test_the_header_says_what_the_host_keeps() -> None:
    """Weights of 6 numbers and moments of 6, of 4 bytes; gradients are freed."""
    offloader = Offloader(["idle", "optimizer"], _Paper())
    _Model(True).given_to(offloader, "policy")
    assert offloader.kept == 4 * (6 + 6)
    assert offloader.describe() == "idle, optimizer: 0.00 GiB a rank, to paper"


# ----------------------------------------------------------------------------------------------------------- whole runs
def _bytes_here(engines: Sequence[Engine]) -> int:
    """Of weights, gradient buffers and optimizer states, each storage once."""

    def tensors(engine: Engine) -> Iterator[Tensor]:
        yield from engine.model.parameters()
        yield from (buffer.grad_data for buffer in engine._buffers)
        if engine.optimizer is not None:
            yield from optimizer_tensors(engine.optimizer)

    storages = [tensor.untyped_storage() for engine in engines for tensor in tensors(engine)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _train(rank: int, folder: Path, models: dict[str, str], attempts: Sequence[tuple[str, list[str]]]) -> list[int]:
    """Most bytes of all models together at the passes and steps of each run; each is (name, options)."""
    engines: list[Engine] = []
    most = 0
    plain_init, plain_run, plain_step = Engine.__init__, Engine._run, Engine.step

    def init(self: Engine, *args: Any, **kwargs: Any) -> None:
        engines.append(self)
        plain_init(self, *args, **kwargs)

    def run(self: Engine, *args: Any, **kwargs: Any) -> Any:
        nonlocal most
        most = max(most, _bytes_here(engines))
        return plain_run(self, *args, **kwargs)

    def step(self: Engine) -> Any:
        nonlocal most
        result = plain_step(self)
        most = max(most, _bytes_here(engines))
        return result

    Engine.__init__, Engine._run, Engine.step = init, run, step  # type: ignore[method-assign]  # a process of its own
    found = []
    for name, options in attempts:
        engines.clear()
        most = 0
        gi_ppo.train(rl_config(folder, models, *FAST, f"run.name={name}", *options))
        found.append(most)
    return found


def _tensors(rank: int, checkpoints: list[Path]) -> list[dict[str, Any]]:
    from megatron.core import dist_checkpointing

    runtime.initialize(ParallelConfig(timeout_minutes=1), "cpu")
    return [dist_checkpointing.load_plain_tensors(str(path / "shards")) for path in checkpoints]


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Without times."""
    rows = read_metrics(run)
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "throughput/"))} for row in rows
    ]


def _assert_same(folder: Path, pairs: Sequence[tuple[str, str]], step: int) -> None:
    """Every metric but times, and every tensor of the last checkpoint."""
    names = [name for pair in pairs for name in pair]
    found = run_ranks(_tensors, 1, [folder / name / "checkpoints" / f"step_{step:08d}" for name in names])[0]
    for number in range(0, len(names), 2):
        own, wanted = found[number : number + 2]
        assert own.keys() == wanted.keys()
        for key, value in own.items():
            assert not isinstance(value, Tensor) or torch.equal(value, wanted[key]), key
        assert _metrics(folder / names[number]) == _metrics(folder / names[number + 1])


def test_a_run_is_the_same_to_the_bit_and_its_models_take_less(tmp_path: Path) -> None:
    """On one rank, stopped and continued with the other setting; the classifier is a model of its own."""
    models = save_models(tmp_path / "models")
    own, two = ["algorithm.group_trunk=own", "eval.every=1"], "run.iterations=2"
    attempts = [
        ("plain", [*own, two]),
        ("moved", [*own, "memory.offload=[optimizer]"]),
        ("moved", [*own, two, EVERYTHING]),
    ]
    ((plain, first, second),) = run_ranks(_train, 1, tmp_path, models, attempts)
    _assert_same(tmp_path, [("plain", "moved")], 2)
    # Three models with gradients and moments and two frozen ones; the largest one is all that lies there in the end.
    plan = make_plan(read_run(rl_config(tmp_path, models, *FAST, *own, EVERYTHING)), 1, hardware("cpu"))
    planned = [[peak.kinds[kind] for kind in ("weights", "gradients", "optimizer")] for peak in plan.memory.peaks]
    assert second == pytest.approx(max(map(sum, planned)), rel=1e-3), "but for the counts of steps"
    assert second < 0.35 * plain and second < 0.6 * first < 0.6 * plain
    assert all(row["time/offload"] > 0 for row in read_metrics(tmp_path / "moved")[1:])
    assert not any("time/offload" in row for row in read_metrics(tmp_path / "plain"))
    about = json.loads((tmp_path / "moved" / "about.json").read_text())
    assert any(label == "offload" and "GiB a rank" in text for label, text in about)


def _kept(rank: int, folder: Path, models: dict[str, str]) -> int:
    """Bytes that the header of a run tells."""
    found, close = [], Offloader.close

    def noted(self: Offloader) -> None:
        found.append(self.kept)
        close(self)

    Offloader.close = noted  # type: ignore[method-assign]  # a process of its own
    gi_ppo.train(rl_config(folder, models, *FAST, EVERYTHING))
    return found[0]


def test_the_header_of_a_run_says_what_the_plan_says(tmp_path: Path) -> None:
    models = save_models(tmp_path / "models")
    (told,) = run_ranks(_kept, 1, tmp_path, models)
    plan = make_plan(read_run(rl_config(tmp_path, models, *FAST, EVERYTHING)), 1, hardware("cpu"))
    assert told == pytest.approx(plan.memory.offloaded, rel=1e-3), "but for the counts of steps"


def test_layouts_are_the_same_to_the_bit(tmp_path: Path) -> None:
    """Tensor parallelism; the distributed optimizer in bfloat16, whose weights lie in one buffer, tied ones too."""
    models = save_models(tmp_path / "models", model_type="qwen2")
    sharded = ["parallel.distributed_optimizer=on", "parallel.overlap=on", "dtype=bfloat16"]
    attempts = [
        ("model", ["parallel.tensor=2"]),
        ("model_moved", ["parallel.tensor=2", EVERYTHING]),
        ("data", sharded),
        ("data_moved", [*sharded, EVERYTHING]),
    ]
    for plain, moved, data, data_moved in run_ranks(_train, 2, tmp_path, models, attempts):
        assert moved < 0.5 * plain and data_moved < 0.5 * data
    _assert_same(tmp_path, [("model", "model_moved"), ("data", "data_moved")], 1)
