"""A client of the stand-in server, and what it asks."""

from __future__ import annotations

from typing import Any

from gipo_mc.evaluation.judge_config import OpenAIJudgeConfig
from gipo_mc.evaluation.judges.openai_judge import OpenAIClient
from tests.evaluation.server import Standin

KEY = "sk-test-4f9d2c71e8"
ASKED = [{"role": "user", "content": "Which is better?"}]
SETTINGS = {"model": "judge", "temperature": 0.0, "max_tokens": 64}


def client_of(server: Standin | str, told: list[str] | None = None, **options: Any) -> OpenAIClient:
    url = server if isinstance(server, str) else server.url
    options = {"key_variable": "TEST_JUDGE_KEY", "retries": 2, "timeout_seconds": 5, **options}
    config = OpenAIJudgeConfig(kind="openai", base_url=url, model="judge", **options)
    return OpenAIClient(config, tell=(told if told is not None else []).append)
