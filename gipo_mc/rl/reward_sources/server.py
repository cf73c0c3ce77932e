"""Rewards by a server of the user's own, over HTTP.

Each data-parallel replica asks for its own block of the responses, from one of its ranks; all ranks then have all of
the rewards, in the order of the responses. Requests of `reward.batch` samples run `reward.workers` at a time. One that
meets a server that is busy (429), failing (5xx), silent or gone is sent again, up to `reward.retries` times, after a
pause that doubles and that differs from request to request, or the one that the server asks for.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import hide
from gipo_mc.config.environment import hide_value
from gipo_mc.config.reward import RewardConfig
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.parallel.collectives import gather_in_rank_order
from gipo_mc.parallel.layout import Layout, split_rows
from gipo_mc.parallel.limits import limited
from gipo_mc.rl.reward_sources import event_loop
from gipo_mc.rl.reward_sources.protocol import Reply, read_reply, request_body
from gipo_mc.rl.reward_sources.samples import may_skip, samples_of
from gipo_mc.types import Prompt, Rollout, Sample

#: Seconds before the second try, of which each later one waits twice as long, and the longest such pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Bytes of an answer: some for the answer, and some for each reward. More of it is not read.
_LARGEST, _LARGEST_PER_REWARD = 2**16, 2**10
#: Share of parallel.timeout_minutes after which no request is sent any more: later the whole job would be ended.
_SHARE_OF_LIMIT = 0.8


def token_of(variable: str) -> str:
    """The token in an environment variable, hidden from now on in all that is printed or written; "" for no variable.
    Raises ConfigError without quoting it."""
    if not variable:
        return ""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(
            f"reward.key_variable={variable}: there is no such environment variable, or it is empty. Export it."
        )
    hide_value(token, variable)
    if not re.fullmatch("[!-~]+", token):
        raise ConfigError(
            f"reward.key_variable={variable}: it holds a space or a character that no HTTP header can have."
        )
    return token


@dataclass
class Server:
    """One reward server. seconds: that all requests of a call may take together.

    `ask` is called from any thread; connections are kept from one call to the next.
    """

    address: str
    settings: RewardConfig
    seconds: float = math.inf
    _client: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._token = token_of(self.settings.key_variable)

    def ask(self, samples: Sequence[Sample]) -> list[tuple[list[float] | None, str]]:
        """For each block of `reward.batch` samples, in order: (rewards, NaN for what has none; None: no answer at all,
        what was wrong, a sentence, or "")."""
        size = self.settings.batch
        blocks = [samples[start : start + size] for start in range(0, len(samples), size)]
        return event_loop.run(self._ask_all(blocks, time.monotonic() + self.seconds))

    async def _ask_all(self, blocks: list[Sequence[Sample]], end: float) -> list[tuple[list[float] | None, str]]:
        free = asyncio.Semaphore(self.settings.workers)

        async def one(block: Sequence[Sample]) -> tuple[list[float] | None, str]:
            async with free:
                return await self._ask_again(block, end)

        return list(await asyncio.gather(*map(one, blocks)))

    async def _ask_again(self, block: Sequence[Sample], end: float) -> tuple[list[float] | None, str]:
        body, tries, reply = request_body(block), 0, Reply(problem="was not asked: time was up before", passing=True)
        while time.monotonic() < end:
            reply = await self._ask_once(body, len(block), end)
            tries += 1
            if reply.rewards is not None or not reply.passing or tries > self.settings.retries:
                break
            await asyncio.sleep(max(0.0, min(_pause(tries, reply.pause), end - time.monotonic())))
        times = f" (after {tries} tries)" if tries > 1 else ""
        return reply.rewards, f"The reward server {self.address} {reply.problem}{times}." if reply.problem else ""

    async def _ask_once(self, body: bytes, count: int, end: float) -> Reply:
        import httpx2

        limit = min(self.settings.timeout_seconds, max(0.01, end - time.monotonic()))
        try:
            # The client's own time-out is for each read: a server that sends a byte now and then would not end.
            async with asyncio.timeout(limit):
                return await self._exchange(body, count)
        except (TimeoutError, httpx2.TimeoutException):
            return Reply(None, f"did not answer within {limit:.3g} seconds (reward.timeout_seconds)", passing=True)
        except httpx2.HTTPError as error:
            said = " ".join(hide(str(error)).split())[:200] or type(error).__name__
            return Reply(None, f"cannot be reached, or broke off: {said}", passing=True)

    async def _exchange(self, body: bytes, count: int) -> Reply:
        most, found = _LARGEST + count * _LARGEST_PER_REWARD, b""
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        async with self._connections().stream("POST", self.address, content=body, headers=headers) as response:
            async for piece in response.aiter_bytes():
                found += piece
                if len(found) > most:
                    break  # a part is no JSON
            return read_reply(response.status_code, response.headers, found, count)

    def _connections(self) -> Any:
        import httpx2

        if self._client is None:
            local = urlsplit(self.address).hostname in ("localhost", "127.0.0.1", "::1")
            self._client = httpx2.AsyncClient(
                trust_env=not local,  # a proxy for the internet does not reach this machine, and need not see the token
                follow_redirects=False,  # the token goes to the server that was named, and nowhere else
                limits=httpx2.Limits(max_connections=self.settings.workers),
                timeout=self.settings.timeout_seconds,
            )
        return self._client


def _pause(tries: int, asked: float | None) -> float:
    """Seconds before the next try. With jitter: what failed together does not come back together."""
    if asked is not None:
        return min(asked, LONGEST_PAUSE) * random.uniform(1.0, 1.25)
    return min(FIRST_PAUSE * 2.0 ** min(tries - 1, 30), LONGEST_PAUSE) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class ServerReward:
    """A reward by a server. warn: told of what is left out.

    Raises, on every rank, DataError where the server gives no rewards, unless reward.on_error=skip.
    """

    server: Server
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    warn: Callable[[str], None] = lambda text: None

    @classmethod
    def at(
        cls,
        address: str,
        settings: RewardConfig,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout,
        limit: float,
        warn: Callable[[str], None] = lambda text: None,
    ) -> ServerReward:
        """limit: seconds after which a call ends the job (parallel.timeout_minutes). Raises ConfigError."""
        return cls(Server(address, settings, _SHARE_OF_LIMIT * limit), tokenizer, layout, warn)

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        """float32 [B], NaN where there is no reward."""
        blocks = split_rows(len(prompts), self.layout.data)
        own = blocks[self.layout.data_rank]
        asks = self.layout.tensor_rank == 0 and self.layout.pipeline_rank == 0
        rewards, problem = [math.nan] * len(own), ""
        if asks:
            with limited(f"The reward server {self.server.address}"):
                rewards, problem = self._ask(samples_of(prompts, rollout, self.tokenizer, own))
        found, problems = self._of_all(rewards, problem, blocks, asks)
        if problems:
            if self.server.settings.on_error == "stop":
                raise may_skip(DataError(problems[0]))
            self.warn(f"reward.on_error=skip: {problems[0]}")
        return torch.tensor(found, dtype=torch.float32, device=self.layout.device)

    def _ask(self, samples: list[Sample]) -> tuple[list[float], str]:
        """(rewards of these samples, NaN where there is none; the first problem)."""
        size, found, problem = self.server.settings.batch, [], ""
        for start, (rewards, wrong) in zip(range(0, len(samples), size), self.server.ask(samples), strict=True):
            found += [math.nan] * len(samples[start : start + size]) if rewards is None else rewards
            problem = problem or wrong
        return found, problem

    def _of_all(
        self, own: list[float], problem: str, blocks: Sequence[range], asks: bool
    ) -> tuple[list[float], list[str]]:
        """(rewards of all blocks, problems) from those of each asking rank: one gather, a second only for problems."""
        if dist.get_world_size() == 1:
            return own, [problem] if problem else []
        longest = max(map(len, blocks))
        row = [float(self.layout.data_rank) if asks else -1.0, float(bool(problem)), *own]
        padded = torch.zeros(2 + longest, dtype=torch.float64, device=self.layout.device)
        padded[: len(row)] = torch.tensor(row, dtype=torch.float64)
        gathered = gather_in_rank_order(padded).tolist()
        by_replica = {int(found[0]): found[2:] for found in gathered if found[0] >= 0}
        rewards = [value for replica, block in enumerate(blocks) for value in by_replica[replica][: len(block)]]
        problems: list[str | None] = [None] * len(gathered)
        if any(found[1] for found in gathered):
            dist.all_gather_object(problems, problem)
        return rewards, [text for text in problems if text]
