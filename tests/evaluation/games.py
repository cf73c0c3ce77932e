"""What the tests of judges share: files of responses, pairs, a server in this process that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gipo_mc.evaluation.answers import Answer
from gipo_mc.evaluation.judge_config import OpenAIJudgeConfig
from gipo_mc.evaluation.judges.chat_judge import ChatJudge
from gipo_mc.evaluation.judges.prompts import load_prompt
from gipo_mc.evaluation.pairs import Pair, make_pairs
from gipo_mc.evaluation.responses import read_responses


def row(number: int, response: str, **more: Any) -> dict[str, Any]:
    """A line of generate.py."""
    prompt = f"\n\nHuman: question {number}\n\nAssistant:"
    tokens = len(response.split()) + 1
    return {"prompt": prompt, "response": response, "domain": "", "tokens": tokens, "truncated": False} | more


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


def pairs_of(folder: Path, ours: Sequence[str], **opponents: Sequence[str]) -> list[Pair]:
    """Pairs of texts, the prompts numbered."""
    files = {"ours": ours, **opponents}
    paths = {
        label: write_rows(folder / f"{label}.jsonl", [row(n, text) for n, text in enumerate(texts)])
        for label, texts in files.items()
    }
    read = {label: read_responses(path) for label, path in paths.items()}
    return make_pairs(read["ours"], {label: read[label] for label in opponents}, {k: str(p) for k, p in paths.items()})


class Server:
    """A `ChatClient`: answer(content of the last message, settings) -> text or Answer. Counts its requests."""

    server = "test://"

    def __init__(self, answer: Callable[[str, Mapping[str, Any]], str | Answer]) -> None:
        self._answer = answer
        self._counting = threading.Lock()
        self.asked: list[str] = []

    def stop(self) -> None:
        pass  # it never waits

    def ask(self, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any]) -> Answer:
        with self._counting:
            self.asked.append(messages[-1]["content"])
        found = self._answer(messages[-1]["content"], settings)
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        return found if isinstance(found, Answer) else Answer(found, finish_reason="stop", model="m-1", usage=usage)


def chat_judge(server: Server | None, **keys: Any) -> ChatJudge:
    fields = {"kind": "openai", "name": "chat", "base_url": "http://localhost:1/v1", "model": "m", "workers": 4} | keys
    config = OpenAIJudgeConfig.model_validate(fields)
    return ChatJudge(config, load_prompt(config.prompt), server, seed=1)


def shown(question: str) -> tuple[str, str]:
    """The two responses in a question of the built-in prompts."""
    parts = question.split("===\n")
    return parts[3].rpartition("\n===")[0], parts[5].rpartition("\n===")[0]
