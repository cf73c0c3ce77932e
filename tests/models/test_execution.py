"""How a model is computed changes memory and time, and not a bit of what is learned: recomputation, overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.models import layers
from gipo_mc.models.build import build_model
from gipo_mc.models.execution import Execution
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import MicroBatch, micro_batches
from gipo_mc.models.readout import group_probabilities, response_statistics, response_values
from gipo_mc.parallel import engine as engine_module
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine, Outputs
from gipo_mc.parallel.layout import Layout
from tests.models import tiny
from tests.ranks import LAYOUTS, parallel_config, run_ranks

LAYERS = 2
#: Five sequences of several lengths: three micro-batches on one replica, two and one on two.
PROMPTS = [[5, 6, 7], [8], [9, 10], [13], [14, 2, 3, 4]]
RESPONSES = [[20, 21], [22, 23, 130, 7, 7, 7], [24], [1, 2, 3], [40, 41, 42]]


def _engine(layout: Layout, head: Any, execution: Execution, *, tied: bool = False, **options: Any) -> Engine:
    shape = read_shape(tiny.config(num_hidden_layers=LAYERS, tie_word_embeddings=tied))
    groups = 2 if head == "critic" else 0
    model = build_model(
        shape, layout, head=head, groups=groups, dtype=torch.float32, trainable=True, seed=3, execution=execution
    )
    # The norm that clipping looks at is summed bucket by bucket, and its last digit depends on how many there are.
    return Engine(model, layout, OptimizerConfig(lr=1e-2, clip_grad=0), total_steps=9, **options)


def _loss(model: Any, hidden_LBH: Tensor, part: MicroBatch, *, rows: int, groups: bool = True) -> Outputs:
    if model.head == "lm":
        found = response_statistics(model, hidden_LBH, part, 1.0, rows)
        return {"loss": -(found.logp_N + 0.1 * found.entropy_N).sum() / 15, "seen": found.logp_N.detach()}
    values_BT = response_values(model, hidden_LBH, part)
    loss = values_BT.square().sum() / 15
    if groups:
        probs_BM = group_probabilities(model, hidden_LBH, part, reads="xy", detach=False)
        loss = loss + probs_BM.square().sum()
    return {"loss": loss, "seen": values_BT.detach().flatten()}


def _train(engine: Engine, loss: Any, *, steps: int = 2) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What forward passes say after each of some steps, and the weights at the end."""
    batch = to_sequences(PROMPTS, RESPONSES, 0)
    parts = micro_batches(batch, ParallelConfig(micro_batch_size=2), engine.layout).parts
    said = []
    for _ in range(steps):
        engine.forward_backward(parts, loss)
        engine.step()
        said += [output["seen"] for output in engine.forward(parts, loss)]
    engine.gather_weights()
    return said, {name: value.clone() for name, value in engine.model.named_parameters()}


def _same(one: tuple[list[Tensor], dict[str, Tensor]], other: tuple[list[Tensor], dict[str, Tensor]]) -> bool:
    same = all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    return same and one[1].keys() == other[1].keys() and all(torch.equal(one[1][key], other[1][key]) for key in one[1])


@contextmanager
def _calls(**methods: str) -> Iterator[Counter[str]]:
    """How often these methods of kinds of modules run, by kind and by whether the model is in training."""
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for kind, method in methods.items():
            plain = getattr(getattr(layers, kind), method)

            def run(self: Any, *args: Any, kind: str = kind, plain: Any = plain) -> Any:
                counts[f"{kind} {'training' if self.training else 'reading'}"] += 1
                return plain(self, *args)

            patch.setattr(getattr(layers, kind), method, run)
        yield counts


