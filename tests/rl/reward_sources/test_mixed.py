"""Several rewards and penalties as one, and what a skipped response leaves behind in a run: nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.config import Config, RewardConfig, load_config
from gipo_mc.errors import ConfigError
from gipo_mc.parallel.engine import Engine
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.reward_sources.mixed import MixedReward, with_parts
from gipo_mc.rl.setup import restore, set_up
from gipo_mc.run.session import open_session
from tests.ranks import LAYOUTS, run_ranks
from tests.rl.reward_sources.test_server import _rollout
from tests.runs import GradientRecorder, read_metrics, rl_config, save_models, whole_gradients

FUNCTIONS = "python:tests.reward_functions:"


def test_the_sum_the_weights_and_the_penalties() -> None:
    prompts, rollout = _rollout()  # lengths 1 to 5; the last one was cut
    rewards = [lambda p, r: torch.arange(5.0), lambda p, r: torch.tensor([1.0, math.nan, 1.0, 1.0, 1.0])]
    settings = RewardConfig(
        also=["python:a:b"], weights=[2.0, -0.5], length_penalty=0.1, free_length=3, missing_eos_penalty=4.0
    )
    mixed = MixedReward.of(rewards, settings, "models/my-reward")  # type: ignore[arg-type]
    total_B, parts = with_parts(mixed, prompts, rollout)
    assert list(parts) == ["my-reward", "b", "length_penalty", "missing_eos_penalty"]
    assert parts["length_penalty"].tolist() == pytest.approx([0, 0, 0, -0.1, -0.2])
    assert parts["missing_eos_penalty"].tolist() == [0, 0, 0, 0, -4.0]
    assert total_B[[0, 2, 3, 4]].tolist() == pytest.approx([-0.5, 3.5, 5.4, 3.3]) and bool(total_B[1].isnan())
    assert torch.equal(mixed(prompts, rollout).nan_to_num(), total_B.nan_to_num())
    alone = rewards[0]
    assert MixedReward.of([alone], RewardConfig(), "x") is alone  # type: ignore[list-item,comparison-overlap]
    half = MixedReward.of([alone], RewardConfig(weights=[0.5]), "x")  # type: ignore[list-item]
    assert half(prompts, rollout).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_names_are_told_apart() -> None:
    settings = RewardConfig(also=["python:x.y:helpful", "http://127.0.0.1:80/a", "http://127.0.0.1:81/b"])
    assert settings.named("runs/helpful/") == ["helpful", "helpful_2", "127.0.0.1", "127.0.0.1_2"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward.also=[a,b]", "reward.weights=[1,2]"], "reward.weights has 2 entries for 3 rewards"),
        (["reward.names=[a,b]"], "reward.names has 2 entries for 1 rewards"),
        (["reward.also=[b]", "reward.names=[a,a]"], "two of them are the same"),
        (["reward.names=['a b']"], "'a b' is none"),
        (["reward.free_length=3"], "reward.free_length=3 is what reward.length_penalty lets pass"),
        (["model.reward=http://"], "is no address of a reward server"),
        (["model.reward=http://x:99999/a"], "is no address of a reward server"),
        (["reward.also=[http://me@x/a]"], "is given a user or a password in its address"),
        (["model.reward=http://me:s3cret@x/a"], "password"),
    ],
)
def test_what_has_no_meaning_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    assert words in str(error.value) and "s3cret" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _config(folder: Path, models: dict[str, str], reward: str, *overrides: str, **layout: Any) -> Config:
    named = models | {"reward": f"{FUNCTIONS}{reward}"}
    settings = ["eval.prompts=0", "algorithm.epochs=1", "reward.on_error=skip", "reward.max_skipped=0.9"]
    return rl_config(folder, named, *settings, *overrides, **layout)


def _iterate(rank: int, folder: Path, models: dict[str, str], layout: dict[str, Any], reward: str, cut: bool) -> Any:
    """Metrics, warnings and gradients of one iteration. cut: take the rows of the topic c1 out by hand."""
    layout = {key: value for key, value in layout.items() if key != "data"}
    recorder, whole, warned = GradientRecorder(), gi_ppo.sift, []
    Engine.step = lambda self: recorder(self)  # type: ignore[method-assign]  # this process is the test's own

    def without(prompts: Any, rollout: Any, outputs: Any, *rest: Any) -> Any:
        kept = [row for row, prompt in enumerate(prompts) if not prompt.text.endswith("c1")]
        rows = torch.tensor(kept)
        return whole([prompts[row] for row in kept], rollout.rows(rows), outputs.rows(rows), *rest)

    if cut:
        gi_ppo.sift = without
    with open_session(_config(folder, models, reward, **layout), "test") as session:
        session.console.warn = warned.append  # type: ignore[method-assign]
        setup = set_up(session)
        state, metrics = gi_ppo.iterate(session, setup, restore(session, setup), 0)
        engines = [engine for _, engine in sorted(setup.engines.items())]
        engines = [engine for engine in engines for _ in range(len(recorder.gradients) // len(engines))]
        gradients = [whole_gradients(e, g) for e, g in zip(engines, recorder.gradients, strict=True)]
    kept = {k: v for k, v in metrics.items() if not k.startswith(("time/", "throughput/", "padding/"))}
    return kept, warned, gradients, state.health.counts


def test_a_skipped_response_leaves_the_batch_without_it(tmp_path: Path, models: dict[str, str]) -> None:
    """On one rank every number is the same; on two replicas the gradients are, up to the order of additions."""
    wanted, _, gradients, _ = run_ranks(_iterate, 1, tmp_path / "cut", models, {}, "of_sample", True)[0]
    for name, ranks in (("1", 1), ("DP2", 2)):
        layout, folder = LAYOUTS[name], tmp_path / f"skip{name}"
        for metrics, warned, own, counts in run_ranks(
            _iterate, ranks, folder, models, layout, "fails_now_and_then", False
        ):
            assert 1 <= metrics.pop("reward/invalid") < 18 and counts == {}, "as reward.max_skipped allows"
            (text,) = [text for text in warned if "reward" in text]  # one warning: what failed and what came of it
            assert "They were left out of the iteration." in text
            assert "reward.on_error=skip: " in text and "ValueError: no answer found" in text
            assert name != "1" or metrics == wanted
            for step, reference in zip(own, gradients, strict=True):
                error = sum(float((step[key] - tensor).double().square().sum()) for key, tensor in reference.items())
                size = sum(float(tensor.double().square().sum()) for tensor in reference.values())
                assert size > 0 and error <= 1e-10 * size


def _runs(rank: int, folder: Path, models: dict[str, str]) -> list[str]:
    """A run of two iterations, the same in two starts, and starts that change what must stay."""
    parts = [f"reward.also=[{FUNCTIONS}silent_now_and_then]", "reward.names=[first,second]", "reward.weights=[1,0.5]"]
    parts += ["reward.missing_eos_penalty=0.25"]
    for name, iterations in (("whole", 2), ("parts", 1), ("parts", 2)):
        more = [f"run.name={name}", f"run.iterations={iterations}"]
        gi_ppo.train(_config(folder, models, "fails_now_and_then", *parts, *more))
    said = []
    for changed in (["reward.weights=[1,1]"], ["reward.also=[]", "reward.names=[]", "reward.weights=[]"]):
        try:
            more = ["run.name=parts", "run.iterations=3", *changed]
            gi_ppo.train(_config(folder, models, "fails_now_and_then", *parts, *more))
        except ConfigError as error:
            said.append(str(error))
    return said


def test_parts_are_logged_and_a_run_in_two_starts_is_the_same(tmp_path: Path, models: dict[str, str]) -> None:
    said = run_ranks(_runs, 1, tmp_path, models)[0]
    whole, parts = (
        [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/"))} for row in read_metrics(folder)]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    )
    assert whole == parts and [row["step"] for row in whole] == [1, 2]
    for row in whole:
        names = ("first", "second", "missing_eos_penalty")
        first, second, cut = (row[f"reward/part/{name}"] for name in names)
        assert row["reward/mean"] == pytest.approx(first + 0.5 * second + cut) and cut <= 0
        assert row["reward/invalid"] >= 1
    assert len(said) == 2 and "reward.weights was [1.0, 0.5], now [1.0, 1.0]" in said[0]
    about = json.loads((tmp_path / "whole" / "about.json").read_text())
    lines = [text for label, text in about if label == "reward"]
    assert lines[1].startswith("0.5 x python:") and lines[2] == "- 0.25 where a response was cut"
