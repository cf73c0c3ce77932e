"""The client of judges' servers against a server with the faults of real ones: nothing is taken for what it is not,
and waiting and trying again have an end."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gipo_mc.evaluation.answers import Answer, JudgeStopped
from gipo_mc.evaluation.judges import openai_judge
from tests.evaluation.clients import ASKED, KEY, SETTINGS, client_of
from tests.evaluation.server import PASSING, completion, drawn, error, standin

pytest.importorskip("openai", reason="the judge's client needs the openai package: pip install 'gipo-mc[judge]'")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_judge, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(openai_judge, "_SAID_FROM", 0.05)
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)


def asked(*script: str, **options: Any) -> Answer:
    with standin(*script) as server:
        return client_of(server, **options).ask(ASKED, SETTINGS)


def stopped(*script: str, **options: Any) -> str:
    with pytest.raises(JudgeStopped) as caught:
        asked(*script, **options)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    return str(caught.value)


def test_an_answer_with_all_that_came_with_it():
    with standin() as server:
        answer = client_of(server).ask(ASKED, {**SETTINGS, "seed": 3, "chat_template_kwargs": {"thinking": False}})
        (body,) = server.requests
        (headers,) = server.headers
    assert answer == Answer("fine", "", "stop", "judge-1", {"prompt_tokens": 7, "completion_tokens": 3})
    expected = {**SETTINGS, "messages": ASKED, "seed": 3, "chat_template_kwargs": {"thinking": False}}
    assert {**body, "stream": None} == {**expected, "stream": None}
    assert headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("fault", [*PASSING, "500", "503", "429", "429 unreadable", "429 past date", "no choices"])
def test_what_passes_is_tried_again(fault: str):
    with standin(fault, fault) as server:
        assert client_of(server).ask(ASKED, SETTINGS).text == "fine"
        assert len(server.requests) == (1 if fault == "slow" else 3)
        assert sum(server.answered.values()) == 1


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("empty choices", "no message"),
        ("strange choices", "no message"),
        ("null", "holds no text (finish_reason stop)"),
        ("number", "holds no text"),
        ("reasoning", "reasoning and no text"),
        ("reasoning_content", "reasoning and no text"),
        ("reasoning, length", "Raise max_tokens"),
        ("length", "Raise max_tokens"),
        ("refusal", "I cannot judge that"),
        ("filter", "content filter"),
        ("403", "flagged by moderation"),
        ("too long", "max_tokens is too large"),
        ("vllm's old error in 200", "too long"),
    ],
)
def test_what_holds_no_text_is_no_answer_and_says_why(fault: str, problem: str):
    with standin(fault) as server:
        answer = client_of(server).ask(ASKED, SETTINGS)
        assert answer.text is None and problem in answer.problem
        assert len(server.requests) == 1


def test_text_in_parts_is_joined_without_the_reasoning():
    assert asked("list").text == "Fine.\n[[A]]"


@pytest.mark.parametrize("fault", ["no usage", "strange usage"])
def test_a_server_that_does_not_count(fault: str):
    answer = asked(fault)
    assert answer.text == "fine" and answer.usage is None


def test_text_without_utf8_is_replaced_both_ways():
    with standin("surrogate") as server:
        answer = client_of(server).ask([{"role": "user", "content": "x\ud800y"}], SETTINGS)
        assert answer.text == "a\ufffdb\0c"
        assert server.requests[0]["messages"][0]["content"] == "x?y"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("quota", "exceeded your current quota"),
        ("401", "answered 401"),
        ("402", "Insufficient credits"),
        ("404", "`model` is a name it knows"),
        ("307", "http://127.0.0.2:9/v1/chat/completions, which base_url has to name"),
        ("error in 200, 401", "answered 401 in the body of a 200"),
    ],
)
def test_where_asking_on_is_useless_one_request_stops_the_run(fault: str, said: str):
    with standin(*[fault] * 9) as server:
        client = client_of(server)
        with pytest.raises(JudgeStopped, match="the same command asks only for the rest") as caught:
            client.ask(ASKED, SETTINGS)
        assert said in str(caught.value) and server.url in str(caught.value)
        with pytest.raises(JudgeStopped):
            client.ask(ASKED, SETTINGS)
        assert len(server.requests) == 1


def test_a_pause_in_seconds_holds_all_threads_back():
    with standin("429 seconds", slow=0) as server:
        client, told = client_of(server), []
        client._tell = told.append
        client.ask(ASKED, SETTINGS)
        assert server.times[1] - server.times[0] >= 0.1
        server.script = iter(["429 seconds"])
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(client.ask, ASKED, SETTINGS)
            while client._shared.not_before < time.monotonic():
                time.sleep(0.005)
            list(pool.map(lambda _: client.ask(ASKED, SETTINGS), range(3)))
            first.result()
        assert min(server.times[3:]) - server.times[2] >= 0.1
        assert len(server.requests) == 7
    assert any("waiting" in line for line in told)


def test_a_pause_until_a_date_is_counted_from_the_servers_clock():
    with standin("429 date") as server:
        assert client_of(server).ask(ASKED, SETTINGS).text == "fine"
        assert server.times[1] - server.times[0] >= 1.0


def test_a_pause_above_the_limit_stops_and_names_the_option():
    said = stopped("429 long")
    assert "300 seconds" in said and "longest_wait_seconds=120" in said


def test_a_longer_limit_waits_for_it(monkeypatch: pytest.MonkeyPatch):
    with standin("429 long") as server:
        told: list[str] = []
        client = client_of(server, told, longest_wait_seconds=400)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.ask, ASKED, SETTINGS)
            while not told:
                time.sleep(0.005)
            assert "waiting 300 seconds" in told[0]
            client.close()  # Ctrl-C does not wait for it
            with pytest.raises(JudgeStopped, match="stopped"):
                waiting.result(timeout=5)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", "answered 500: out of memory"),
        ("dies", "broke off"),
        ("html", "<!DOCTYPE html>"),
        ("no JSON", "no chat completion"),
        ("429", "answered 429: slow down"),
        ("error in 200, no code", "something went wrong"),
    ],
)
def test_a_request_is_given_up_after_its_retries_and_the_third_in_a_row_stops(fault: str, said: str):
    with standin(*[fault] * 99) as server:
        client = client_of(server)
        for number in (1, 2):
            answer = client.ask(ASKED, SETTINGS)
            assert answer.text is None and said in answer.problem
            assert len(server.requests) == number * 3
        with pytest.raises(JudgeStopped, match="none of the last 3 requests"):
            client.ask(ASKED, SETTINGS)


def test_requests_given_up_with_answers_in_between_stop_nothing():
    with standin("500", "500", "", "500", "500", "") as server:
        client = client_of(server, retries=0)
        assert [client.ask(ASKED, SETTINGS).text for _ in range(6)] == [None, None, "fine"] * 2


def test_any_number_of_refused_texts_stops_nothing():
    with standin(*["403"] * 9) as server:
        client = client_of(server)
        assert [client.ask(ASKED, SETTINGS).text for _ in range(10)] == [None] * 9 + ["fine"]


def test_a_busy_server_costs_no_try_while_it_answers_the_others():
    """Of eight requests, one is answered at a time: those that come too early wait longer than their own tries."""
    with standin(script=(fault for _ in range(40) for fault in ["429 past date"] * 5 + [""])) as server:
        client = client_of(server, retries=3)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.ask(ASKED, SETTINGS), range(24)))
        assert sum(answer.text == "fine" for answer in answers) >= 20


def test_where_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(JudgeStopped, match=r"cannot be reached.*Is it running"):
            client_of(url).ask(ASKED, SETTINGS)


def test_a_slow_server_and_one_that_never_ends():
    with standin(*["slow"] * 3, slow=1.0) as server:
        answer = client_of(server, timeout_seconds=0.1).ask(ASKED, SETTINGS)
        assert "did not answer within timeout_seconds=0.1" in answer.problem and len(server.requests) == 3
    with standin("drip", slow=0.4) as server:
        start = time.monotonic()
        assert client_of(server, timeout_seconds=0.2).ask(ASKED, SETTINGS).text == "fine"
        assert time.monotonic() - start < 2


REFUSALS = {
    "OpenAI, max_tokens": (
        "max_tokens",
        400,
        error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
            type="invalid_request_error",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        "max_completion_tokens for max_tokens",
    ),
    "OpenAI, temperature": (
        "temperature",
        400,
        error(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        "without temperature",
    ),
    "pydantic": (
        "seed",
        422,
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
        "without seed",
    ),
    "a sentence": ("seed", 422, {"detail": "Unexpected fields in the request: {'seed'}"}, "without seed"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_parameter_is_adapted_once_recorded_and_remembered(kind: str):
    key, status, body, adapted = REFUSALS[kind]
    settings, told = {**SETTINGS, "seed": 4}, []
    with standin(refuses={key: (status, body)}) as server:
        client = client_of(server, told)
        first, second = client.ask(ASKED, settings), client.ask(ASKED, settings)
        assert first.text == second.text == "fine"
        assert first.adapted == second.adapted == (adapted,)
        assert [key in request for request in server.requests] == [True, False, False]
        sent = server.requests[-1]
    assert len(told) == 1 and adapted in told[0]
    assert sent.get("max_completion_tokens", sent.get("max_tokens")) == 64


def test_several_refusals_at_once():
    refuses = {key: (status, body) for key, status, body, _ in REFUSALS.values()}
    with standin(refuses=refuses) as server:
        answer = client_of(server).ask(ASKED, {**SETTINGS, "seed": 4})
        assert answer.text == "fine" and len(answer.adapted) == 3 and len(server.requests) == 4


def test_a_refusal_of_both_spellings_is_no_endless_exchange():
    refuses = {key: (400, error("Unsupported parameter", param=key)) for key in ("max_tokens", "max_completion_tokens")}
    with standin(refuses=refuses) as server:
        answer = client_of(server).ask(ASKED, SETTINGS)
        assert answer.text is None and len(server.requests) == 2


def test_an_adaptation_that_did_not_help_is_not_kept():
    """A bad request that names a key by the way changes nothing for the others."""
    with standin("too long", "too long") as server:
        server.refuses["temperature"] = (400, error("unknown trouble with temperature and max_tokens"))
        client = client_of(server)
        client.ask(ASKED, SETTINGS)
        server.refuses.clear()
        server.script = iter(())
        assert client.ask(ASKED, SETTINGS).adapted == ()


def test_no_pair_is_lost_or_paid_twice_with_eight_threads_and_random_faults():
    with standin(script=drawn(1, 0.4), reply=lambda body: body["messages"][0]["content"], slow=0.01) as server:
        client = client_of(server, retries=12)
        with ThreadPoolExecutor(8) as pool:
            texts = [f"pair {number}" for number in range(100)]
            answers = list(pool.map(lambda text: client.ask([{"role": "user", "content": text}], SETTINGS).text, texts))
        assert answers == texts
        assert set(server.answered.values()) == {1} and len(server.answered) == 100


def test_the_pool_is_bounded():
    """No more connections than workers, whoever asks."""
    open_now, most, lock = [0], [0], threading.Lock()

    def reply(body: dict[str, Any]) -> str:
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        time.sleep(0.01)
        with lock:
            open_now[0] -= 1
        return "fine"

    with standin(reply=reply) as server, ThreadPoolExecutor(8) as pool:
        client = client_of(server, workers=2)
        list(pool.map(lambda _: client.ask(ASKED, SETTINGS), range(12)))
    assert most[0] == 2


def test_a_model_name_that_changes_is_returned_as_it_came():
    bodies = [completion("fine", model=f"judge-{number}") for number in (1, 2)]
    with standin() as server:
        server.refuses = {"model": (200, bodies[0])}
        client = client_of(server)
        first = client.ask(ASKED, SETTINGS).model
        server.refuses = {"model": (200, bodies[1])}
        assert (first, client.ask(ASKED, SETTINGS).model) == ("judge-1", "judge-2")
