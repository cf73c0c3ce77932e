"""The loop of SFT, reward model and DPO at its edges."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gipo_mc.config import load_config
from gipo_mc.errors import GipoError, NumericsError
from gipo_mc.run.session import Session
from gipo_mc.supervised import dpo, reward_model, sft
from gipo_mc.supervised.loop import StepChecks
from gipo_mc.supervised.sft import SFTTask
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import read_metrics, save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _train(
    rank: int, kind: str, folder: Path, model: str, overrides: list[str], poison: bool, broken_weights: str = ""
) -> tuple[int, str]:
    base: dict[str, Any] = {
        "run": {"dir": str(folder), "name": "run", "iterations": 2},
        "device": "cpu",
        "model": {"policy": model},
        "data": {"demonstrations": ["builtin"], "preferences": ["builtin"], "max_rows": 16, "sequence_length": 24},
        "train": {"batch_size": 5},
        "parallel": {"micro_batch_size": 4, "timeout_minutes": 1},
        "policy": {"lr": 1e-3},
        "checkpoint": {"every": 0},
    }
    if poison:
        last_stage = SFTTask.last_stage

        def broken(self: Any, *args: Any) -> Any:
            outputs = last_stage(self, *args)
            return outputs | {"loss_sum": outputs["loss_sum"] * (math.nan if rank == 1 else 1.0)}

        SFTTask.last_stage = broken  # type: ignore[method-assign]  # this process is the test's own
    if broken_weights:
        load = Session.load

        def damaged(self: Session, source: Any, *args: Any, **options: Any) -> Any:
            engine = load(self, source, *args, **options)
            if options.get("key", "model.policy") == broken_weights:
                with torch.no_grad():
                    next(p for name, p in engine.model.named_parameters() if "mlp" in name)[0] = math.nan
            return engine

        Session.load = damaged  # type: ignore[method-assign]
    try:
        {"sft": sft.train, "reward": reward_model.train, "dpo": dpo.train}[kind](load_config(None, overrides, base))
    except GipoError as error:
        return error.exit_code, str(error)
    return 0, ""


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_fewer_held_out_rows_than_replicas(tmp_path: Path, models: dict[str, str], kind: str) -> None:
    """One held-out row on two data-parallel ranks: one has nothing to do, and the metric is still that row's."""
    held_out = ["data.evaluation=[builtin:easy]", "eval.prompts=1"]
    rows = []
    for name in ("1", "DP2"):
        ranks = LAYOUTS[name].get("data", 1)
        outcomes = run_ranks(_train, ranks, kind, tmp_path / name, models["policy"], held_out, False)
        assert outcomes == [(0, "")] * ranks
        rows.append(read_metrics(tmp_path / name / "run"))
    for one, two in zip(*rows, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert rows[1][-1]["eval/loss"] == pytest.approx(rows[0][-1]["eval/loss"], rel=1e-4)


def test_a_reward_model_starts_at_ln_2(tmp_path: Path, models: dict[str, str]) -> None:
    run_ranks(_train, 1, "reward", tmp_path, models["policy"], [], False)
    assert read_metrics(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_gradients_that_are_never_finite_stop_the_run(tmp_path: Path, models: dict[str, str]) -> None:
    outcomes = run_ranks(_train, 2, "sft", tmp_path, models["policy"], ["run.iterations=50"], True)
    assert [code for code, _ in outcomes] == [5, 5] and "not finite" in outcomes[0][1]
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [1.0] * 10 and all("grad_norm" not in row for row in rows)
    assert torch.isfinite(torch.tensor([row["loss"] for row in rows])).all()


def test_a_short_run_of_which_every_step_was_skipped_is_not_done(tmp_path: Path, models: dict[str, str]) -> None:
    """Two steps, too few in a row to stop before the end; and the attempt that is told to go on with the same."""
    for overrides in (["run.iterations=2", "checkpoint.every=1"], ["run.iterations=3"]):
        outcomes = run_ranks(_train, 2, "sft", tmp_path, models["policy"], overrides, True)
        steps = overrides[0].partition("=")[2]
        assert [code for code, _ in outcomes] == [5, 5] and f"None of the {steps} steps" in outcomes[0][1]
    assert run_ranks(_train, 2, "sft", tmp_path, models["policy"], ["run.iterations=3"], False) == [(0, "")] * 2
    assert run_ranks(_train, 2, "sft", tmp_path, models["policy"], ["run.iterations=4"], True) == [(0, "")] * 2


def test_no_split_of_a_batch_changes_the_loss_or_its_gradient(tmp_path: Path, models: dict[str, str]) -> None:
    """Responses of different lengths: a mean of the micro-batches' or the ranks' means would be another number."""
    held_out = ["data.evaluation=[builtin:easy]", "eval.prompts=13", "eval.every=1", "train.batch_size=7"]
    rows = {}
    for name, size, tokens, ranks in (
        ("whole", 7, 0, 1),
        ("single", 1, 0, 1),
        ("ranks", 2, 0, 3),
        ("budget", 7, 24, 2),
    ):
        options = [*held_out, f"parallel.micro_batch_size={size}", f"parallel.tokens_per_micro_batch={tokens}"]
        assert run_ranks(_train, ranks, "sft", tmp_path / name, models["policy"], options, False) == [(0, "")] * ranks
        rows[name] = read_metrics(tmp_path / name / "run")
    assert len({row["tokens"] for row in rows["whole"]}) == 2, "lengths differ"
    assert rows["whole"][0]["padding/update"] > 0 == rows["single"][0]["padding/update"]
    for name in ("single", "ranks", "budget"):
        for found, expected in zip(rows[name], rows["whole"], strict=True):
            for metric in ("loss", "grad_norm", "eval/loss", "tokens", "eval/tokens"):
                assert found[metric] == pytest.approx(expected[metric], rel=1e-5), (name, metric)


def test_an_evaluation_does_not_depend_on_its_batches(tmp_path: Path, models: dict[str, str]) -> None:
    """13 rows in batches of 3 or 4 and in one: the loss is of all tokens, not a mean over batches."""
    losses = []
    for size in (3, 13):
        still = ["run.iterations=1", "policy.lr=1e-30", f"train.batch_size={size}", "eval.prompts=13"]
        held_out = ["data.evaluation=[builtin:easy]", "run.seed=3", *still]
        assert run_ranks(_train, 1, "sft", tmp_path / str(size), models["policy"], held_out, False) == [(0, "")]
        losses.append(read_metrics(tmp_path / str(size) / "run")[0]["eval/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_last_step_is_evaluated_and_saved_whatever_the_intervals(tmp_path: Path, models: dict[str, str]) -> None:
    odd = ["run.iterations=3", "checkpoint.every=2", "eval.every=2", "data.evaluation=[builtin:easy]", "eval.prompts=2"]
    assert run_ranks(_train, 1, "sft", tmp_path, models["policy"], odd, False) == [(0, "")]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step_00000002", "step_00000003"]
    assert ["eval/loss" in row for row in read_metrics(tmp_path / "run")] == [False, True, True]


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_a_learning_rate_that_leaves_nothing_of_the_model_is_no_success(
    tmp_path: Path, models: dict[str, str], kind: str
) -> None:
    ((code, said),) = run_ranks(_train, 1, kind, tmp_path, models["policy"], ["policy.lr=1e6"], False)
    assert code == 5 and "policy.lr=1e+06 changed the weights by" in said and "Lower policy.lr" in said
    assert not (tmp_path / "run" / "checkpoints" / "step_00000002").exists()


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_weights_that_are_not_finite_are_named_before_anything_changes(
    tmp_path: Path, models: dict[str, str], kind: str
) -> None:
    broken = "model.reference" if kind == "dpo" else "model.policy"
    ((code, said),) = run_ranks(_train, 1, kind, tmp_path, models["policy"], [], False, broken)
    assert code == 5 and models["policy"] in said and "finite" in said
    assert ("the reference" in said) if kind == "dpo" else ("model.policy=" in said)


@pytest.mark.parametrize(
    ("units", "losses", "lost"),
    [
        (256, [2.0, 11.0, 12.0, 11.0], True),
        (256, [2.0, 11.0, 12.0, 3.0, 11.0, 12.0], False),  # not in a row
        (256, [2.0, 9.0, 9.0, 9.0], False),  # still knows something
        (256, [10.4, 12.0, 13.0, 12.0], False),  # knew nothing to begin with
        (4, [2.0, *[11.0] * 63], False),  # a few units may be that hard by chance
        (4, [2.0, *[11.0] * 64], True),
    ],
)
def test_a_model_that_knows_less_than_nothing_is_lost(units: int, losses: list[float], lost: bool) -> None:
    config = load_config(None, ["policy.lr=0.1", f"train.batch_size={units}"])
    session: Any = SimpleNamespace(start=0, config=config)
    engine: Any = SimpleNamespace(first_step=None)
    task: Any = SimpleNamespace(guess=10.0)
    checks, said = StepChecks("model"), ""
    try:
        for step, loss in enumerate(losses):
            checks.check(session, engine, task, step, {"loss": loss, "skipped": 0.0})
    except NumericsError as error:
        said = str(error)
    assert ("policy.lr=0.1 is too large, and the model is lost" in said) == lost


def test_a_step_that_changes_nothing_is_said(tmp_path: Path, models: dict[str, str]) -> None:
    ((code, _),) = run_ranks(_train, 1, "sft", tmp_path, models["policy"], ["policy.lr=1e-30"], False)
    warnings = (tmp_path / "run" / "warnings.jsonl").read_text()
    assert code == 0 and warnings.count("changed none of the weights") == 1 and "Raise policy.lr" in warnings
