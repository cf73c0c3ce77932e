"""Reward functions that a configuration may name: one that works, the others wrong in a way of their own each."""

from __future__ import annotations

import asyncio
import math
import os
import time

from gipo_mc.types import Sample


def length(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def one_short(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    return [0.0] * (len(responses) - 1)


def not_a_number(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    return [math.nan if row == 1 else 0.0 for row in range(len(responses))]


def words(prompts: list[str], responses: list[str], domains: list[str]) -> list[str]:
    return ["good"] * len(responses)


def broken(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    return [1 / 0 for _ in responses]


def never(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    while True:
        time.sleep(1)


def huge(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    return [-1e30] * len(responses)


def leaves(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    raise SystemExit(0)


def nothing(prompts: list[str], responses: list[str], domains: list[str]) -> list[object]:
    return ([0.0, None] * len(responses))[: len(responses)]


def beyond(prompts: list[str], responses: list[str], domains: list[str]) -> list[int]:
    return [10**400] * len(responses)


def none_at_all(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    return [math.nan] * len(responses)


def vanishes(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    os._exit(0)


# ------------------------------------------------------------------------------------------- the forms that read a row
def of_sample(sample: Sample) -> float:
    return len(sample.response) + float(sample.columns.get("bonus", 0.0))


def of_samples(samples: list[Sample]) -> list[float]:
    return [of_sample(sample) for sample in samples]


async def of_sample_later(sample: Sample) -> float:
    await asyncio.sleep(0.02 if len(sample.response) % 2 else 0.0)  # answers come in another order
    return of_sample(sample)


def fails_now_and_then(sample: Sample) -> float:
    """For every prompt of one topic, as a verifier does on a text that it cannot parse."""
    if sample.prompt.endswith("c1"):
        raise ValueError("no answer found")
    return of_sample(sample)


def silent_now_and_then(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    """`fails_now_and_then`, by the number that says so."""
    return [
        math.nan if prompt.endswith("c1") else float(len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
