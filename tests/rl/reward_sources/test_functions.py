"""The forms of a reward function, what it is given, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.config import ParallelConfig, RewardConfig
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.parallel import runtime
from gipo_mc.rl.reward_sources import event_loop
from gipo_mc.rl.reward_sources.functions import FunctionReward
from gipo_mc.run.functions.rewards import form_of, given_function, load_function
from gipo_mc.types import Sample
from tests import reward_functions
from tests.ranks import run_ranks
from tests.rl.reward_sources.test_server import _rollout
from tests.source_rules import ROOT


class Judge:
    def __call__(self, sample: Sample) -> float:
        return 1.0

    async def later(self, samples: Any) -> list[float]:
        return [2.0] * len(samples)


FORMS: list[tuple[Any, str]] = [
    (reward_functions.length, "texts"),
    (reward_functions.of_sample, "sample"),
    (reward_functions.of_samples, "samples"),
    (lambda prompts, responses, domains=None: [], "texts"),
    (lambda *texts: [], "texts"),
    (os.path.join, "texts"),
    (lambda sample: 0.0, "sample"),
    (lambda s, k=2: 0.0, "sample"),
    (lambda batch: [], "samples"),
    (Judge(), "sample"),
    (Judge().later, "samples"),
    (functools.partial(lambda k, sample: 0.0, 3), "sample"),
]


@pytest.mark.parametrize(("function", "form"), FORMS, ids=range(len(FORMS)))
def test_the_form_is_read_from_the_signature(function: Any, form: str) -> None:
    assert form_of(function) == form


def test_an_annotation_says_more_than_a_name() -> None:
    def every(x: Sequence[Sample]) -> list[float]: ...
    def one(samples: Sample) -> float: ...

    assert form_of(every) == "samples" and form_of(one) == "sample"
    every.__annotations__["x"], one.__annotations__["samples"] = list[Sample], Sample  # as written without the future
    assert form_of(every) == "samples" and form_of(one) == "sample"


@pytest.mark.parametrize("function", [lambda: 0.0, lambda a, b: 0.0, lambda a, b, c, d: 0.0, lambda a, *, k: 0.0])
def test_other_signatures_are_refused_in_words(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"called as f\(sample\), f\(samples\) or f\(prompts, responses, domains\)"):
        form_of(function, "model.reward=python:a:b")


def test_a_function_that_was_handed_over_needs_no_module() -> None:
    with given_function("python:__main__:mine", len):
        assert load_function("python:__main__:mine") is len
    with pytest.raises(ConfigError):
        load_function("python:__main__:mine")


def test_a_function_beside_the_user_is_found_however_the_command_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A console script has its own folder on the path; `python -m` and torchrun have the current one."""
    (tmp_path / "beside_rewards.py").write_text("def reward(s):\n    import beside_more\n    return beside_more.X\n")
    (tmp_path / "beside_more.py").write_text("X = 2.0\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_function("python:beside_rewards:reward")(None) == 2.0, "and what it imports when it is called"
    load_function("python:beside_rewards:reward")
    assert sys.path == [*before, str(tmp_path)], "last and once: a file here takes no library's place"


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_rewards.py").write_text("def reward(sample): ...\nNUMBER = 3\n")
    (tmp_path / "broken_rewards.py").write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    said = {
        "odd_rewards:rewward": f"there is no rewward in {tmp_path}/odd_rewards.py; did you mean reward?",
        "odd_rewards:NUMBER": "model.reward=python:odd_rewards:NUMBER is a int, not a function",
        "odd_rewards": "the name is not written module:function",
        "nowhere.at_all:f": f"looked for in the current folder, {tmp_path}, on PYTHONPATH",
        "broken_rewards:f": "No module named 'nothing_of_this_name'). Write python:",
    }
    for name, part in said.items():
        with pytest.raises(ConfigError) as error:
            load_function(f"python:{name}")
        assert part in str(error.value)


def test_a_path_that_was_asked_to_be_safe_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def reward(sample): ...\n")
    code = "from gipo_mc.run.functions.rewards import load_function as f; f('python:beside:reward')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "is looked for on PYTHONPATH and among what is installed" in found.stderr


async def _exits(samples: list[Sample]) -> list[float]:
    raise SystemExit(3)


def _one_bad(sample: Sample) -> Any:
    return {0: 0.5, 1: None, 2: "1.0", 3: math.inf, 4: True}[sample.index]


async def _one_raises(sample: Sample) -> float:
    await asyncio.sleep(0)
    return 1.0 / (sample.index - 2)


async def _one_is_cancelled(sample: Sample) -> float:
    inner = asyncio.ensure_future(asyncio.sleep(60))
    if sample.index == 2:
        inner.cancel()
        await inner
    return 1.0


async def _one_of_a_group_fails(sample: Sample) -> float:
    async def fails() -> None:
        raise ValueError("the third one")

    async with asyncio.TaskGroup() as group:
        if sample.index == 2:
            group.create_task(fails())
    return 1.0


async def _one_is_late(sample: Sample) -> float:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60 if sample.index == 2 else 0)
    return 1.0


