"""Seeded random damage to a small valid file, as disks, editors and people do it."""

from __future__ import annotations

import os
import random

#: Bytes that mean something to the readers: JSON, YAML, escapes, numbers that overflow.
_TOKENS = [
    b"null", b"true", b"-1", b"1e999", b"99999999999999999999999", b"NaN", b"[]", b"{}", b'""', b"[", b"{", b'"', b"\\",
    b"\\u0000", b"\\ud800", b"\0", b"\x1b[31m", b"\xff\xfe", b"\xe2\x80\xae", b"${", b"*a", b"&a ", b": ", b"!!", b"\n",
    b"\xf0\x9f\x98", b"../", b"9" * 400, b"[" * 2000,
]  # fmt: skip

#: Mutations of each reader; GIPO_MC_FUZZ=100000 makes a longer run, GIPO_MC_FUZZ_SEED another one.
COUNT = int(os.environ.get("GIPO_MC_FUZZ", "0"))
SEED = os.environ.get("GIPO_MC_FUZZ_SEED", "1")


def mutated(data: bytes, name: str, number: int) -> bytes:
    """Mutation `number` of `data`: a function of name, number and GIPO_MC_FUZZ_SEED alone."""
    draw = random.Random(f"{SEED} {name} {number}")
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(data))
        length = draw.choice((0, 1, 1, 2, 8, 64))
        kind = draw.randrange(6)
        if kind == 0:  # a bit
            position = min(at, len(data) - 1)
            if data:
                data = data[:position] + bytes([data[position] ^ (1 << draw.randrange(8))]) + data[position + 1 :]
        elif kind == 1:  # something else in its place
            data = data[:at] + draw.choice(_TOKENS) + data[at + length :]
        elif kind == 2:  # taken out
            data = data[:at] + data[at + length :]
        elif kind == 3:  # twice
            data = data[: at + length] + data[at:]
        elif kind == 4:  # cut off
            data = data[:at]
        else:  # a value of JSON or YAML
            data = _value(data, draw)
    return data


def _value(data: bytes, draw: random.Random) -> bytes:
    colons = [position for position, byte in enumerate(data) if byte == ord(":")]
    if not colons:
        return data
    start = draw.choice(colons) + 1
    ends = [end for end in (data.find(sign, start) for sign in (b",", b"}", b"]", b"\n")) if end >= 0]
    return data[:start] + b" " + draw.choice(_TOKENS) + data[min(ends, default=len(data)) :]
