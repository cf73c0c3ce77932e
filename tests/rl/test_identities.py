"""What must hold exactly in the first iteration, and which settings are one and the same algorithm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_mc.algorithms.group_invariance import (
    beta_at,
    bounded_beta,
    group_statistics,
    length_factor,
    moments,
    relative_weight,
    signal_gradient,
)
from gipo_mc.config import Config
from gipo_mc.models.micro_batch import MicroBatch, PackedBatch
from gipo_mc.models.readout import response_statistics
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.step_checks import StepResult
from gipo_mc.rl import gi_ppo, update_policy
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.mini_batch import MiniBatch, mini_batches
from gipo_mc.rl.setup import restore, set_up
from gipo_mc.run.session import open_session
from tests.ranks import run_ranks
from tests.runs import rl_config, save_models

FAST = ["eval.prompts=0", "rollout.batch_size=12", "algorithm.mini_batch_size=6", "algorithm.epochs=1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _iterations(rank: int, folder: Path, models: dict[str, str], overrides: list[str], count: int) -> Any:
    """(metrics of each iteration, parameters of policy and critic afterwards, experience of each iteration)."""
    experiences: list[Experience] = []
    shape = gi_ppo.shape

    def keep(*args: Any) -> Any:
        experience, state = shape(*args)
        experiences.append(experience)
        return experience, state

    gi_ppo.shape = keep  # this process is the test's own
    with open_session(rl_config(folder, models, *FAST, *overrides), "test") as session:
        setup = set_up(session)
        state = restore(session, setup)
        metrics = []
        for step in range(count):
            state, found = gi_ppo.iterate(session, setup, state, step)
            metrics.append(found)
        parameters = {
            role: {name: p.detach().clone() for name, p in engine.model.named_parameters()}
            for role, engine in setup.engines.items()
        }
    return metrics, parameters, experiences


def _run(tmp_path: Path, models: dict[str, str], name: str, *overrides: str, count: int = 2) -> Any:
    return run_ranks(_iterations, 1, tmp_path / name, models, list(overrides), count)[0]


def test_the_first_update_begins_where_the_rollout_was(tmp_path: Path, models: dict[str, str]) -> None:
    """Policy = reference = behaviour: KL 0; the first (here the only) mini-batch has ratio 1."""
    metrics, _, (experience,) = _run(tmp_path, models, "run", "algorithm.mini_batch_size=12", count=1)
    first = metrics[0]
    assert first["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert first["policy/clip_fraction"] == 0.0 and first["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    for name in ("kl/mean", "kl/weighted", "kl/per_token", "group/0/kl", "group/1/kl"):
        assert first[name] == pytest.approx(0.0, abs=1e-6), name
    assert first["rollout/logp_difference"] < 1e-4
    assert first["policy/grad_norm"] > 0 and first["critic/grad_norm"] > 0 and first["policy/skipped"] == 0
    assert all(math.isfinite(value) for value in first.values()), first
    assert first["group/0/mass"] + first["group/1/mass"] == pytest.approx(1.0)
    # With the ratio at 1 the surrogate is the sum of the whitened advantages over the response tokens: 0.
    assert first["policy/loss"] == pytest.approx(0.0, abs=1e-5)
    assert torch.equal(experience.outputs.behaviour_logp_BT, experience.outputs.reference_logp_BT)
    assert torch.allclose(experience.outputs.group_probs_BM.sum(1), torch.ones(12))


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of parameters that differ, of those that both have."""
    return [name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])]


GROUPS_OFF = {
    "one group": ["algorithm.groups=1"],
    "equal probabilities": ["algorithm.groups_from=uniform", "algorithm.kl_penalty=fixed"],
    # eta p = 0.1 / 2 of twice the coefficient.
    "equal probabilities, adaptive KL": ["algorithm.groups_from=uniform", "algorithm.kl_coef=0.2"],
    "group-DRO of one group": ["algorithm.groups_from=uniform", "algorithm.groups=1", "algorithm.penalty=group_dro"],
    "no penalty, fixed KL, no classifier": [
        "algorithm.beta_policy=0",
        "algorithm.beta_critic=0",
        "algorithm.kl_penalty=fixed",
        # The global norm of a critic with a classifier adds up more terms, zeros among them: other last bits.
        "critic.clip_grad=0",
    ],
    # beta 0 still trains the classifier, whose gradient must not reach the values.
    "no penalty, fixed KL": [
        "algorithm.beta_policy=0",
        "algorithm.kl_penalty=fixed",
        "critic.clip_grad=0",
    ],
}