class _NoNumber:
    def __float__(self) -> float:
        raise ZeroDivisionError


def _outcomes(rank: int) -> dict[str, Any]:
    layout = runtime.initialize(ParallelConfig(timeout_minutes=1), "cpu")
    found: dict[str, Any] = {}

    def call(name: str, function: Any, **settings: Any) -> None:
        warned: list[str] = []
        reward = FunctionReward(name, function, builtin_tokenizer(), layout, RewardConfig(**settings), warned.append)
        try:
            found[name] = (reward(*_rollout()).tolist(), warned)
        except DataError as error:
            found[name] = str(error)

    seen: list[Sample] = []
    call("one", lambda sample: seen.append(sample) or 1.0)  # type: ignore[func-returns-value]
    found["seen"] = seen
    for name in ("length", "of_sample", "of_samples", "of_sample_later"):
        call(name, getattr(reward_functions, name), workers=2)
    call("tensor", lambda samples: torch.arange(5.0))
    call("generator", lambda samples: (float(s.index) for s in samples))
    call("raises", reward_functions.broken)
    call("raises, skip", reward_functions.broken, on_error="skip")
    call("exits, skip", _exits, on_error="skip")
    call("one short, skip", reward_functions.one_short, on_error="skip")
    call("nothing", lambda samples: None)
    call("words", reward_functions.words)
    call("bad", _one_bad)
    call("bad, skip", _one_bad, on_error="skip")
    for number, answer in enumerate([{1.0, 2.0, 3.0, 4.0, 5.0}, dict.fromkeys(range(5), 1.0), "12345"]):
        call(f"no list {number}", lambda samples, answer=answer: answer)
    call("no number", lambda sample: _NoNumber())
    for function in (_one_is_cancelled, _one_of_a_group_fails, _one_is_late):
        call(function.__name__, function, on_error="skip")
    call("one raises", _one_raises)
    call("one raises, skip", _one_raises, on_error="skip")
    return found


def test_forms_and_failures() -> None:
    """In one start of a rank: numbers by form, and both policies."""
    found = run_ranks(_outcomes, 1)[0]
    lengths = found["length"][0]
    assert found["of_sample"] == found["of_samples"] == found["of_sample_later"] == (lengths, [])
    assert found["tensor"][0] == found["generator"][0] == [0.0, 1.0, 2.0, 3.0, 4.0]
    last = found["seen"][-1]
    assert (last.prompt, last.domain, last.row, last.index, last.truncated) == ("p4", "d", "f:4", 4, True)
    assert last.response_ids == (6,) * 5 and last.columns["answer"] == "4" and last.messages[0].content == "hi"
    nothing = [math.nan] * 5
    for name, words in (
        ("raises, skip", "ZeroDivisionError"),
        ("exits, skip", "SystemExit: 3"),
        ("one short, skip", "returned 4 rewards for 5 responses"),
    ):
        rewards, warned = found[name]
        assert str(rewards) == str(nothing) and words in warned[0] and len(warned) == 1, name
        assert warned[0].endswith("."), "another sentence may follow"
    assert "ZeroDivisionError" in found["raises"] and "reward_functions.py" in found["raises"]
    assert found["nothing"].startswith(
        "nothing returned None for 5 responses: a list of a number for each is expected. With"
    )
    assert found["no list 0"].startswith("no list 0 returned {1.0, 2.0, 3.0, 4.0, 5.0} for 5 responses: a list")
    assert found["no list 1"].startswith("no list 1 returned {0: 1.0, ")
    assert found["no list 2"].startswith("no list 2 returned '12345' for 5")
    assert "_NoNumber object" in found["no number"] and "a number is expected" in found["no number"]
    for name, words in (
        ("_one_is_cancelled", "RuntimeError: it was cancelled"),
        ("_one_of_a_group_fails", "ValueError: the third one"),
        ("_one_is_late", "TimeoutError"),
    ):
        rewards, warned = found[name]
        assert str(rewards) == "[1.0, 1.0, nan, 1.0, 1.0]" and words in warned[0] and __file__ in warned[0], name
    assert "division by zero. With reward.on_error=skip" in found["raises"]
    assert "returned 'good' for response 0" in found["words"]
    assert "returned None for response 1: a number is expected" in found["bad"]
    rewards, warned = found["bad, skip"]
    assert str(rewards) == "[0.5, nan, nan, inf, 1.0]" and len(warned) == 1
    assert "float division by zero" in found["one raises"] or "division by zero" in found["one raises"]
    assert str(found["one raises, skip"][0]) == "[-0.5, -1.0, nan, 1.0, 0.5]"


def test_the_event_loop_works_inside_of_another_one_and_after_a_fork(tmp_path: Path) -> None:
    async def nine() -> int:
        await asyncio.sleep(0)
        return 9

    async def outer() -> int:
        return event_loop.run(nine())

    assert asyncio.run(outer()) == event_loop.run(nine()) == 9
    assert run_ranks(lambda rank: event_loop.run(nine()), 1) == [9]
    with pytest.raises(ZeroDivisionError):
        event_loop.run(_fails())


async def _fails() -> None:
    _ = 1 / 0
