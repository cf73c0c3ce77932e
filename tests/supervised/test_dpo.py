"""DPO: its first steps against transformers, the same in every layout, and a reference that scores once."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gipo_mc.config import Config, load_config
from gipo_mc.data import synthetic
from gipo_mc.data.batches import batch_indices
from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.parallel.engine import Engine
from gipo_mc.run.session import Session
from gipo_mc.supervised import dpo
from gipo_mc.supervised.loop import training_rows
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import GradientRecorder, read_metrics, save_models, whole_gradients

TOLERANCE = 1e-5
SPLITS: dict[str, dict[str, Any]] = {
    "micro-batches of 1": {"micro_batch_size": 1},
    "DP2, 40 tokens": {"data": 2, "micro_batch_size": 64, "tokens_per_micro_batch": 40},
}
PAIRS, BATCH, SEED = 18, 8, 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ "policy", "reward" (no language model) and "reference", another policy."""
    folder = tmp_path_factory.mktemp("models")
    models = save_models(folder) | {"reference": str(folder / "reference")}
    shutil.copytree(models["policy"], models["reference"])
    torch.manual_seed(4)
    fields = {**synthetic.builtin_llama_config(), "initializer_range": 0.2}
    LlamaForCausalLM(LlamaConfig(**fields)).save_pretrained(models["reference"])
    return models


def _config(folder: Path, models: dict[str, str], *overrides: str, **layout: Any) -> Config:
    """3 batches an epoch, the third of which takes 6 pairs of the next."""
    base = {
        "run": {"dir": str(folder), "name": "run", "iterations": 2, "seed": SEED},
        "device": "cpu",
        "model": {"policy": models["policy"]},
        "data": {
            "preferences": ["builtin"],
            "evaluation": ["builtin:easy"],
            "max_rows": PAIRS,
            "sequence_length": 24,
        },
        "train": {"batch_size": BATCH},
        "parallel": {"micro_batch_size": 6, "timeout_minutes": 1, **layout},
        "policy": {"lr": 1e-3},
        "checkpoint": {"every": 0},
        "eval": {"prompts": 5},
    }
    return load_config(None, list(overrides), base)


# ------------------------------------------------------------------------- against transformers, layouts and splits
def _steps(rank: int, config: Config) -> list[dict[str, Tensor]]:
    """The whole gradient of each step of a run, with parameters held still."""
    recorder, engines = GradientRecorder(), []

    def step(engine: Engine) -> Any:
        engines.append(engine)
        return recorder(engine)

    Engine.step = step  # type: ignore[method-assign]  # this process is the test's own
    dpo.train(config)
    return [whole_gradients(engine, own) for engine, own in zip(engines, recorder.gradients, strict=True)]


def _run(config: Config, data: int = 1) -> tuple[list[dict[str, Any]], list[dict[str, Tensor]]]:
    results = run_ranks(_steps, config.parallel.tensor * config.parallel.pipeline * data, config)
    gradients = [
        {name: gradient for result in results for name, gradient in result[step].items()}
        for step in range(len(results[0]))
    ]
    return read_metrics(Path(config.run.dir) / "run"), gradients


def _log_probs(model: LlamaForCausalLM, split: str, row: int) -> tuple[Tensor, Tensor]:
    prompt, chosen, rejected, _ = synthetic.preference(SEED, split, row)
    sums = []
    for response in (chosen, rejected):
        logp = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        sums.append(sum(logp[len(prompt) - 1 + t, token] for t, token in enumerate(response)))
    return sums[0], sums[1]


def _by_transformers(
    config: Config, models: dict[str, str], split: str, rows: list[int]
) -> tuple[dict[str, float], Any]:
    """(metrics, gradients) of a batch, written down from the papers."""
    policy, reference = (
        LlamaForCausalLM.from_pretrained(models[m], dtype=torch.float32) for m in ("policy", "reference")
    )
    beta, smoothing = config.dpo.beta, config.dpo.label_smoothing
    losses, logps, rewards = [], [], []
    for row in rows:
        logp = torch.stack(_log_probs(policy, split, row))
        with torch.no_grad():
            reward = beta * (logp - torch.stack(_log_probs(reference, split, row)))
        reward = reward.detach() + beta * (logp - logp.detach())
        margin = reward[0] - reward[1]
        if config.dpo.loss == "ipo":
            losses.append((margin / beta - 1 / (2 * beta)) ** 2)
        else:
            losses.append(-(1 - smoothing) * margin.sigmoid().log() - smoothing * (1 - margin.sigmoid()).log())
        logps.append(logp.detach())
        rewards.append(reward.detach())
    loss = torch.stack(losses).mean()
    loss.backward()
    logp, reward = torch.stack(logps).mean(0), torch.stack(rewards)
    metrics = {
        "loss": float(loss.detach()),
        "accuracy": float((reward[:, 0] > reward[:, 1]).float().mean()),
        "margin": float((reward[:, 0] - reward[:, 1]).mean()),
        "reward/chosen": float(reward[:, 0].mean()),
        "reward/rejected": float(reward[:, 1].mean()),
        "logp/chosen": float(logp[0]),
        "logp/rejected": float(logp[1]),
    }
    return metrics, {name: parameter.grad for name, parameter in policy.named_parameters()}