# ------------------------------------------------------------------------------------------------------ recomputation
def _recomputed(rank: int, layouts: tuple[str, ...]) -> list[str]:
    """What differs, a line each; called once for all layouts, since ranks take long to start."""
    problems = []
    for name in layouts:
        layout = runtime.initialize(parallel_config(**LAYOUTS[name])[0], "cpu")
        for head in ("lm", "critic"):
            found, ran = {}, {}
            for recompute in ("none", "selective", "full"):
                engine = _engine(layout, head, Execution(recompute), tied=head == "lm")
                with _calls(RMSNorm="after", CausalAttention="joined") as ran[recompute]:
                    found[recompute] = _train(engine, partial(_loss, rows=4))
            problems += [f"{name} {head} {way}" for way in found if not _same(found["none"], found[way])]
            once = ran["none"]["CausalAttention training"]
            # The norm behind the layers is never computed again.
            final = once // (LAYERS // layout.pipeline) * layout.is_last_stage
            norms = 2 * once + final
            expected = {"none": (once, norms), "selective": (2 * once, norms), "full": (2 * once, 4 * once + final)}
            for way, counts in ran.items():
                if (counts["CausalAttention training"], counts["RMSNorm training"]) != expected[way]:
                    problems.append(f"{name} {head} {way} ran {dict(counts)}, not {expected[way]}")
                if counts["CausalAttention reading"] != ran["none"]["CausalAttention reading"]:
                    problems.append(f"{name} {head} {way} recomputes where there is no backward pass")
    return problems


def test_recomputation_changes_no_bit_in_any_layout() -> None:
    assert run_ranks(_recomputed, 2, ("DP2", "TP2+SP", "PP2")) == [[], []]


# ------------------------------------------------------------------------------------------------------------ overlap
#: (head, tied, distributed optimizer).
CASES = (("lm", False, True), ("critic", False, True), ("lm", True, False))


def _overlapped(rank: int, layouts: tuple[str, ...]) -> list[str]:
    problems = []
    # Megatron's buckets hold 40 million parameters: here there are several.
    small = partial(engine_module.DistributedDataParallelConfig, bucket_size=4000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "DistributedDataParallelConfig", small)
        for name in layouts:
            layout = runtime.initialize(parallel_config(**LAYOUTS[name])[0], "cpu")
            for head, tied, sharded in CASES:
                case = f"{name} {head} tied={tied} sharded={sharded}"
                options: dict[str, Any] = {"tied": tied, "distributed_optimizer": sharded}
                loss = partial(_loss, rows=2, groups=False)  # no gradient reaches the classifier
                plain = _engine(layout, head, Execution(), **options)
                engine = _engine(layout, head, Execution("full"), overlap=True, **options)
                groups = [group for chunk in engine._wrapped for group in chunk.bucket_groups]  # type: ignore[union-attr]
                if layout.is_first_stage and len(groups) < 2:
                    problems.append(f"{case}: {len(groups)} buckets")
                ready = _ready(groups)
                if not _same(_train(plain, loss, steps=3), _train(engine, loss, steps=3)):
                    problems.append(f"{case}: other bits")
                unreached = {p for key, p in engine.model.named_parameters() if key.startswith("group_head")}
                # Behind the first stage all gradients are summed at once, in the bubble.
                expected = (
                    {}
                    if not layout.is_first_stage
                    else {parameter: 3 for group in groups for parameter in group.params - unreached}
                )
                if +ready != expected:
                    problems.append(f"{case}: ready {sorted(ready.values())} times in 3 steps")
    return problems


def _ready(groups: Any) -> Counter[Any]:
    """How often each parameter reports that its gradient is complete."""
    counts: Counter[Any] = Counter()
    for group in groups:

        def told(parameter: Any, *rest: Any, plain: Any = group.register_grad_ready, group: Any = group) -> None:
            counts[parameter] += group.is_last_microbatch
            plain(parameter, *rest)

        group.register_grad_ready = told
    return counts


def test_sums_and_gathers_beside_the_passes_change_no_bit_and_each_parameter_is_ready_once() -> None:
    assert run_ranks(_overlapped, 2, ("DP2", "PP2")) == [[], []]
