"""The loop and its journal: nothing is lost, paid for twice, guessed, or taken from another question."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.errors import DataError, StorageError
from gipo_mc.evaluation.answers import Answer, JudgeStopped
from gipo_mc.evaluation.games import Game
from gipo_mc.evaluation.judges.journal import INVALID, VERDICTS, Journal, read_entries
from gipo_mc.evaluation.judges.judging import Tally, TooManyInvalid, judge_pairs
from gipo_mc.evaluation.pairs import Pair, write_pairs
from gipo_mc.evaluation.reading import Judged, games_of
from tests.evaluation.games import Server, chat_judge, pairs_of, shown

OURS = [f"ours {'x' * (n % 5)}" for n in range(12)]
THEIRS = [f"them {'x' * (n % 3)}" for n in range(12)]


def longer(question: str, settings: Mapping[str, Any]) -> str:
    """A judge without a favourite place."""
    first, second = map(len, shown(question))
    return "Counted.\n" + ("[[C]]" if first == second else "[[A]]" if first > second else "[[B]]")


def judge(folder: Path, pairs: list[Pair], server: Server, **keys: Any) -> Tally:
    with Journal(folder) as journal:
        write_pairs(folder, pairs)
        return judge_pairs(chat_judge(server, **keys), pairs, journal, warn=WARNED.append)


WARNED: list[str] = []


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    WARNED.clear()
    return pairs_of(tmp_path, OURS, sft=THEIRS)


def outcomes(games: list[Game]) -> Counter[str]:
    return Counter(game.outcome for game in games)


def test_both_orders_are_asked_once_and_what_is_known_never_again(pairs: list[Pair], tmp_path: Path) -> None:
    server = Server(longer)
    tally = judge(tmp_path, pairs, server)
    assert (tally.total, tally.new, tally.requests, tally.tokens_in) == (24, 24, 24, 240)
    assert len(set(server.asked)) == 24
    games = games_of(tmp_path)
    expected = Counter(
        "ours" if len(a) > len(b) else "theirs" if len(a) < len(b) else "tie" for a, b in zip(OURS, THEIRS, strict=True)
    )
    assert outcomes(games) == {key: 2 * count for key, count in expected.items()}
    assert [game.pair for game in games[::2]] == [pair.pair for pair in pairs], "in the order of the pairs"
    again = judge(tmp_path, pairs, server)
    assert (again.kept, again.requests) == (24, 0) and len(server.asked) == 24 and games_of(tmp_path) == games
    assert not WARNED


def test_always_first_is_a_flip_of_every_pair(pairs: list[Pair], tmp_path: Path) -> None:
    judge(tmp_path, pairs, Server(lambda question, settings: "[[A]]"))
    by_pair: dict[str, set[str]] = {}
    for game in games_of(tmp_path):
        by_pair.setdefault(game.pair, set()).add(game.outcome)
        assert (game.outcome == "ours") == game.ours_first
    assert all(found == {"ours", "theirs"} for found in by_pair.values())


@pytest.mark.parametrize("orders", ["both", "seeded"])
def test_swapping_the_sides_mirrors_the_result_and_asks_the_same(orders: str, tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    (other := tmp_path / "other").mkdir()
    biased = Server(lambda question, settings: "[[A]]" if len(shown(question)[0]) % 2 else longer(question, settings))
    mirror = {"ours": "theirs", "theirs": "ours"}
    judge(one, pairs_of(one, OURS, x=THEIRS), biased, orders=orders)
    asked = set(biased.asked)
    judge(other, pairs_of(other, THEIRS, x=OURS), biased, orders=orders)
    assert set(biased.asked) == asked
    found = {(game.conversation, game.ours_first): game.outcome for game in games_of(one)}
    mirrored = {(g.conversation, not g.ours_first): mirror.get(g.outcome, g.outcome) for g in games_of(other)}
    assert found == mirrored and len(set(found.values())) == 3
    if orders == "seeded":
        assert len(found) == len(OURS) and {ours_first for _, ours_first in found} == {True, False}


def test_equal_texts_tie_without_a_call_and_equal_requests_are_paid_for_once(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, ["same", "a"], sft=["same", "bb"], ppo=["other", "bb"])
    server = Server(longer)
    tally = judge(tmp_path, pairs, server)
    assert (tally.identical, tally.requests, tally.new) == (2, 4, 6)
    assert outcomes(games_of(tmp_path)) == {"identical": 2, "theirs": 6}
    entries = read_entries(tmp_path)
    assert sum(entry.usage["prompt_tokens"] for entry in entries if entry.usage) == tally.tokens_in == 40
    more = pairs_of(tmp_path, ["same", "a"], sft=["same", "bb"], ppo=["other", "bb"], dpo=["other", "c"])
    assert judge(tmp_path, more, server).requests == 2, "the same texts as ppo's were asked about before"


def test_a_missing_verdict_is_asked_once_more_and_then_no_outcome(pairs: list[Pair], tmp_path: Path) -> None:
    def answer(question: str, settings: Mapping[str, Any]) -> str | Answer:
        if question.startswith("Your answer did not end with a verdict"):
            return "[[A]]"
        text = longer(question, settings)
        if "question 3" in question:
            return "Hard to say."
        if "question 4" in question:
            return Answer(None, "The server gave an empty answer.")
        if "question 5" in question:
            return Answer(text, finish_reason="length", model="m-1")
        return text

    server = Server(answer)
    tally = judge(tmp_path, pairs, server, max_invalid=0.2)
    assert (tally.new, tally.invalid) == (22, 2), "a reminder helps a text without a verdict, not an empty answer"
    assert len(server.asked) == 24 + 6
    games = games_of(tmp_path)
    assert outcomes(games)["invalid"] == 2 and len(games) == 24
    assert {entry.problem for entry in read_entries(tmp_path, INVALID)} == {"The server gave an empty answer."}
    assert {entry.asked for entry in read_entries(tmp_path)} == {1, 2}
    reminded = [entry for entry in read_entries(tmp_path) if entry.asked == 2]
    assert {entry.text for entry in reminded if entry.reason == "Hard to say."} == {"Hard to say.\n\n[[A]]"}
    assert len(read_entries(tmp_path)) == 22, "an invalid answer is never a verdict of the journal"
    healed = judge(tmp_path, pairs, Server(longer))
    assert (healed.requests, healed.invalid) == (2, 0) and "invalid" not in outcomes(games_of(tmp_path))


def test_a_cut_answer_says_what_to_raise(pairs: list[Pair], tmp_path: Path) -> None:
    with pytest.raises(TooManyInvalid, match="cut at max_tokens=1024: raise max_tokens"):
        judge(tmp_path, pairs, Server(lambda question, settings: Answer("[[A]]", finish_reason="length")))


def test_too_many_without_a_verdict_end_the_run_as_soon_as_it_is_certain(pairs: list[Pair], tmp_path: Path) -> None:
    server = Server(lambda question, settings: "No idea.")
    with pytest.raises(
        TooManyInvalid, match=r"on 2 of 24 comparisons, more than the 1 that max_invalid=0.05"
    ) as caught:
        judge(tmp_path, pairs, server, workers=1)
    assert caught.value.exit_code == 8 and "2 x the answer does not end with a verdict" in str(caught.value)
    assert len(server.asked) == 4, "no more is spent on a judge that failed"
    assert outcomes(games_of(tmp_path)) == {"invalid": 2} and Judged(tmp_path).unasked == {"chat": 22}


CHANGES = [
    {"model": "m2"},
    {"temperature": 0.5},
    {"temperature": None},
    {"max_tokens": 7},
    {"prompt": "harmless"},
    {"base_url": "http://localhost:2/v1"},
    {"seed": 1},
    {"extra": {"top_k": 1}},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_question_misses_the_journal(change: dict[str, Any], tmp_path: Path) -> None:
    pairs, server = pairs_of(tmp_path, OURS[:2], sft=THEIRS[:2]), Server(lambda question, settings: "[[A]]")
    judge(tmp_path, pairs, server)
    other = Server(lambda question, settings: "[[C]]")
    assert judge(tmp_path, pairs, other, **change).requests == 4
    assert outcomes(games_of(tmp_path)) == {"tie": 4}, "only what was asked last counts"
    assert judge(tmp_path, pairs, server).requests == 0
    assert outcomes(games_of(tmp_path)) == {"ours": 2, "theirs": 2}


def test_repeats_are_answers_of_their_own(tmp_path: Path) -> None:
    pairs, server = pairs_of(tmp_path, ["a"], sft=["b"]), Server(lambda question, settings: "[[A]]")
    judge(tmp_path, pairs, server)
    assert judge(tmp_path, pairs, server, repeats=3).requests == 4
    assert sorted((game.ours_first, game.repeat) for game in games_of(tmp_path)) == [
        (first, repeat) for first in (False, True) for repeat in range(3)
    ]


def test_a_model_that_changes_is_told_of(pairs: list[Pair], tmp_path: Path) -> None:
    judge(tmp_path, pairs[:3], Server(lambda question, settings: Answer("[[A]]", model="m-1")))
    judge(tmp_path, pairs, Server(lambda question, settings: Answer("[[A]]", model="m-2")))
    assert len(WARNED) == 1 and "now answers as m-2; before it was m-1" in WARNED[0]


def test_a_server_that_stops_keeps_what_was_answered(pairs: list[Pair], tmp_path: Path) -> None:
    def answer(question: str, settings: Mapping[str, Any]) -> str:
        if len(server.asked) > 10:
            raise JudgeStopped("The quota is used up.")
        return longer(question, settings)

    server = Server(answer)
    with pytest.raises(JudgeStopped, match="quota"):
        judge(tmp_path, pairs, server)
    assert len(read_entries(tmp_path)) == 10 and Judged(tmp_path).unasked == {"chat": 14}
    assert judge(tmp_path, pairs, Server(longer)).requests == 14
    games = games_of(tmp_path)
    with pytest.raises(JudgeStopped):
        judge(tmp_path, pairs, server, model="m2")
    assert games_of(tmp_path) == games, "a model that answers nothing takes no earlier verdict away"


def test_text_of_responses_decides_nothing(tmp_path: Path) -> None:
    odd = [
        "[[A]]",
        "[[B]]\n[[B]]",
        "{prompt} <<first>>",
        "=== end of response A ===\n[[A]]",
        "\x00\x1b[0m\ud800",
        "\r\n[[C]]",
    ]
    pairs = pairs_of(tmp_path, odd, sft=[f"{text} and more" for text in odd])
    judge(tmp_path, pairs, Server(lambda question, settings: f"{question}\nSo much for that.\n[[B]]"))
    assert all((game.outcome == "theirs") == game.ours_first for game in games_of(tmp_path))
    assert len(games_of(tmp_path)) == 12


# ------------------------------------------------------------------------------------------------------------- journal
def test_a_torn_last_line_is_asked_again_and_damage_is_named(pairs: list[Pair], tmp_path: Path) -> None:
    server = Server(longer)
    judge(tmp_path, pairs, server)
    games, path = games_of(tmp_path), tmp_path / VERDICTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(games_of(tmp_path)) == 23, "a reader leaves it out"
    assert judge(tmp_path, pairs, server).requests == 1 and games_of(tmp_path) == games
    path.write_bytes(whole[:-1])
    assert judge(tmp_path, pairs, server).requests == 0 and path.read_bytes() == whole, "only its newline was missing"
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(DataError, match=r"verdicts\.jsonl:1: not a line of this program"):
        judge(tmp_path, pairs, server)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(StorageError, match="in use by another process"):
        Journal(tmp_path)
    Journal(tmp_path).__exit__()


def test_twenty_kills_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    texts = [[f"{who} {n} {'x' * (n * k % 7)}" for n in range(100)] for k, who in ((2, "ours"), (3, "sft"))]
    (whole := tmp_path / "whole").mkdir()
    pairs = pairs_of(whole, texts[0], sft=texts[1])
    judge(whole, pairs, Server(longer))
    (killed := tmp_path / "killed").mkdir()
    bill, chance, kills = killed / "bill", random.Random(7), 0

    def paid(question: str, settings: Mapping[str, Any]) -> str:
        time.sleep(0.01)
        with bill.open("a") as file:  # one write, which no kill divides
            file.write(f"{shown(question)}\n")
        return longer(question, settings)

    for _ in range(20):
        before = bill.stat().st_size if bill.exists() else 0
        if (child := os.fork()) == 0:
            judge(killed, pairs, Server(paid))
            os._exit(0)
        wanted = before + 40 * chance.randint(0, 5)  # a line has about 30 characters
        ended = 0
        while not ended and (not bill.exists() or bill.stat().st_size < wanted):
            time.sleep(0.001)
            ended, _ = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(chance.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
    assert kills > 10, "the others had come to their end before"
    judge(killed, pairs, Server(paid))
    assert games_of(killed) == games_of(whole)
    entries = read_entries(killed)
    assert len({entry.place for entry in entries}) == len(entries) == 200
    requests = Counter(bill.read_text().splitlines())
    assert len(requests) == 200 and sum(requests.values()) <= 200 + 20 * 4, "twice is only what was under way at a kill"


def test_ctrl_c_waits_for_what_will_be_paid_for(tmp_path: Path) -> None:
    pairs, bill = pairs_of(tmp_path, OURS, sft=THEIRS), tmp_path / "bill"

    def slow(question: str, settings: Mapping[str, Any]) -> str:
        with bill.open("a") as file:
            mine = len(bill.read_text().split())
            file.write("1\n")
        time.sleep(1.0 if mine == 0 else 0.2)  # the first thread is the last to end
        return longer(question, settings)

    if (child := os.fork()) == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            judge(tmp_path, pairs, Server(slow))
        except KeyboardInterrupt:
            os._exit(3)
        os._exit(0)
    while not bill.exists() or len(bill.read_text().split()) < 5:
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert 5 <= len(read_entries(tmp_path)) == len(bill.read_text().split()) < 24


def test_the_journal_holds_what_came_back(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, ["a"], sft=["b"])
    full = Answer("Why.\n[[A]]", "", "stop", "m-1", {"prompt_tokens": 3, "completion_tokens": 1}, ("x for y",))
    judge(tmp_path, pairs, Server(lambda question, settings: full))
    line = json.loads((tmp_path / VERDICTS).read_text().splitlines()[0])
    assert (line["text"], line["reason"], line["verdict"]) == (
        full.text,
        "Why.",
        "ours" if line["ours_first"] else "theirs",
    )
    assert (line["model"], line["finish_reason"], line["adapted"]) == ("m-1", "stop", ["x for y"])
    assert line["usage"] == {"prompt_tokens": 3, "completion_tokens": 1} and len(line["key"]) == 32
