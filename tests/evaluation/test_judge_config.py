"""A judge's file: strict, complete before anything is asked, and without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.judge_config import OpenAIJudgeConfig, PythonJudgeConfig, load_judge

OPENAI = "kind: openai\nbase_url: http://localhost:8000/v1/\nmodel: m\n"


def test_a_judge_is_called_after_its_file(tmp_path: Path) -> None:
    (file := tmp_path / "small.yaml").write_text(OPENAI)
    judge = load_judge(str(file))
    assert isinstance(judge, OpenAIJudgeConfig) and (judge.name, judge.base_url) == (
        "small",
        "http://localhost:8000/v1",
    )
    with pytest.raises(ConfigError, match="cannot be called people"):
        load_judge(str(file.rename(tmp_path / "people.yaml")))
    file.write_text("kind: python\nfunction: a.b:c\nname: rule 1\n")
    assert isinstance(python := load_judge(str(file)), PythonJudgeConfig) and python.name == "rule 1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: gpt\n", "`kind:` must be one of openai, reward, python, not 'gpt'"),
        ("- 1\n", "`kind:` must be one of"),
        ("kind: [openai\n", "is not valid YAML"),
        (OPENAI + "modle: x\n", "modle: there is no such key; known here: name"),
        (OPENAI.replace("http://", "http://me:secret@"), "base_url holds a user or a password"),
        (OPENAI.replace("http://localhost:8000/v1/", "localhost"), "base_url='localhost' is no address"),
        (OPENAI + "key_variable: sk-secret\n", "key_variable is no name of an environment variable"),
        (OPENAI + "temperature: yes\n", "temperature"),
        (OPENAI + "max_tokens: 0100\n", "YAML reads 0100 as the number 64"),
        (OPENAI + "extra: {temperature: 1}\n", "extra holds temperature, which the judge sends itself"),
        (OPENAI + "name: people\n", "a judge cannot be called people"),
        (OPENAI + "name: 'a/b'\n", "a label has at most 60 letters"),
        ("kind: reward\n", "model: it is missing"),
        ("kind: reward\nmodel: x\norders: both\n", "orders: there is no such key"),
    ],
)
def test_what_is_wrong_is_said_and_no_secret_is(text: str, words: str, tmp_path: Path) -> None:
    (file := tmp_path / "judge.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"judge\.yaml") as caught:
        load_judge(str(file))
    assert words in str(caught.value) and "secret" not in str(caught.value)


def test_there_must_be_a_file() -> None:
    with pytest.raises(ConfigError, match=r"--judge nowhere\.yaml: there is no such file"):
        load_judge("nowhere.yaml")
