"""A run that was interrupted and started again is, bit for bit, the run that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.config import Config, as_yaml, load_config
from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.rl import gi_ppo
from gipo_mc.run import checkpoint
from gipo_mc.run.resume import names_of
from gipo_mc.run.session import Session
from gipo_mc.supervised import dpo, reward_model, sft
from tests.ranks import LAYOUTS, run_ranks
from tests.run.test_resume_rule import _fixed, _stored
from tests.runs import global_tensors, read_metrics, rl_config, save_models

TRAINERS: dict[str, Callable[[Config], None]] = {
    "sft": sft.train, "reward": reward_model.train, "dpo": dpo.train, "rl": gi_ppo.train
}  # fmt: skip


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def _config(kind: str, folder: Path, models: dict[str, str], name: str, layout: dict[str, Any], *more: str) -> Config:
    sizes = {key: value for key, value in layout.items() if key != "data"}
    if kind == "rl":
        small = ["rollout.batch_size=8", "algorithm.mini_batch_size=4", "algorithm.epochs=1", "data.max_rows=12"]
        warm = ["policy.warmup=3", "algorithm.critic_warmup=1", "algorithm.beta_ramp=3", "eval.every=2"]
        config = [f"run.name={name}", "run.iterations=4", "checkpoint.every=2", *small, *warm]
        return rl_config(folder, models, *config, *more, **sizes)
    base = {
        "run": {"dir": str(folder), "name": name, "iterations": 4, "seed": 5},
        "device": "cpu",
        "model": {"policy": models["policy"]},
        # 18 rows in batches of 8: checkpoints lie in the middle of epochs, one step runs over an epoch's end.
        "data": {"demonstrations": ["builtin"], "preferences": ["builtin"], "max_rows": 18, "sequence_length": 24},
        "train": {"batch_size": 8},
        "parallel": {"micro_batch_size": 4, "timeout_minutes": 2, **sizes},
        "policy": {"lr": 1e-3, "schedule": "linear", "warmup": 1},
        "checkpoint": {"every": 2},
        "eval": {"prompts": 4, "every": 2},
    }
    return load_config(None, list(more), base)


def _train(rank: int, kind: str, config: Config, interrupt_after: int) -> str:
    """Train; an interruption comes after the metrics of that step are written and before anything else is."""
    log = Session.log

    def interrupted_log(self: Session, step: int, metrics: Any, **options: Any) -> None:
        log(self, step, metrics, **options)
        if step == interrupt_after:
            raise Interrupted

    Session.log = interrupted_log  # type: ignore[method-assign]  # this process is the test's own
    try:
        TRAINERS[kind](config)
    except Interrupted:
        return "interrupted"
    except GipoError as error:
        return f"{error.exit_code}: {error}"
    return "done"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _run(kind: str, layout: dict[str, Any], config: Config, interrupt_after: int = -1) -> str:
    ranks = layout.get("tensor", 1) * layout.get("pipeline", 1) * layout.get("data", 1)
    outcomes = run_ranks(_train, ranks, kind, config, interrupt_after)
    assert len(set(outcomes)) == 1, outcomes
    return outcomes[0]


def _numbers(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what the clock says."""
    rows = read_metrics(run)
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/"))} for row in rows]


def _assert_equal(found: Path, expected: Path, step: int) -> None:
    steps = [row["step"] for row in _numbers(found)]
    assert steps == list(range(steps[0], step + 1)) and steps[0] in (0, 1), "a step is missing or there twice"
    assert _numbers(found) == _numbers(expected)
    name = f"checkpoints/step_{step:08d}"
    tensors, wanted = global_tensors(found / name, expected / name)
    assert tensors.keys() == wanted.keys() and any(key.startswith("optimizer.state.exp_avg_sq") for key in tensors)
    assert [key for key, tensor in tensors.items() if not torch.equal(tensor, wanted[key])] == []
    states = [checkpoint.load_state(run / name) for run in (found, expected)]
    # Two runs of one test may be of two versions (tests/run/versions).
    writers = [state.pop("megatron-core") for state in states]
    assert states[0] == states[1] and all(writers)