def _error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative L2 error of a whole gradient."""
    assert found.keys() == wanted.keys()
    error = sum(float((found[name] - tensor).double().square().sum()) for name, tensor in wanted.items())
    size = sum(float(tensor.double().square().sum()) for tensor in wanted.values())
    assert size > 0
    return math.sqrt(error / size)


@pytest.mark.parametrize(
    "overrides", [[], ["dpo.label_smoothing=0.2", "dpo.beta=0.5"], ["dpo.loss=ipo", "dpo.beta=0.05"]]
)
def test_the_steps_are_those_of_transformers(tmp_path: Path, models: dict[str, str], overrides: list[str]) -> None:
    config = _config(tmp_path, models, f"model.reference={models['reference']}", "run.iterations=3", *overrides)
    rows, gradients = _run(config)
    for step in (0, 2):
        wanted, gradient = _by_transformers(config, models, "train", training_rows(config, PAIRS, step).tolist())
        assert {name: rows[step][name] for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert _error(gradients[step], gradient) <= TOLERANCE
    held_out, _ = _by_transformers(config, models, "easy", [0, 4, 8, 13, 17])
    assert {name: rows[2][f"eval/{name}"] for name in held_out} == pytest.approx(held_out, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Any:
    folder = tmp_path_factory.mktemp("alone")
    return _run(_config(folder, models, f"model.reference={models['reference']}", "run.iterations=2"))


@pytest.mark.parametrize("name", ["TP2", "PP2", "TP2xPP2", "DP2", "DP2, 40 tokens", "micro-batches of 1"])
def test_every_layout_and_split_does_the_same_steps(
    tmp_path: Path, models: dict[str, str], alone: Any, name: str
) -> None:
    layout = {**LAYOUTS, **SPLITS}[name].copy()
    data = layout.pop("data", 1)
    overrides = [f"model.reference={models['reference']}", "run.iterations=2"]
    rows, gradients = _run(_config(tmp_path, models, *overrides, **layout), data)
    for row, wanted in zip(rows, alone[0], strict=True):
        for key in wanted.keys() - {"step"}:
            if not key.startswith(("time/", "throughput/", "padding/")):
                assert row[key] == pytest.approx(wanted[key], rel=TOLERANCE, abs=1e-6), key
    assert max(_error(own, wanted) for own, wanted in zip(gradients, alone[1], strict=True)) <= TOLERANCE


# --------------------------------------------------------------------------------------------------- the trainer
def _train(rank: int, config: Config, change: str = "") -> dict[str, Any]:
    """Train; how it ended, forward passes of the reference, and whether it was freed when the first step was logged."""
    seen: dict[str, Any] = {"reference": 0, "alive": []}
    forward, log, prepare = Engine.forward, Session.log, dpo.DPOTask.prepare
    references: list[Any] = []

    def counted(self: Engine, *args: Any) -> Any:
        seen["reference"] += self.optimizer is None
        return forward(self, *args)

    def logged(self: Session, *args: Any, **options: Any) -> None:
        seen["alive"].append([kept() is not None for kept in references])
        log(self, *args, **options)

    def prepared(self: Any, session: Session, model: Engine) -> None:
        references.extend(weakref.ref(weight) for weight in self._reference.model.parameters())
        if change == "drift":
            with torch.no_grad():
                next(model.model.parameters()).mul_(1.1)
        if change == "nan":
            with torch.no_grad():
                next(self._reference.model.parameters()).fill_(math.nan)
        prepare(self, session, model)

    Engine.forward, Session.log, dpo.DPOTask.prepare = counted, logged, prepared  # type: ignore[method-assign]
    try:
        dpo.train(config)
    except GipoError as error:
        return seen | {"code": error.exit_code, "said": str(error)}
    return seen | {"code": 0, "said": ""}


def test_the_policy_starts_as_its_reference_and_learns(tmp_path: Path, models: dict[str, str]) -> None:
    for name in ("1", "TP2xPP2"):
        layout = LAYOUTS[name]
        ranks = layout.get("tensor", 1) * layout.get("pipeline", 1)
        config = _config(tmp_path / name, models, f"run.iterations={25 if name == '1' else 1}", **layout)
        assert [seen["code"] for seen in run_ranks(_train, ranks, config)] == [0] * ranks
        rows = read_metrics(tmp_path / name / "run")
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and rows[0]["grad_norm"] > 0
        assert (rows[0]["margin"], rows[0]["accuracy"]) == (0.0, 0.5)
        assert (rows[0]["reward/chosen"], rows[0]["reward/rejected"]) == (0.0, 0.0)
    rows = read_metrics(tmp_path / "1" / "run")
    assert rows[-1]["accuracy"] > 0.9 and rows[-1]["loss"] < 0.5 and rows[-1]["margin"] > 0.3


def test_the_reference_scores_each_pair_once_and_is_freed(tmp_path: Path, models: dict[str, str]) -> None:
    def passes(*overrides: str) -> int:
        (seen,) = run_ranks(_train, 1, _config(tmp_path, models, "checkpoint.every=1", *overrides))
        assert seen["code"] == 0, seen["said"]
        assert all(seen["alive"]) and not any(map(any, seen["alive"])), "the reference is still there"
        return int(seen["reference"])

    # One forward call a batch. Two of three batches of the epoch, and the held-out rows.
    assert passes("run.iterations=2") == 2 + 1
    # Continued: the third batch, and for the six pairs of the second epoch in it those that took them first.
    assert passes("run.iterations=3") == _first_takers(range(2, 3)) + 1
    assert passes("run.iterations=7") == 3 + 1
    # Nothing is left to do.
    assert passes("run.iterations=7") == 0


def _first_takers(steps: range) -> int:
    """Batches of the first epoch that hold a pair which one of `steps` takes."""
    taken = [set(batch_indices(SEED, "train", step, BATCH, PAIRS).tolist()) for step in range(3)]
    return sum(bool(batch & set().union(*(taken[step] for step in steps))) for batch in taken)


@pytest.mark.parametrize(
    ("overrides", "change", "code", "words"),
    [
        ([], "drift", 5, ["must be ln 2", "nats a token"]),
        ([], "nan", 5, ["the reference, are not finite"]),
        (["model.reference={reward}"], "", 4, ["/reward do not fit", "not a language model"]),
        (["model.reference={other}"], "", 2, ["model.reference=", "another tokenizer than the policy"]),
        (["data.preferences=[]", "data.demonstrations=[builtin]"], "", 2, ["data.preferences names no source"]),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    tmp_path: Path, models: dict[str, str], overrides: list[str], change: str, code: int, words: list[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models["reference"], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["c0"], vocabulary["c1"] = vocabulary["c1"], vocabulary["c0"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    places = models | {"other": str(other)}
    (seen,) = run_ranks(_train, 1, _config(tmp_path, models, *(o.format(**places) for o in overrides)), change)
    assert seen["code"] == code, seen["said"]
    assert [word for word in words if word not in seen["said"]] == [], seen["said"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "a step was taken"


def test_a_run_is_not_continued_with_another_reference_or_loss(tmp_path: Path, models: dict[str, str]) -> None:
    assert run_ranks(_train, 1, _config(tmp_path, models, "run.iterations=1"))[0]["code"] == 0
    for change, said in (
        (f"model.reference={models['reference']}", "model.reference was made of "),
        ("dpo.loss=ipo", "dpo.loss was 'dpo', now 'ipo'"),
    ):
        (seen,) = run_ranks(_train, 1, _config(tmp_path, models, change))
        assert seen["code"] == 2 and said in seen["said"], seen["said"]
        assert seen["reference"] == 0, "refused before the reference scores anything"


def test_options_without_meaning_are_refused(tmp_path: Path, models: dict[str, str]) -> None:
    for change, said in (
        (["dpo.loss=ipo", "dpo.label_smoothing=0.1"], "dpo.label_smoothing=0.1 is an option of dpo.loss=dpo"),
        (["dpo.beta=0"], "dpo.beta=0"),
        (["dpo.label_smoothing=0.5"], "dpo.label_smoothing=0.5"),
    ):
        with pytest.raises(ConfigError, match=said):
            _config(tmp_path, models, *change)