@pytest.fixture(scope="module")
def ppo(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ppo")
    return {
        "clipped": _run(folder, models, "clipped", "algorithm.name=ppo"),
        "free": _run(folder, models, "free", "algorithm.name=ppo", "critic.clip_grad=0"),
    }


@pytest.mark.parametrize("name", list(GROUPS_OFF))
def test_gi_ppo_without_its_parts_is_ppo_bit_for_bit(
    tmp_path: Path, models: dict[str, str], ppo: dict[str, Any], name: str
) -> None:
    overrides = GROUPS_OFF[name]
    expected = ppo["free" if "critic.clip_grad=0" in overrides else "clipped"]
    metrics, parameters, experiences = _run(tmp_path, models, "gi", *overrides)
    for own, wanted in zip(experiences, expected[2], strict=True):
        assert torch.equal(own.rollout.sequences.tokens_BL, wanted.rollout.sequences.tokens_BL)
        assert torch.equal(own.inputs.advantage_BT, wanted.inputs.advantage_BT)
        assert torch.equal(own.inputs.kl_weight_B, wanted.inputs.kl_weight_B)
    for role in ("policy", "critic"):
        assert _same(parameters[role], expected[1][role]) == [], role
    assert metrics[1]["policy/grad_norm"] == expected[0][1]["policy/grad_norm"] > 0


def test_its_parts_do_something(tmp_path: Path, models: dict[str, str], ppo: dict[str, Any]) -> None:
    """Else the identities above would hold for nothing."""
    expected = ppo["clipped"]
    adaptive = _run(tmp_path, models, "adaptive", "algorithm.beta_policy=0")
    assert (adaptive[2][0].inputs.kl_weight_B < 0.1).all() and (adaptive[2][0].inputs.kl_weight_B > 0).all()
    assert _same(adaptive[1]["policy"], expected[1]["policy"])
    penalty = _run(tmp_path, models, "penalty", "algorithm.kl_penalty=fixed", "algorithm.beta_policy=0.3")
    assert torch.equal(penalty[2][0].inputs.advantage_BT, expected[2][0].inputs.advantage_BT)
    assert _same(penalty[1]["policy"], expected[1]["policy"])


def test_ppo_without_kl_is_ppo_with_a_coefficient_of_zero(tmp_path: Path, models: dict[str, str]) -> None:
    without = _run(tmp_path, models, "without", "algorithm.name=ppo_no_kl", "algorithm.kl_coef=0.3")
    zero = _run(tmp_path, models, "zero", "algorithm.name=ppo", "algorithm.kl_coef=0")
    for role in ("policy", "critic"):
        assert without[1][role].keys() == zero[1][role].keys() and _same(without[1][role], zero[1][role]) == []
    assert without[0][1]["kl/mean"] != 0.0, "the KL is still measured"


def test_exact_and_rollout_statistics_part_only_after_the_first_step(tmp_path: Path, models: dict[str, str]) -> None:
    single = ["algorithm.mini_batch_size=12"]
    exact = _run(tmp_path, models, "exact", *single, "algorithm.group_statistics=exact", count=1)
    rollout = _run(tmp_path, models, "rollout", *single, "algorithm.group_statistics=rollout", count=1)
    for role in ("policy", "critic"):
        assert _same(exact[1][role], rollout[1][role]) == []
    exact = _run(tmp_path, models, "exact2", "algorithm.group_statistics=exact", count=1)
    rollout = _run(tmp_path, models, "rollout2", "algorithm.group_statistics=rollout", count=1)
    assert _same(exact[1]["policy"], rollout[1]["policy"]), "the second mini-batch has statistics of its own"


def test_a_mini_batch_of_one_micro_batch_needs_no_first_pass(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = ["parallel.micro_batch_size=6", "algorithm.group_statistics=exact", "algorithm.beta_ramp=0"]
    one = _run(tmp_path, models, "one", *together)
    monkeypatch.setattr(PackedBatch, "is_one_pass", False)
    two = _run(tmp_path, models, "two", *together)
    for role in ("policy", "critic"):
        assert _same(one[1][role], two[1][role]) == []
    names = [name for name in one[0][1] if name.partition("/")[0] in {"policy", "critic", "group"}]
    assert "policy/weight_max" in names and {n: one[0][1][n] for n in names} == {n: two[0][1][n] for n in names}


# ------------------------------------------------------------------------------- the penalty in one plain graph
def _plain_losses(model: Any, batch: MiniBatch, config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(PPO + beta R_var in one graph, PPO of sequences re-weighted in closed form, p, S) of a whole mini-batch."""
    settings, experience = config.algorithm, batch.experience
    length_B = experience.inputs.length_B
    rollout = experience.rollout
    part = MicroBatch(rollout.sequences, torch.arange(len(batch)), rollout.width)
    statistics = response_statistics(model, model(part.tokens_BL), part, config.rollout.temperature, 0)
    logp_BT = part.to_response_BT(statistics.logp_N)
    bonus = settings.entropy_coef * statistics.entropy_N.sum()
    mask_BT = torch.arange(logp_BT.shape[1]) < length_B[:, None]
    advantage_BT = torch.where(mask_BT, experience.inputs.advantage_BT, 0.0)
    ratio_BT = (logp_BT - experience.outputs.behaviour_logp_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - settings.clip, 1 + settings.clip)
    surrogate = torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT).sum()
    over_B = length_B if settings.penalty_over == "responses" else length_B.float().mean()
    signal_B = experience.inputs.behaviour_signal_B + ((ratio_BT - 1) * advantage_BT).sum(1) / over_B
    if settings.signal_form == "log_prob":
        token_BT = {"advantage": experience.inputs.advantage_BT, "return": experience.return_BT}[settings.signal]
        signal_B = torch.where(mask_BT, logp_BT * token_BT, 0.0).sum(1)
        signal_B = signal_B / length_B if settings.signal_tokens == "mean" else signal_B
    probs_BM = experience.outputs.group_probs_BM
    if settings.assignment == "hard":
        probs_BM = torch.nn.functional.one_hot(probs_BM.argmax(1), 2).float()
    # R_var itself, differentiated by autograd: omega_g (R_g - Rbar)^2.
    mass_M = probs_BM.sum(0)
    objective_M = (probs_BM * signal_B[:, None]).sum(0) / mass_M.clamp(min=1e-30)
    omega_M = mass_M / len(batch) if settings.weights == "size" else (mass_M > 0) / (mass_M > 0).sum()
    variance = (omega_M * (objective_M - (omega_M * objective_M).sum()).square()).sum()
    beta = settings.beta_policy if settings.penalty == "variance" else 0.0
    found = moments(*group_statistics(probs_BM, signal_B.detach()), len(batch), settings.weights)
    assert len(set(length_B.tolist())) > 1
    factor_B = length_factor(length_B, experience.signal_form, settings.penalty_over).float()
    weight_B = relative_weight(beta, found, probs_BM, factor_B)
    weighted = (weight_B[:, None] * ratio_BT * advantage_BT).sum()
    loss = -(surrogate + bonus) / batch.tokens + beta * variance
    return loss, -(weighted + bonus) / batch.tokens, probs_BM, signal_B.detach()


def _gradients(rank: int, folder: Path, models: dict[str, str], overrides: list[str]) -> Any:
    """Per mini-batch: our gradient, that of one plain autograd graph over the whole mini-batch, and that of PPO with
    the sequences re-weighted in closed form."""
    config = rl_config(folder, models, *FAST, "parallel.micro_batch_size=4", *overrides)
    settings = config.algorithm
    ours: list[dict[str, Tensor]] = []
    step = Engine.step

    def keep(self: Engine) -> StepResult:
        if self.model.head == "lm":  # type: ignore[union-attr]
            assert self.optimizer is not None
            self.optimizer.prepare_grads()
            ours.append({name: p.main_grad.clone() for name, p in self.model.named_parameters()})
            return StepResult(1.0, True, self.lr)  # parameters are held still
        return step(self)

    Engine.step = keep  # type: ignore[method-assign]  # this process is the test's own
    kept: list[Experience] = []
    shape = gi_ppo.shape

    def keep_experience(*args: Any) -> Any:
        experience, state = shape(*args)
        kept.append(experience)
        return experience, state

    gi_ppo.shape = keep_experience
    plain: list[dict[str, Tensor]] = []
    reweighted: list[dict[str, Tensor]] = []
    with open_session(config, "test") as session:
        setup = set_up(session)
        gi_ppo.iterate(session, setup, restore(session, setup), 0)
        model: Any = setup.models.policy.model
        experience = kept[0]
        names, parameters = zip(*model.named_parameters(), strict=True)
        for batch in mini_batches(experience, config, 0, "policy", 1):
            with torch.enable_grad():
                loss, _, probs_BM, signal_B = _plain_losses(model, batch, config)
                plain.append(dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))
                # Once more, because op A's backward pass takes the place of the logits.
                _, weighted, _, _ = _plain_losses(model, batch, config)
                reweighted.append(dict(zip(names, torch.autograd.grad(weighted, parameters), strict=True)))
            found = moments(*group_statistics(probs_BM, signal_B), len(batch), settings.weights)
            beta = settings.beta_policy if settings.penalty == "variance" else 0.0
            # No floor and no cap were active: the closed form is that of the whole beta.
            bounded, held = bounded_beta(
                beta_at(0, beta, 0), found, mass_floor=settings.mass_floor, cap=settings.reweight_cap or math.inf
            )
            assert float(bounded) == pytest.approx(beta) and float(signal_gradient(held, probs_BM).sum().abs()) < 1e-6
    return list(zip(ours, plain, reweighted, strict=True))


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.name=ppo"],
        ["algorithm.name=ppo", "algorithm.entropy_coef=0.05"],
        ["algorithm.beta_policy=0.3", "algorithm.reweight_cap=50", "algorithm.mass_floor=0"],
        ["algorithm.beta_policy=3", "algorithm.reweight_cap=0", "algorithm.mass_floor=0", "rollout.temperature=0.7"],
        ["algorithm.penalty_over=responses", "algorithm.beta_policy=3", "algorithm.reweight_cap=0"],
        ["algorithm.assignment=hard", "algorithm.weights=population", "algorithm.reweight_cap=0"],
        ["algorithm.name=paper", "algorithm.beta_policy=0.1"],
        [
            "algorithm.name=paper",
            "algorithm.signal=return",
            "algorithm.signal_tokens=mean",
            "algorithm.best_group=reward",
        ],
    ],
)
def test_the_policy_gradient_is_that_of_one_plain_graph(
    tmp_path: Path, models: dict[str, str], overrides: list[str]
) -> None:
    """PPO's loss + beta R_var of the whole mini-batch, by autograd, against micro-batches and two passes; and where S
    has the surrogate's gradient, against PPO with sequences re-weighted by the weights that are logged."""
    found = run_ranks(_gradients, 1, tmp_path, models, overrides)[0]
    assert len(found) == 2
    closed = "algorithm.signal=return" not in overrides
    for ours, plain, reweighted in found:
        for other in (plain, reweighted) if closed else (plain,):
            assert ours.keys() == other.keys()
            error = sum(float((ours[name] - other[name]).double().square().sum()) for name in ours) ** 0.5
            size = sum(float(other[name].double().square().sum()) for name in ours) ** 0.5
            assert size > 0 and error <= 1e-5 * size, error / size


def _drifted(rank: int, folder: Path, models: dict[str, str]) -> str:
    with open_session(rl_config(folder, models, *FAST), "test") as session:
        setup = set_up(session)
        shape = gi_ppo.shape

        def drift(*args: Any) -> Any:
            experience, state = shape(*args)
            with torch.no_grad():
                for parameter in setup.models.policy.model.parameters():
                    parameter.mul_(1.3)  # the policy is another one now than that of the rollout
            return experience, state

        gi_ppo.shape = drift
        try:
            gi_ppo.iterate(session, setup, restore(session, setup), 0)
        except update_policy.NumericsError as error:
            return f"{error.exit_code}: {error}"
    return ""


def test_a_first_ratio_that_is_not_one_stops_the_run(tmp_path: Path, models: dict[str, str]) -> None:
    (message,) = run_ranks(_drifted, 1, tmp_path, models)
    assert message.startswith("5: Before the first update of an iteration the PPO ratio must be 1"), message
