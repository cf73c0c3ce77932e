"""One iteration of GI-PPO from one Hugging Face checkpoint: the same in every layout and for every split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.models import micro_batch, readout
from gipo_mc.models.packing import Packer
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.rl import gi_ppo, update_policy
from gipo_mc.rl import metrics as metrics_module
from gipo_mc.rl.experience import ModelOutputs
from gipo_mc.rl.setup import restore, set_up
from gipo_mc.run.session import open_session
from gipo_mc.types import Rollout
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import GradientRecorder, rl_config, save_models, whole_gradients

#: Relative error of a step's whole gradient, in the L2 norm: fp32 sums in another order.
TOLERANCE = 1e-5
#: Metrics that are far enough from 0 for a relative error to mean something.
EXACT = {"critic/loss", "policy/grad_norm"}
#: R_var is made of differences of group means, which cancel where the groups are alike: an error e of the scores moves
#: it by at most 2 e sqrt(R_var), e = 1e-6 Std(S) here.
VARIANCES = {"group/variance", "policy/group_variance", "critic/group_variance"}
#: The forms of the method that take other paths: log pi R_t, a shared trunk, no critic and a trunk of its own.
VARIANTS = {
    # Raw sums of log pi G make weights of hundreds at beta 1, and amplify the rounding.
    "paper": ["algorithm.name=paper", "algorithm.signal=return", "algorithm.balance=0.1", "algorithm.beta_policy=0.1"],
    # With hard groups a mini-batch whose groups come out nearly alike leaves only rounding: not in this seed.
    "gi_rloo": ["algorithm.name=gi_rloo", "algorithm.assignment=hard", "rollout.samples_per_prompt=3", "run.seed=3"],
}


def _iterate(rank: int, folder: Path, models: dict[str, str], layout: dict[str, Any], overrides: list[str]) -> Any:
    """Metrics, rollout and the gradients of all optimizer steps of the first iteration, with parameters held still."""
    layout = {key: value for key, value in layout.items() if key != "data"}
    config = rl_config(folder, models, *overrides, **layout)
    recorder = GradientRecorder()
    Engine.step = lambda self: recorder(self)  # type: ignore[method-assign]  # this process is the test's own
    rollouts: list[Any] = []
    generate = gi_ppo.roll_out

    def keep(*args: Any, **kwargs: Any) -> Any:
        rollouts.append(generate(*args, **kwargs))
        return rollouts[-1]

    gi_ppo.roll_out = keep
    with open_session(config, "test") as session:
        setup = set_up(session)
        state, metrics = gi_ppo.iterate(session, setup, restore(session, setup), 0)
        engines = [engine for _, engine in sorted(setup.engines.items())]  # critic or classifier, then policy
        steps = len(recorder.gradients) // len(engines)
        engines = [engine for engine in engines for _ in range(steps)]
        gradients = [whole_gradients(e, g) for e, g in zip(engines, recorder.gradients, strict=True)]
    metrics = {
        name: value for name, value in metrics.items() if not name.startswith(("time/", "throughput/", "padding/"))
    }
    return metrics, rollouts[0], gradients, state


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"), layers=4)


def _run(tmp_path: Path, models: dict[str, str], name: str, overrides: list[str]) -> tuple[Any, Any, list[Any]]:
    """(metrics, tokens, gradients of each step over all stages) of a layout."""
    layout = LAYOUTS[name]
    ranks = layout.get("tensor", 1) * layout.get("pipeline", 1) * layout.get("data", 1)
    results = run_ranks(_iterate, ranks, tmp_path / name, models, layout, overrides)
    metrics, rollout, _, state = results[0]
    for other in results[1:]:
        assert other[0] == metrics and _same_tokens(other[1], rollout) and other[3] == state, "ranks differ"
    gradients = [
        {name: gradient for result in results for name, gradient in result[2][step].items()}
        for step in range(len(results[0][2]))
    ]
    return metrics, rollout, gradients


def _same_tokens(first: Rollout, second: Rollout) -> bool:
    return torch.equal(first.sequences.tokens_BL, second.sequences.tokens_BL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> tuple[Any, Any, list[Any]]:
    return _run(tmp_path_factory.mktemp("reference"), models, "1", [])


#: What generation took on the ranks of one replica.
OF_THE_LAYOUT = {
    "rollout/positions", "rollout/prefill_passes", "rollout/prefill_tokens", "rollout/decode_tokens",
    "rollout/kv_cache_gib",
}  # fmt: skip


def _assert_same(found: tuple[Any, Any, list[Any]], expected: tuple[Any, Any, list[Any]]) -> None:
    assert _same_tokens(found[1], expected[1]), "the rollouts differ"
    assert found[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        if name in OF_THE_LAYOUT:
            continue
        # Maxima of differences that are rounding themselves: both are tiny.
        slack = 1e-4 if name.startswith("rollout/logp_difference") else 2e-5
        assert found[0][name] == pytest.approx(value, rel=1e-4, abs=slack), name
    for name in EXACT & expected[0].keys():
        assert found[0][name] == pytest.approx(expected[0][name], rel=TOLERANCE, abs=0), name
    deviation = (expected[0]["group/variance"] / expected[0]["group/explained_share"]) ** 0.5
    for name in VARIANCES & expected[0].keys():
        value = expected[0][name]
        assert abs(found[0][name] - value) <= TOLERANCE * value + 2e-6 * deviation * value**0.5, name
    assert len(found[2]) == len(expected[2]) > 0
    for step, (own, wanted) in enumerate(zip(found[2], expected[2], strict=True)):
        assert own.keys() == wanted.keys()
        error = sum(float((own[name] - tensor).double().square().sum()) for name, tensor in wanted.items())
        size = sum(float(tensor.double().square().sum()) for tensor in wanted.values())
        assert size > 0 and error <= TOLERANCE**2 * size, (step, (error / size) ** 0.5)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "1"])
def test_every_layout_does_the_same_iteration(
    tmp_path: Path, models: dict[str, str], reference: tuple[Any, Any, list[Any]], name: str
) -> None:
    _assert_same(_run(tmp_path, models, name, []), reference)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_of_the_method_is_the_same_in_any_layout(
    tmp_path: Path, models: dict[str, str], variant: str
) -> None:
    overrides = [*VARIANTS[variant], "algorithm.epochs=1", "eval.prompts=0"]
    reference = _run(tmp_path / "one", models, "1", overrides)
    assert reference[0]["policy/group_variance"] > 0
    # On the pipeline a mini-batch is one micro-batch: there is no first pass, and the last stage alone knows R_var.
    layout, size = {"paper": ("DP2", 5), "gi_rloo": ("TP2xPP2", 64)}[variant]
    _assert_same(_run(tmp_path, models, layout, [*overrides, f"parallel.micro_batch_size={size}"]), reference)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_micro_batch_size_changes_nothing(
    tmp_path: Path, models: dict[str, str], reference: tuple[Any, Any, list[Any]], size: int
) -> None:
    _assert_same(_run(tmp_path, models, "1", [f"parallel.micro_batch_size={size}"]), reference)


@pytest.mark.parametrize(("name", "tokens"), [("1", 12), ("1", 50), ("DP2", 50), ("TP2xPP2", 50)])
def test_the_budget_of_tokens_changes_nothing(
    tmp_path: Path, models: dict[str, str], reference: tuple[Any, Any, list[Any]], name: str, tokens: int
) -> None:
    """12 tokens are fewer than some rows alone."""
    overrides = ["parallel.micro_batch_size=64", f"parallel.tokens_per_micro_batch={tokens}"]
    _assert_same(_run(tmp_path, models, name, overrides), reference)


def _in_float64(
    rank: int, folder: Path, models: dict[str, str], layout: dict[str, Any], overrides: list[str], rollout: Rollout
) -> tuple[dict[str, float], ModelOutputs, list[Any]]:
    """Metrics, model outputs and gradients of an iteration with this rollout, in float64 but for the float32 buffers in
    which Megatron adds up gradients: what is left of a difference is no rounding."""
    outputs: list[ModelOutputs] = []
    score = gi_ppo.score

    def keep(*args: Any) -> ModelOutputs:
        outputs.append(score(*args))
        return outputs[-1]

    def in_float64(*args: Any) -> dict[str, Tensor]:
        return {name: tensor.double() for name, tensor in replicate_rows(*args).items()}

    replicate_rows, micro_batch.replicate_rows = micro_batch.replicate_rows, in_float64

    runtime.resolve_dtype = lambda *_: torch.float64  # this process is the test's own, here and below
    gi_ppo.score, gi_ppo.roll_out = keep, lambda *_, **__: rollout
    for known in (readout.START_TOLERANCE, update_policy._KL_TOLERANCE):
        known[torch.float64] = known[torch.float32]
    metrics_module.SAMPLER_TOLERANCE["float64"] = metrics_module.SAMPLER_TOLERANCE["float32"]
    if not overrides:
        Packer.plan = lambda self, replicas: [[[row] for row in range(len(self.lengths))]]  # type: ignore[method-assign]
    metrics, _, gradients, _ = _iterate(rank, folder, models, layout, [*overrides, "eval.prompts=0"])
    return metrics, outputs[0], gradients


@pytest.mark.parametrize("name", ["1", "DP2"])
def test_sorted_rows_have_the_log_probs_and_gradients_of_unsorted_ones(
    tmp_path: Path, models: dict[str, str], reference: tuple[Any, Any, list[Any]], name: str
) -> None:
    """Passes of at most 60 tokens of rows of like length, against one row at a time in the order of the batch."""
    layout, budget = LAYOUTS[name], ["parallel.micro_batch_size=64", "parallel.tokens_per_micro_batch=60"]
    [(one, wanted, exact)] = run_ranks(_in_float64, 1, tmp_path / "one", models, LAYOUTS["1"], [], reference[1])
    found = run_ranks(_in_float64, layout.get("data", 1), tmp_path, models, layout, budget, reference[1])
    for metrics, outputs, gradients in found:
        for column in ("behaviour_logp_BT", "reference_logp_BT", "values_BT", "reward_B", "group_probs_BM"):
            assert torch.allclose(getattr(outputs, column), getattr(wanted, column), rtol=0, atol=1e-6), column
        for metric in VARIANCES:
            assert metrics[metric] == pytest.approx(one[metric], rel=1e-6, abs=0), metric
        for own, alone in zip(gradients, exact, strict=True):
            error = sum(float((own[name] - tensor).double().square().sum()) for name, tensor in alone.items())
            size = sum(float(tensor.double().square().sum()) for tensor in alone.values())
            assert size > 0 and error <= 1e-12 * size, (error / size) ** 0.5


def test_the_number_of_rows_of_logits_changes_nothing(
    tmp_path: Path, models: dict[str, str], reference: tuple[Any, Any, list[Any]]
) -> None:
    _assert_same(_run(tmp_path, models, "TP2", ["parallel.logit_rows=5"]), reference)


def test_the_iteration_has_every_metric_of_the_contract(reference: tuple[Any, Any, list[Any]]) -> None:
    metrics = reference[0]
    for name in (
        "reward/mean",
        "reward/std",
        "reward/domain/easy",
        "reward/domain/hard",
        *(f"group/{g}/{what}" for g in (0, 1) for what in ("mass", "reward", "objective", "kl")),
        "group/variance",
        "group/entropy",
        "kl/mean",
        "kl/weighted",
        *(f"policy/{what}" for what in ("loss", "clip_fraction", "entropy", "grad_norm", "ratio_max")),
        *(f"critic/{what}" for what in ("loss", "explained_variance", "grad_norm")),
        "response/length",
        "response/truncated",
    ):
        assert torch.isfinite(torch.tensor(metrics[name])), name
    assert metrics["kl/mean"] == pytest.approx(0.0, abs=1e-4), "policy and reference begin as one model"
    assert metrics["policy/grad_norm"] > 0 and metrics["critic/grad_norm"] > 0
