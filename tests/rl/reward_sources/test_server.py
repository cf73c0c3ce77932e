"""Rewards over HTTP from a real server on loopback: faults that pass, faults that do not, shares of replicas."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch

from gipo_mc.config import ParallelConfig, hide
from gipo_mc.config.reward import RewardConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.parallel import runtime
from gipo_mc.rl.reward_sources import server as server_module
from gipo_mc.rl.reward_sources.server import Server, ServerReward
from gipo_mc.types import Message, Prompt, Rollout, Sample
from tests.ranks import run_ranks
from tests.rl.reward_sources.server import RewardServer, reward_server

SAMPLES = [Sample(f"p{row}", "x" * row, "d", row=f"f:{row}") for row in range(7)]
LENGTHS = [float(row) for row in range(7)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "FIRST_PAUSE", 0.01)


def _ask(server: RewardServer, **settings: Any) -> tuple[list[float], list[str]]:
    """(rewards, problems) of `SAMPLES` in blocks of 2."""
    chosen = {"batch": 2, "timeout_seconds": 5.0, **settings}
    found = Server(server.url, RewardConfig(**chosen)).ask(SAMPLES)
    sizes = [len(SAMPLES[start : start + 2]) for start in range(0, len(SAMPLES), 2)]
    rewards = [r for (got, _), n in zip(found, sizes, strict=True) for r in (got or [math.nan] * n)]
    return rewards, [problem for _, problem in found if problem]


@pytest.mark.parametrize("fault", ["500", "503", "429", "dies", "dies half-way", "html", "deep", "endless", "object"])
def test_what_passes_is_asked_again_and_the_order_is_kept(fault: str) -> None:
    with reward_server(fault, "", fault, fault) as server:
        assert _ask(server) == (LENGTHS, [])
        assert len(server.requests) == 4 + 3
    assert {asked["version"] for asked in server.requests} == {1}
    assert {len(asked["samples"]) for asked in server.requests} == {1, 2}
    assert server.requests[0]["samples"][0] | {"prompt": "", "response": "", "row": ""} == {
        "prompt": "", "response": "", "domain": "d", "messages": [], "columns": {}, "response_ids": [],
        "truncated": False, "row": "",
    }  # fmt: skip


def test_answers_in_another_order_belong_to_their_samples_and_few_requests_run_at_a_time() -> None:
    with reward_server("slow", "", "slow", "", slow=0.1) as server:
        assert _ask(server, workers=4) == (LENGTHS, [])
    with reward_server(*["slow"] * 4, slow=0.05) as server:
        began = time.monotonic()
        assert _ask(server, workers=1) == (LENGTHS, [])
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "answered 500: out of memory (after 3 tries)"),
        ("dies", "broke off"),
        ("slow", "did not answer within 0.5 seconds (reward.timeout_seconds) (after 3 tries)"),
        ("drip", "did not answer within 0.5 seconds"),
        ("html", "something that is no rewards: '<!DOCTYPE"),
    ],
)
def test_what_does_not_pass_is_given_up_and_said(fault: str, words: str) -> None:
    seconds = 0.5 if "within" in words else 5.0  # more than a busy machine takes for an answer
    with reward_server(*[fault] * 3, slow=2.0) as server:
        rewards, problems = _ask(server, retries=2, workers=1, timeout_seconds=seconds)
    assert rewards[2:] == LENGTHS[2:] and all(map(math.isnan, rewards[:2]))
    (problem,) = problems
    assert words in problem and server.url in problem


@pytest.mark.parametrize(
    ("fault", "rewards", "words"),
    [
        ("one short", [math.nan, math.nan], "answered, but it returned 1 rewards for 2 responses"),
        ("text", [math.nan, 1.0], "it returned '1.0' for response 0: a number is expected"),
        ("null", [math.nan, 1.0], ""),
        ("302", [math.nan, math.nan], "answered 302: it points to 'http://127.0.0.2:9/', and redirects are not"),
        ("401", [math.nan, math.nan], "answered 401: no such token: Bearer ${oc.env:MY_REWARD_TOKEN}"),
    ],
)
def test_what_a_second_try_would_not_change_is_not_asked_again(
    fault: str, rewards: list[float], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_REWARD_TOKEN", "tok-4711-secret")
    with reward_server(fault) as server:
        found, problems = _ask(server, workers=1, key_variable="MY_REWARD_TOKEN")
    assert len(server.requests) == 4 and str(found[:2]) == str(rewards) and found[2:] == LENGTHS[2:]
    assert all(words in problem for problem in problems) and bool(problems) == bool(words)
    assert set(server.tokens) == {"Bearer tok-4711-secret"} and "4711" not in str(problems)
    assert "4711" not in hide("tok-4711-secret")


def test_a_server_that_is_not_there_and_time_that_is_up() -> None:
    with reward_server() as server:
        pass
    rewards, problems = _ask(server, retries=1)
    assert all(map(math.isnan, rewards)) and "cannot be reached" in problems[0]
    (late,) = Server(server.url, RewardConfig(), seconds=0.0).ask(SAMPLES)
    assert late == (None, f"The reward server {server.url} was not asked: time was up before.")


def test_a_variable_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"reward\.key_variable=NO_SUCH_TOKEN: there is no such"):
        Server("http://x", RewardConfig(key_variable="NO_SUCH_TOKEN"))
    monkeypatch.setenv("NO_SUCH_TOKEN", "two words-4711")
    with pytest.raises(ConfigError) as error:
        Server("http://x", RewardConfig(key_variable="NO_SUCH_TOKEN"))
    assert "holds a space" in str(error.value) and "4711" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- on ranks
def _rollout() -> tuple[list[Prompt], Rollout]:
    columns = {"answer": "4", "when": math.nan}
    prompts = [Prompt(i, (4, 5), "d", f"p{i}", (Message("user", "hi"),), f"f:{i}", "", columns) for i in range(5)]
    sequences = to_sequences([p.token_ids for p in prompts], [[6] * (i + 1) for i in range(5)], 0)
    cut = torch.tensor([False] * 4 + [True])
    return prompts, Rollout(sequences, torch.arange(5), ("d",) * 5, torch.zeros(5, 5), cut)


def _score(rank: int, url: str, attempts: list[dict[str, Any]]) -> list[Any]:
    layout = runtime.initialize(ParallelConfig(timeout_minutes=1, tensor=2), "cpu")
    outcomes: list[Any] = []
    for settings in attempts:
        warned: list[str] = []
        reward = ServerReward.at(url, RewardConfig(**settings), builtin_tokenizer(), layout, 60.0, warned.append)
        try:
            outcomes.append((reward(*_rollout()).tolist(), warned))
        except DataError as error:
            outcomes.append(str(error))
    return outcomes


def test_each_replica_asks_for_its_share_once_and_all_ranks_have_all_rewards() -> None:
    with reward_server("", "", "one short", "", "one short", "") as server:
        results = run_ranks(_score, 4, server.url, [{"batch": 3}, {"batch": 3, "on_error": "skip"}, {"batch": 3}])
    assert len(server.requests) == 6, "two replicas, each asked by one of its two ranks"
    shares = sorted(sorted(s["row"] for s in asked["samples"]) for asked in server.requests[:2])
    assert shares == [["f:0", "f:1", "f:2"], ["f:3", "f:4"]]
    sample = next(s for asked in server.requests[:2] for s in asked["samples"] if s["row"] == "f:4")
    assert sample["messages"] == [{"role": "user", "content": "hi"}] and sample["response_ids"] == [6] * 5
    assert sample["columns"] == {"answer": "4", "when": None} and sample["truncated"] is True
    texts = {s["row"]: s["response"] for asked in server.requests[:2] for s in asked["samples"]}
    lengths = [float(len(texts[f"f:{row}"])) for row in range(5)]
    for rank, (good, skipped, stopped) in enumerate(results):
        assert good == (lengths, []), rank
        rewards, warned = skipped
        left = [row for row, value in enumerate(rewards) if math.isnan(value)]
        assert left in ([0, 1, 2], [3, 4]) and str(skipped) == str(results[0][1])
        assert warned[0].startswith("reward.on_error=skip: The reward server ") and len(warned) == 1
        assert stopped == results[0][2] and "rewards for" in stopped
