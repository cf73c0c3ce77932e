"""Logits a bounded number of rows at a time: the same numbers, and never more logits alive than asked for."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from gipo_mc.algorithms.group_source import GroupSource
from gipo_mc.algorithms.state import RLState
from gipo_mc.config import Config, OptimizerConfig, ParallelConfig, load_config
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import MicroBatch, micro_batches, run_backward
from gipo_mc.models.readout import response_statistics
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.timing import Phases
from gipo_mc.rl.scoring import Models, score
from gipo_mc.rl.shaping import shape as shape_experience
from gipo_mc.rl.update_policy import update_policy
from gipo_mc.supervised.sft import response_loss
from gipo_mc.types import Prompt, Rollout, Sequences
from tests.models import tiny
from tests.ranks import LAYOUTS, parallel_config, run_ranks

TEMPERATURE, ENTROPY = 1.3, 0.2


def _sequences(vocabulary: int, count: int = 6, longest: int = 9) -> Sequences:
    generator = torch.Generator().manual_seed(2)
    return Sequences(
        torch.randint(0, vocabulary, (count, 3 + longest), generator=generator),
        torch.arange(count) % 3 + 1,
        torch.arange(count) % longest + longest - count + 1,
    )


def _engine(layout: Layout, *, head: Any = "lm", dtype: torch.dtype = torch.float32, **changes: Any) -> Engine:
    shape = read_shape(tiny.config(num_hidden_layers=2, **changes))
    groups = 2 if head == "critic" else 0
    model = build_model(shape, layout, head=head, groups=groups, dtype=dtype, trainable=True, seed=3)
    return Engine(model, layout, OptimizerConfig(lr=1e-5))


# --------------------------------------------------------------------------------------------- the same numbers
def _by_chunks(rank: int, layout_options: dict[str, Any], tied: bool) -> list[tuple[dict[str, Tensor], Any, Any]]:
    """(scores without gradient, scores in training, gradients of this rank) for each number of rows."""
    parallel, _ = parallel_config(**layout_options)
    layout = runtime.initialize(parallel, "cpu")
    engine = _engine(layout, tie_word_embeddings=tied)
    sequences = _sequences(131)
    tokens = int(sequences.response_length_B.sum())
    weight_N = torch.randn(tokens, generator=torch.Generator().manual_seed(4))
    results = []
    for rows in (0, 1, 7, tokens - 1, tokens):

        def last_stage(model: Any, hidden_LBH: Tensor, part: MicroBatch, rows: int = rows) -> dict[str, Tensor]:
            found = response_statistics(model, hidden_LBH, part, TEMPERATURE, rows)
            loss = (weight_N * found.logp_N).sum() - ENTROPY * (weight_N.square() * found.entropy_N).sum()
            return {"loss": loss / tokens, "logp": found.logp_N, "entropy": found.entropy_N}

        parts = micro_batches(sequences, ParallelConfig(micro_batch_size=len(sequences)), layout).parts
        scored = engine.forward(parts, last_stage)[0]
        trained = engine.forward_backward(parts, last_stage)[0]
        results.append((scored, trained, {name: p.main_grad.clone() for name, p in engine.model.named_parameters()}))
    return results


@pytest.mark.parametrize(
    ("name", "tied"), [("1", False), ("1", True), ("TP2", False), ("TP2", True), ("TP2+SP", False)]
)
def test_any_number_of_rows_gives_the_same_scores_and_gradients(name: str, tied: bool) -> None:
    options = LAYOUTS[name]
    for results in run_ranks(_by_chunks, parallel_config(**options)[1], options, tied):
        whole, _, gradients = results[0]
        size = sum(float(gradient.double().square().sum()) for gradient in gradients.values())
        head = "embedding.word_embeddings.weight" if tied else "output_layer.weight"
        assert size > 0 and bool(gradients[head].any())
        for scored, trained, found in results:
            for output in ("logp", "entropy"):
                # A matrix product of another number of rows may round differently, so equal bits are not asked for.
                torch.testing.assert_close(scored[output], whole[output], rtol=1e-6, atol=2e-6)
                assert torch.equal(scored[output], trained[output]), "scoring and training part"
            assert found.keys() == gradients.keys()
            error = sum(float((found[key] - gradients[key]).double().square().sum()) for key in gradients)
            assert error <= 1e-6**2 * size * 4, (error / size) ** 0.5


def _precision(rank: int) -> list[float]:
    """Relative error of the head's bfloat16 gradient for (all rows at once, two at a time)."""
    layout = runtime.initialize(parallel_config()[0], "cpu")
    exact, rounded = _engine(layout), _engine(layout, dtype=torch.bfloat16)
    exact.model.load_state_dict(
        {name: value.float() for name, value in rounded.model.state_dict().items() if value is not None}, strict=False
    )
    sequences = _sequences(131, count=24, longest=30)
    parts = micro_batches(sequences, ParallelConfig(micro_batch_size=24), layout).parts

    def gradient(engine: Engine, rows: int) -> Tensor:
        def last_stage(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> dict[str, Tensor]:
            return {"loss": response_statistics(model, hidden_LBH, part, 1.0, rows).logp_N.mean()}

        engine.forward_backward(parts, last_stage)
        return engine.model.output_layer.weight.main_grad.clone()  # type: ignore[union-attr,return-value]

    wanted = gradient(exact, 0)
    return [float((gradient(rounded, rows) - wanted).norm() / wanted.norm()) for rows in (0, 2)]


def test_the_parts_of_a_bfloat16_gradient_are_added_in_float32() -> None:
    """Hundreds of parts added in bfloat16 would lose half of its digits."""
    whole, in_parts = run_ranks(_precision, 1)[0]
    assert whole > 0 and in_parts < 1.2 * whole, (whole, in_parts)


# --------------------------------------------------------------------------------------------------- and memory
VOCABULARY = 1024  # no other tensor of the model below has a dimension like it, the weights' first one apart


class LiveLogits(TorchDispatchMode):
    """Bytes of all tensors [*, V_local] that are alive at a time, whatever made them; views and weights not counted.

    peak: the most at any time, since `reset`.
    """

    def __init__(self, model: torch.nn.Module, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self._known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._live: dict[int, int] = {}
        self.peak = 0

    def reset(self) -> None:
        assert not self._live, f"logits outlived their step: {list(self._live.values())}"
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.columns:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known and key not in self._live:
                    self._live[key] = storage.nbytes()
                    weakref.finalize(storage, self._live.pop, key)
                    self.peak = max(self.peak, sum(self._live.values()))
        return result


def _peaks(
    rank: int, dtype: torch.dtype, reference: bool, settings: list[int], layout_options: dict[str, Any]
) -> list[dict[str, float]]:
    """For each number of rows the peaks of a PPO iteration's parts and of an SFT step, in rows of logits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIPO_MC_OPS", "reference" if reference else "native")
        layout = runtime.initialize(parallel_config(**layout_options)[0], "cpu")
        policy, critic = (_engine(layout, head=head, dtype=dtype, vocab_size=VOCABULARY) for head in ("lm", "critic"))
        live = LiveLogits(policy.model, VOCABULARY // layout.tensor)
        return [_peaks_of(rows, policy, critic, live, live.columns * dtype.itemsize) for rows in settings]


def _peaks_of(rows: int, policy: Engine, critic: Engine, live: LiveLogits, row: int) -> dict[str, float]:
    config: Config = load_config(
        None,
        [
            f"parallel.logit_rows={rows}",
            "parallel.micro_batch_size=6",
            "rollout.batch_size=6",
            "algorithm.mini_batch_size=6",
            "algorithm.epochs=2",  # the second one begins with a forward pass for the group statistics
            "algorithm.beta_ramp=0",
            f"algorithm.entropy_coef={ENTROPY}",
            f"rollout.temperature={TEMPERATURE}",
        ],
    )
    sequences = _sequences(VOCABULARY)
    count, times = len(sequences), int(sequences.response_length_B.max())
    prompts = [Prompt(index, (1,), "all", "") for index in range(count)]
    rollout = Rollout(
        sequences,
        torch.arange(count),
        ("all",) * count,
        torch.zeros(count, times),
        torch.zeros(count, dtype=torch.bool),
    )
    models = Models(policy, policy, critic, lambda prompts, rollout: torch.linspace(-1, 1, count))
    peaks: dict[str, float] = {}

    def measured(name: str, step: Callable[[], Any]) -> Any:
        live.reset()
        with live:
            result = step()
        peaks[name] = live.peak / row
        return result

    scores = measured("score", lambda: score(models, prompts, rollout, config, Phases(policy.layout)))
    experience, _ = shape_experience(rollout, scores, RLState.initial(2), config, GroupSource("classifier", 2))
    measured("ppo", lambda: update_policy(policy, experience, config, 0))

    def last_stage(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> dict[str, Tensor]:
        outputs = response_loss(model, hidden_LBH, part, rows)
        return outputs | {"loss": outputs["loss_sum"] / count}

    packed = micro_batches(sequences, config.parallel, policy.layout)
    measured("sft", lambda: run_backward(policy, packed, last_stage, {"tokens": 0}))
    live.reset()
    return peaks


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "1"), (torch.bfloat16, "1"), (torch.float32, "TP2+SP")])
def test_no_more_logits_are_alive_than_asked_for(dtype: torch.dtype, name: str) -> None:
    """Neither a second copy, nor one in float32, nor a gradient beside them: in scoring, PPO and SFT."""
    tokens = int(_sequences(VOCABULARY).response_length_B.sum())
    options = LAYOUTS[name]
    for whole, halves, few in run_ranks(
        _peaks, parallel_config(**options)[1], dtype, False, [0, tokens - 1, 5], options
    ):
        assert whole == dict.fromkeys(("score", "ppo", "sft"), tokens)
        assert halves == dict.fromkeys(("score", "ppo", "sft"), -(-tokens // 2))
        assert few == dict.fromkeys(("score", "ppo", "sft"), -(-tokens // -(-tokens // 5)))


def test_the_eager_reference_holds_several_copies() -> None:
    """Else the test above would count nothing."""
    tokens = int(_sequences(VOCABULARY).response_length_B.sum())
    (whole,) = run_ranks(_peaks, 1, torch.bfloat16, True, [0], {})[0]
    assert min(whole.values()) > 3 * tokens
