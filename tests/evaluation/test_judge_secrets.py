"""The key of a judge's server is in no error, log or foreign server; nor is what else the environment holds."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback

import pytest

from gipo_mc.config import hide
from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.answers import JudgeStopped
from gipo_mc.evaluation.judge_config import OpenAIJudgeConfig
from gipo_mc.evaluation.judges.openai_judge import OpenAIClient
from tests.evaluation.clients import ASKED, KEY, SETTINGS, client_of
from tests.evaluation.server import standin

pytest.importorskip("openai", reason="the judge's client needs the openai package: pip install 'gipo-mc[judge]'")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gipo_mc.evaluation.judges.openai_judge.FIRST_PAUSE", 0.01)
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)


def test_the_key_is_in_no_error_and_no_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    shown = []
    for fault in ("401", "401 starred", "500", "dies", "slow", ""):
        with standin(*[fault] * 9, slow=0.2) as server:
            told: list[str] = []
            client = client_of(server, told, timeout_seconds=0.1)
            try:
                for _ in range(3):
                    shown.append(repr(client.ask(ASKED, SETTINGS)))
            except JudgeStopped as caught:
                shown += traceback.format_exception(caught)
            shown += [*told, repr(client), client.server]
    text = "\n".join([*shown, *(f"{record.getMessage()} {record.args}" for record in caplog.records)])
    assert "answered 401" in text and len(caplog.records) > 20
    assert KEY not in text and "sk-start" not in text and "9end" not in text
    assert hide(f"a judge that says {KEY}") == "a judge that says ${oc.env:TEST_JUDGE_KEY}"


@pytest.mark.parametrize(
    ("held", "said"), [(None, "no such environment variable"), ("  ", "empty"), ("sk-two words", "a space")]
)
def test_a_key_that_cannot_be_sent_is_refused_without_being_quoted(
    held: str | None, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TEST_JUDGE_KEY")
    if held is not None:
        monkeypatch.setenv("TEST_JUDGE_KEY", held)
    with pytest.raises(ConfigError, match=said) as caught:
        client_of("http://127.0.0.1:9/v1")
    assert "words" not in str(caught.value)


def test_a_newline_behind_the_key_is_not_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", f"{KEY}\n")
    with standin() as server:
        client_of(server).ask(ASKED, SETTINGS)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in hide(KEY)


def test_nothing_of_another_account_in_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "authorization: Bearer sk-custom-header\nX-Gate: custom-header")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with standin() as server:
        client_of(server, key_variable="").ask(ASKED, SETTINGS)
        sent = str(server.headers)
    assert "Bearer none" in sent
    assert not any(word in sent for word in ("mine", "somebody", "custom-header"))


@pytest.mark.parametrize(
    "url", ["http://me:secret9@localhost:8000/v1", "http://localhost:8000/v1?key=secret9", "http://localhost:x/v1"]
)
def test_an_address_with_a_secret_is_refused_without_being_quoted(url: str):
    config = OpenAIJudgeConfig(kind="openai", base_url="http://localhost/v1", model="m").model_copy(
        update={"base_url": url}
    )
    with pytest.raises(ConfigError, match="base_url") as caught:
        OpenAIClient(config)
    assert "secret9" not in str(caught.value)


def test_the_server_of_a_verdict_is_its_address():
    for url in ("https://API.example.com/v1/", "https://api.example.com/v1"):
        assert client_of(url).server == "https://api.example.com/v1"
    assert client_of("http://[::1]:8000/v1").server == "http://[::1]:8000/v1"


def test_openai_is_imported_by_the_client_alone_and_asked_for_where_it_is_missing():
    code = (
        "import sys; import gipo_mc.evaluation.judges.openai_judge as j\n"
        "from gipo_mc.evaluation.judge_config import OpenAIJudgeConfig\n"
        "assert not {'openai', 'httpx2', 'torch'} & set(sys.modules); sys.modules['openai'] = None\n"
        "j.OpenAIClient(OpenAIJudgeConfig(kind='openai', base_url='http://localhost/v1', model='m'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert "gipo-mc[judge]" in found.stderr.splitlines()[-1]
