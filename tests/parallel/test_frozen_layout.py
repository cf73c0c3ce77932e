"""Frozen models in a layout of their own: the numbers of the common layout, from a folder and from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import parallel_state

from gipo_mc.config import TRAINERS, Config, ParallelConfig, check_layout, validate
from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.megatron.second_layout import Groups
from gipo_mc.rl import gi_ppo
from gipo_mc.run.model_sources import ModelSource, check_fits, load_model
from gipo_mc.supervised import dpo, reward_model
from tests.ranks import run_ranks
from tests.runs import read_metrics, rl_config, save_models

FAST = ["rollout.batch_size=12", "algorithm.mini_batch_size=6", "algorithm.epochs=1", "parallel.micro_batch_size=12"]
FAST += [
    "data.max_rows=12",
    "eval.prompts=3",
    "run.iterations=1",
    "data.preferences=[builtin]",
    "train.batch_size=4",
    "data.sequence_length=24",
]


def _sizes(layout: Layout) -> tuple[int, int, int]:
    return layout.tensor, layout.pipeline, layout.data


def _groups(rank: int) -> Any:
    """Who is found in which group: in the first layout, beside it, and in the first one again."""

    def found() -> list[list[int]]:
        me = torch.tensor(rank)
        groups = (parallel_state.get_tensor_model_parallel_group(), parallel_state.get_data_parallel_group())
        return [gather_in_rank_order(me, group).tolist() for group in groups]

    config = ParallelConfig(timeout_minutes=1, tensor=2, sequence=True, frozen_tensor=1, frozen_pipeline=2)
    layout = runtime.initialize(config, "cpu", frozen=True)
    frozen = layout.of_frozen
    answers = [found()]
    with frozen.active(), frozen.active():
        answers.append(found())
        stage = parallel_state.get_pipeline_model_parallel_rank()
    answers.append(found())
    again = runtime.initialize(config, "cpu", frozen=True).of_frozen
    assert runtime.initialize(config, "cpu").beside is None, "of a command without frozen models"
    alike = runtime.initialize(ParallelConfig(timeout_minutes=1, tensor=2, frozen_tensor=2), "cpu", frozen=True)
    return _sizes(layout), _sizes(frozen), frozen.sequence, stage, answers, again.groups is frozen.groups, alike.beside


def _run(rank: int, folder: Path, models: dict[str, str], attempts: list[tuple[str, str, list[str]]]) -> Any:
    """(trainer, run.name, options) one after the other: "" or the error of each; then what `_groups` found."""
    trainers = {"rl": gi_ppo.train, "reward": reward_model.train, "dpo": dpo.train}
    said = []
    for trainer, name, options in attempts:
        given = models if trainer == "rl" else {"policy": models["reward" if trainer == "reward" else "policy"]}
        try:
            trainers[trainer](rl_config(folder, given, *FAST, f"run.name={name}", *options))
            said.append("")
        except GipoError as error:
            said.append(str(error))
    return said, _groups(rank)


def _assert_close(folder: Path, one: str, other: str) -> None:
    for row, wanted in zip(read_metrics(folder / one), read_metrics(folder / other), strict=True):
        for name, value in wanted.items():
            # KL to the reference is rounding before the first update, and its order is chance.
            if not name.startswith(("time/", "throughput/", "padding/", "signal/auc/kl")):
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_run_has_the_numbers_of_the_common_layout(tmp_path: Path) -> None:
    models = save_models(tmp_path / "models", layers=4)
    # The first reward model is a checkpoint, read in the second layout, too.
    ours = ["parallel.tensor=2", f"model.reward={tmp_path}/reward", f"eval.reward={models['reward']}"]
    frozen = "parallel.frozen_tensor=1"
    attempts = [
        ("reward", "reward", []),
        ("rl", "common", ours),
        ("rl", "apart", [*ours, frozen, "memory.offload=[frozen]"]),
        ("dpo", "dpo_common", ["parallel.pipeline=2"]),
        ("dpo", "dpo_apart", ["parallel.pipeline=2", "parallel.frozen_pipeline=1"]),
    ]
    for rank, (said, groups) in enumerate(run_ranks(_run, 2, tmp_path, models, attempts)):
        assert said == [""] * 5
        sizes, beside, sequence, stage, answers, kept, none = groups
        assert (sizes, beside, sequence, stage) == ((2, 1, 1), (1, 2, 1), False, rank)
        first, second, back = answers
        assert first == back == [[0, 1], [rank]] and second == [[rank], [rank]]
        assert kept and none is None
    _assert_close(tmp_path, "apart", "common")
    _assert_close(tmp_path, "dpo_apart", "dpo_common")


def test_a_model_that_does_not_fit_its_layout_is_refused_by_the_options_that_it_has(tmp_path: Path) -> None:
    models = save_models(tmp_path)
    source = ModelSource("models/r", "hf", Path(models["reward"]))
    layout = Layout(3, 0, 3, 1, 1, 0, 0, 0, False, torch.device("cpu"), groups=Groups())
    said = r"models/r on parallel\.frozen_tensor x parallel\.frozen_pipeline ranks"
    with pytest.raises(ConfigError, match=said):
        load_model(source, layout, head="reward", dtype=torch.float32, trainable=False, seed=1)
    with pytest.raises(ConfigError, match=said):  # before it is loaded, with the length of its rows
        check_fits(source, layout, sequence_length=8)


def test_sizes_that_do_not_divide_the_ranks_are_refused() -> None:
    config = Config(parallel={"tensor": 2, "frozen_tensor": 3})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"parallel\.frozen_tensor=3 x parallel\.frozen_pipeline=1 = 3 ranks"):
        check_layout(config, 4)
    assert check_layout(Config(parallel={"tensor": 2, "frozen_tensor": 1}), 4) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "commands"),
    [
        ({"parallel": {"frozen_tensor": 3}}, ("train_gi_ppo", "train_dpo")),
        ({"train": {"batch_size": 2}}, ("train_sft", "train_reward", "train_dpo")),
        ({"rollout": {"batch_size": 2}, "algorithm": {"mini_batch_size": 2}}, ("train_gi_ppo",)),
        ({"algorithm": {"mini_batch_size": 2}}, ("train_gi_ppo",)),
        ({"rollout": {"batch_size": 9}, "algorithm": {"mini_batch_size": 5}}, ()),
        ({"rollout": {"batch_size": 9}, "algorithm": {"mini_batch_size": 4}}, ("train_gi_ppo",)),
        ({"parallel": {"tensor": 3}}, (*TRAINERS, "generate")),
    ],
)
def test_sizes_are_refused_by_the_commands_that_read_them(options: dict[str, Any], commands: tuple[str, ...]) -> None:
    """Four ranks; a file may be of several commands."""
    config, refused = validate(options), []
    for command in (*TRAINERS, "generate"):
        try:
            check_layout(config, 4, command)
        except ConfigError:
            refused.append(command)
    assert sorted(refused) == sorted(commands)
    if commands:
        with pytest.raises(ConfigError, match="The layout does not work"):
            check_layout(config, 4)
