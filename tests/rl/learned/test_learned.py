"""Runs on reward models: gains over the reference, ensembles, and what held-out pairs say, in one start of ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.learned.pairs import Accuracy, chance_warnings
from gipo_mc.rl.learned.reference import FILE
from gipo_mc.rl.rollout import take_prompts
from gipo_mc.rl.setup import set_up
from gipo_mc.run.session import open_session
from tests.ranks import run_ranks
from tests.runs import read_metrics, rl_config, save_models

FAST = ["rollout.batch_size=12", "algorithm.mini_batch_size=12", "algorithm.epochs=1", "parallel.micro_batch_size=12"]
FAST += ["run.seed=8", "eval.prompts=4", "checkpoint.every=1", "data.max_rows=16"]
GAIN = ["algorithm.signal=gain", "algorithm.best_group=gain", "algorithm.reference_samples=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policy, reward models of three seeds."""
    folder = tmp_path_factory.mktemp("learned")
    for seed in (3, 4, 5):
        save_models(folder / str(seed), seed)
    return folder


def _models(folder: Path) -> dict[str, str]:
    return {"policy": str(folder / "3" / "policy"), "reward": str(folder / "3" / "reward")}


def _work(rank: int, folder: Path) -> dict[str, Any]:
    models, found = _models(folder), {}
    ensemble = [f"reward.models=[{folder}/4/reward,{folder}/5/reward]", "reward.deviations=1"]
    pairs = ["eval.pairs=[builtin:easy,builtin:hard]", "eval.prompts=30"]
    runs = {
        "gain": GAIN,
        "threshold": [*GAIN, "algorithm.name=threshold_gi_ppo", "algorithm.groups_from=gain"],
        "ensemble": [*ensemble, *pairs, "algorithm.reference_samples=2", "algorithm.signal=disagreement"],
        "ppo": ["algorithm.name=ppo", "algorithm.reference_samples=3"],
        "plain": ["algorithm.name=ppo"],
    }
    for name, words in runs.items():
        gi_ppo.train(rl_config(folder, models, *FAST, *words, f"run.name={name}"))
    # Interrupted after the first iteration, its last line torn, and continued.
    gi_ppo.train(rl_config(folder, models, *FAST, *GAIN, "run.name=two", "run.iterations=1"))
    path = folder / "two" / FILE
    path.write_text(path.read_text() + '{"prompt": 3, "rew')
    gi_ppo.train(rl_config(folder, models, *FAST, *GAIN, "run.name=two"))
    for name, config, error in _refused(folder, models):
        try:
            gi_ppo.train(config)
        except error as caught:
            found[name] = str(caught)
    found["levels"] = _levels(folder, models)
    return found


def _refused(folder: Path, models: dict[str, str]) -> Iterator[tuple[str, Any, type[Exception]]]:
    shutil.copytree(folder / "two", folder / "damaged")
    path = folder / "damaged" / FILE
    path.write_text(path.read_text().replace('"rewards": [', '"rewards": [1.5, ', 1))
    more = [*FAST, "run.iterations=3"]
    yield "damaged", rl_config(folder, models, *more, *GAIN, "run.name=damaged"), DataError
    words = [f"reward.models=[{folder}/4/reward]", "run.name=gain"]
    yield "more models", rl_config(folder, models, *more, *GAIN, *words), ConfigError


def _levels(folder: Path, models: dict[str, str]) -> list[list[float]]:
    """Levels of some prompts, asked for at once, and in another order in two parts."""
    config = rl_config(folder, models, *FAST, *GAIN, "run.name=levels", "algorithm.reference_samples=1")
    asked = []
    with open_session(config, "test") as session:
        for order in (1, -1):
            setup = set_up(session)
            samples = setup.models.reference_samples
            assert samples is not None
            samples.begin(anew=True)
            prompts = take_prompts(setup.prompts, config, 0)[::order]
            halves = [samples(prompts[:5]).reward_B, samples(prompts[5:]).reward_B]
            asked.append(torch.cat(halves).flip(0) if order < 0 else samples(prompts).reward_B)
            assert torch.equal(samples(prompts).reward_B[:5], halves[0])
    return [level_B.tolist() for level_B in asked]


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return run_ranks(_work, 1, folder)[0]  # type: ignore[no-any-return]


