"""The section `reward`: rewards beside `model.reward`, an ensemble with it or added to it, what is taken from them, and
what happens where one fails.

A reward is named by a run, a folder or a hub name (a reward model), by `python:package.module:function`, or by the
address of a server, `http://host:port/path`.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from gipo_mc.config.section import LARGE, Section, changeable, fixed_by_content

FUNCTION = "python:"
_SERVERS = ("http://", "https://")


def is_function(name: str) -> bool:
    """Does the name of a reward stand for a Python function?"""
    return name.startswith(FUNCTION)


def is_server(name: str) -> bool:
    """Does the name of a reward stand for a server?"""
    return name.startswith(_SERVERS)


def is_model(name: str) -> bool:
    """Does the name of a reward stand for a reward model?"""
    return bool(name) and not is_function(name) and not is_server(name)


class RewardConfig(Section):
    models: list[str] = fixed_by_content(
        default_factory=list, description="RL: reward models beside model.reward, an ensemble with it"
    )
    deviations: float = Field(
        0.0, ge=0, description="an ensemble pays its mean minus so many standard deviations of its models"
    )
    also: list[str] = fixed_by_content(
        default_factory=list,
        description="RL: rewards added to model.reward: models, python:package.module:function, http://host:port/path",
    )
    weights: list[float] = Field(
        default_factory=list, description="weight of model.reward and of each of reward.also, in order; empty: 1 each"
    )
    names: list[str] = changeable(
        default_factory=list, description="their names in the metrics reward/part/<name>; empty: from where they are"
    )
    length_penalty: float = Field(
        0.0, ge=0, description="taken from the reward for each response token beyond reward.free_length"
    )
    free_length: int = Field(0, ge=0, le=LARGE, description="response tokens that reward.length_penalty does not count")
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="taken from the reward of a response that rollout.max_new_tokens cut"
    )
    on_error: Literal["stop", "skip"] = changeable(
        "stop", description="a reward that fails or answers with no number: end the run, or leave the responses out"
    )
    max_skipped: float = changeable(
        0.05,
        ge=0,
        le=1,
        description="on_error=skip: more than this share left out counts towards algorithm.invalid_patience",
    )
    key_variable: str = changeable(
        "", description="reward servers: environment variable with the token that is sent to them; empty: none"
    )
    timeout_seconds: float = changeable(30.0, gt=0, le=10**6, description="reward servers: seconds for one request")
    retries: int = changeable(4, ge=0, le=100, description="reward servers: tries after the first one that fails")
    workers: int = changeable(
        8, ge=1, le=1024, description="requests to a server, or calls of an async function, at a time"
    )
    batch: int = changeable(16, ge=1, le=LARGE, description="reward servers: responses in one request")

    def sources(self, first: str) -> list[str]:
        """The names of all rewards. first: model.reward."""
        return [first, *self.also]

    def from_outside(self, first: str) -> bool:
        """Does any reward come from the user's own code or server, which may fail for a moment? first: model.reward."""
        return not all(map(is_model, self.sources(first)))

    def named(self, first: str) -> list[str]:
        """A name for the metrics of each reward, no two alike. first: model.reward."""
        if self.names:
            return list(self.names)
        found: list[str] = []
        for source in self.sources(first):
            name = _short(source)
            again = [other for other in found if re.fullmatch(re.escape(name) + r"(_\d+)?", other)]
            found.append(f"{name}_{len(again) + 1}" if again else name)
        return found

    def weighted(self) -> list[float]:
        """The weight of each reward, in the order of `sources`."""
        return list(self.weights) or [1.0] * (1 + len(self.also))

    def problems(self, first: str, signal: str = "reward") -> list[str]:
        """Combinations that have no meaning, each with the fix. first: model.reward. signal: algorithm.signal."""
        found, count = [], 1 + len(self.also)
        for key, given in (("weights", self.weights), ("names", self.names)):
            if given and len(given) != count:
                found.append(
                    f"reward.{key} has {len(given)} entries for {count} rewards: give one for model.reward and one for "
                    "each of reward.also, in this order, or none"
                )
        odd = [name for name in self.names if not re.fullmatch(r"[\w.-]+", name)]
        if odd or len(set(self.names)) < len(self.names):
            what = f"{odd[0]!r} is none" if odd else "two of them are the same"
            found.append(f"reward.names are names of metrics, of letters, digits, _ . and -, and {what}")
        if self.free_length and not self.length_penalty:
            found.append(
                f"reward.free_length={self.free_length} is what reward.length_penalty lets pass, and that is 0: set it"
            )
        found += self._ensemble_problems(first, signal)
        servers = [name for name in self.sources(first) if is_server(name)]
        found += [problem for name in servers if (problem := _address_problem(name))]
        return found

    def _ensemble_problems(self, first: str, signal: str) -> list[str]:
        found = []
        if signal == "disagreement" and not self.models:
            found.append(
                "algorithm.signal=disagreement is the standard deviation of several reward models, and there is one: "
                "name others in reward.models, or set algorithm.signal=reward"
            )
        others = [name for name in ([first] if self.models else []) + self.models if name and not is_model(name)]
        if others:
            found.append(
                f"reward.models makes an ensemble of model.reward and itself, and {', '.join(others)} is no reward "
                "model, and has another scale: name it in reward.also"
            )
        if again := [name for name in self.models if [first, *self.models].count(name) > 1]:
            found.append(
                f"reward.models names {again[0]} more than once, model.reward counted: a model does not disagree with "
                "itself, so take it out"
            )
        if self.deviations and not self.models:
            found.append(
                f"reward.deviations={self.deviations:g} is what an ensemble loses where its models disagree, and there "
                "is one model: name others in reward.models, or set it to 0"
            )
        return found


def _address_problem(address: str) -> str:
    try:
        parts = urlsplit(address)
        fine = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine:
        return f"{address!r} is no address of a reward server: write one like http://localhost:8000/score"
    if "@" in parts.netloc:
        return (
            f"the reward server at {parts.hostname} is given a user or a password in its address, which is written to "
            "files: name the environment variable of a token in reward.key_variable"
        )
    return ""


def _short(source: str) -> str:
    """A name for metrics: of a function its own, of a server its host, of a model its folder's."""
    if is_function(source):
        name = source.rpartition(":")[2]
    elif is_server(source):
        name = urlsplit(source).hostname or "server"
    else:
        name = source.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", name) or "reward"
