"""How much a command says: everything, or with --quiet its result, warnings and errors alone."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_quiet = False


def is_quiet() -> bool:
    """Was --quiet given?"""
    return _quiet


def is_first_rank() -> bool:
    """Is this the one process, or the first of the job's ranks, which speaks for all of them?"""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def keep_voice() -> Iterator[None]:
    """--quiet holds for one command: programs and tests call several, one after the other."""
    global _quiet
    before = _quiet
    try:
        yield
    finally:
        _quiet = before


def tell(text: str) -> None:
    """A line on what is going on: to stderr, so that it is never taken for a result; not with --quiet."""
    from gipo_mc.run.jsonl import printable_lines

    if not _quiet:
        print(printable_lines(text), file=sys.stderr, flush=True)


class Quiet(argparse.Action):
    """The option --quiet."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, *_: object) -> None:
        global _quiet
        _quiet = True
