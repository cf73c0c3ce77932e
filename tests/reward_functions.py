"""Reward functions that a configuration may name: one that works, the others wrong in a way of their own each."""

from __future__ import annotations

import math
import os
import time


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
    return [0.0, None] * len(responses)


def beyond(prompts: list[str], responses: list[str], domains: list[str]) -> list[int]:
    return [10**400] * len(responses)


def none_at_all(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    return [math.nan] * len(responses)


def vanishes(prompts: list[str], responses: list[str], domains: list[str]) -> list[float]:
    os._exit(0)