CASES = [
    ("sft", "1"), ("sft", "PP2"), ("reward", "1"), ("reward", "DP2"), ("dpo", "1"), ("dpo", "PP2"),
    ("rl", "1"), ("rl", "TP2"), ("variant", "1"), ("ppo", "TP2xPP2"), ("sft at an epoch's end", "1"),
]  # fmt: skip
#: Cases with a trainer and options of their own.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    # No critic, a classifier of its own, weights of the groups that are remembered.
    "variant": ("rl", ("algorithm.name=gi_rloo", "algorithm.penalty=group_dro", "rollout.samples_per_prompt=2")),
    "ppo": ("rl", ("algorithm.name=ppo",)),
    # Two steps of 9 are the 18 rows.
    "sft at an epoch's end": ("sft", ("train.batch_size=9", "parallel.micro_batch_size=3")),
}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_interrupted_run_ends_as_the_undisturbed_one(
    tmp_path: Path, models: dict[str, str], kind: str, name: str
) -> None:
    """Interrupted after step 3, whose metrics are written already; the last checkpoint is that of step 2."""
    layout, (kind, more) = LAYOUTS[name], VARIANTS.get(kind, (kind, ()))
    assert _run(kind, layout, _config(kind, tmp_path, models, "straight", layout, *more)) == "done"
    broken = _config(kind, tmp_path, models, "broken", layout, *more)
    assert _run(kind, layout, broken, interrupt_after=3) == "interrupted"
    status = json.loads((tmp_path / "broken" / "run_status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("failed", 3, 1)
    assert checkpoint.steps(tmp_path / "broken" / "checkpoints") == [2]
    assert _run(kind, layout, broken) == "done"
    _assert_equal(tmp_path / "broken", tmp_path / "straight", 4)
    status = json.loads((tmp_path / "broken" / "run_status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 4, 0)


def test_the_undisturbed_run_repeats_itself_and_learns(tmp_path: Path, models: dict[str, str]) -> None:
    for name in ("one", "two"):
        assert _run("rl", {}, _config("rl", tmp_path, models, name, {}, "run.iterations=2")) == "done"
    _assert_equal(tmp_path / "two", tmp_path / "one", 2)
    rows = _numbers(tmp_path / "one")[1:]  # without the evaluation before training
    assert rows[0]["reward/mean"] != rows[1]["reward/mean"]
    assert "policy/loss" not in rows[0] and rows[1]["policy/grad_norm"] > 0, "the first iteration is critic warm-up"


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_more_iterations_may_be_asked_for_later(tmp_path: Path, models: dict[str, str], kind: str) -> None:
    constant = ("run.iterations=4", "policy.schedule=constant", "eval.prompts=0")
    assert _run(kind, {}, _config(kind, tmp_path, models, "straight", {}, *constant)) == "done"
    for iterations in (1, 3, 4, 4):
        more = (*constant[1:], f"run.iterations={iterations}", "checkpoint.every=0")
        assert _run(kind, {}, _config(kind, tmp_path, models, "grown", {}, *more)) == "done"
    _assert_equal(tmp_path / "grown", tmp_path / "straight", 4)


def test_a_damaged_checkpoint_is_passed_over_and_all_damaged_is_the_end(tmp_path: Path, models: dict[str, str]) -> None:
    config = _config("sft", tmp_path, models, "run", {}, "checkpoint.every=1", "checkpoint.keep=9")
    assert _run("sft", {}, _config("sft", tmp_path, models, "straight", {}, "checkpoint.every=1")) == "done"
    assert _run("sft", {}, config, interrupt_after=4) == "interrupted"
    run = tmp_path / "run"
    newest = run / "checkpoints" / "step_00000003"
    (newest / "shards" / "common.pt").write_bytes(b"x")
    assert _run("sft", {}, config) == "done"
    _assert_equal(run, tmp_path / "straight", 4)
    warnings = (run / "warnings.jsonl").read_text()
    assert "Passed over a checkpoint" in warnings and "step_00000003/shards/common.pt" in warnings

    for path in (run / "checkpoints").iterdir():
        (path / "state.json").write_text("{}")
    outcome = _run("sft", {}, config)
    assert outcome.startswith("4: No checkpoint of this run can be used")
    assert [f"step_{step:08d}/state.json" in outcome for step in (1, 2, 3, 4)] == [True] * 4
    assert len(_numbers(run)) == 4, "the log of the run is kept"
    assert json.loads((run / "run_status.json").read_text())["exit_code"] == 4


def test_a_run_is_not_continued_with_another_model_or_algorithm(tmp_path: Path, models: dict[str, str]) -> None:
    assert _run("rl", {}, _config("rl", tmp_path, models, "run", {}, "run.iterations=1")) == "done"
    outcome = _run("rl", {}, _config("rl", tmp_path, models, "run", {}, "algorithm.groups=3"))
    assert outcome.startswith("2: ") and "algorithm.groups was 2, now 3" in outcome and "Traceback" not in outcome


def test_a_change_is_named_with_the_folders_and_other_names_stand_beside_it(tmp_path: Path) -> None:
    """What models hold is compared after the options: where those are refused, the names are told already."""
    models = {"policy": "models/sft", "reward": "models/first"}
    before, after = Config(model=models), Config(model=models | {"reward": "models/second"})  # type: ignore[arg-type]
    (file := tmp_path / "config.yaml").write_text(as_yaml(before))
    names = names_of(file, after)
    then, now = _fixed(before, "train_gi_ppo"), _fixed(after, "train_gi_ppo")
    then.frozen = {"model.reward": "aaaa", "model.reference": "bbbb"}
    now.frozen = {"model.reward": "cccc", "model.reference": "dddd"}
    assert now.changes(_stored(then), names=names) == [
        "model.reward was made of aaaa (models/first), now of cccc (models/second)",
        "model.reference was made of bbbb (models/sft), now of dddd (models/sft)",
    ]
    now.check_settings(Path("runs/x"), _stored(then), names)  # perhaps it only moved
    now.settings["run.seed"] = 2
    with pytest.raises(ConfigError, match=r"run\.seed was 1, now 2\n  - model\.reward was 'models/first', now"):
        now.check_settings(Path("runs/x"), _stored(then), names)
    assert names_of(tmp_path / "none", after) == ({}, {})