def test_gains_are_logged_and_change_what_is_trained(folder: Path, found: dict[str, Any]) -> None:
    gain, ppo, plain = (read_metrics(folder / name) for name in ("gain", "ppo", "plain"))
    for row in gain[1:]:
        assert row["time/reference_samples"] > 0
        assert row["gain/mean"] != row["reward/mean"] and 0.5 <= row["signal/auc/gain"] <= 1
        assert {"gain/domain/hard", "signal/auc/value_error"} <= row.keys()
    assert "eval/gain/domain/easy" in gain[0]
    # Sampling the reference draws from streams of its own: it changes nothing that does not ask for gains.
    same = {name for name in plain[-1] if not name.startswith(("time/", "throughput/"))}
    assert all(ppo[-1][name] == plain[-1][name] for name in same)
    assert all(math.isfinite(value) for row in read_metrics(folder / "threshold") for value in row.values())


def test_levels_do_not_depend_on_when_a_prompt_comes(found: dict[str, Any]) -> None:
    at_once, in_parts = found["levels"]
    assert at_once == pytest.approx(in_parts, abs=1e-5)
    assert len(set(at_once)) > 8


def test_a_continued_run_has_the_same_bits(folder: Path, found: dict[str, Any]) -> None:
    whole, two = (read_metrics(folder / name)[-1] for name in ("gain", "two"))
    timed = ("time/", "throughput/")
    assert {k: v for k, v in whole.items() if not k.startswith(timed)} == {
        k: v for k, v in two.items() if not k.startswith(timed)
    }
    lines = [(folder / name / FILE).read_text() for name in ("gain", "two")]
    assert lines[0] == lines[1] and {"prompt", "rewards"} == json.loads(lines[0].splitlines()[0]).keys()


def test_damage_and_other_models_are_refused(found: dict[str, Any]) -> None:
    assert f"{FILE}:1: not a line of this program" in found["damaged"] and "a list of 1" in found["damaged"]
    assert "reward.models was made of 0 models, now of 1 models" in found["more models"]


def test_an_ensemble_and_its_pairs(folder: Path, found: dict[str, Any]) -> None:
    rows = read_metrics(folder / "ensemble")
    assert rows[-1]["disagreement/mean"] > 0 and rows[-1]["signal/auc/disagreement"] >= 0.5
    assert rows[0]["eval/disagreement/mean"] > 0
    accuracy = [rows[0][f"pairs/accuracy{end}"] for end in ("", "/domain/easy", "/domain/hard")]
    assert accuracy[0] == pytest.approx((accuracy[1] + accuracy[2]) / 2) and 0 < accuracy[1] < 1
    assert {"pairs/accuracy/group/0", "pairs/accuracy/group/1"} <= rows[-1].keys()
    said = (folder / "ensemble" / "warnings.jsonl").read_text()  # the models are random
    assert said.count("On held-out pairs of domain hard the reward model is right in") == 1


def test_at_chance_is_said_in_words() -> None:
    found = {"easy": Accuracy(0.81, 400.0), "hard": Accuracy(0.54, 400.0), "0": Accuracy(1.0, 2.0)}
    texts = chance_warnings(found, "domain")
    assert [text.split(" the reward")[0] for text in texts] == [
        "On held-out pairs of domain hard",
        "On held-out pairs of domain 0",
    ]
    assert "right in 54% of about 400, which cannot be told from chance (50% ± 5%)" in texts[0]
    assert Accuracy(0.5, 0.0).at_chance


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["algorithm.best_group=gain"], "algorithm.best_group=gain compares .* set it to 4"),
        (["algorithm.groups_from=gain"], "algorithm.groups_from=gain compares"),
        (["algorithm.reward_transform=log_sigmoid"], "algorithm.reward_transform=log_sigmoid compares"),
        (
            [
                "algorithm.reward_transform=log_sigmoid",
                "algorithm.reference_samples=4",
                "algorithm.normalize_reward=true",
            ],
            "scale again: set algorithm.normalize_reward=false",
        ),
        (["algorithm.signal=disagreement"], "name others in reward.models"),
        (["reward.deviations=1"], "there is one model"),
        (["model.reward=a", "reward.models=[b,a]"], "names a more than once"),
        (["model.reward=a", "reward.models=[python:m:f]"], "python:m:f is no reward model"),
    ],
)
def test_combinations_without_a_meaning(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){sentence}"):
        load_config(None, words)
