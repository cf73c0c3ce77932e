"""Command lines, and how a command says what was wrong: in one sentence that a terminal shows as it is."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gipo_mc.config import check_name
from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.run.jsonl import printable, printable_lines


class Parser(argparse.ArgumentParser):
    """An argument parser that shows its description as it is written, and quotes arguments with control characters
    escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ConfigError.exit_code, f"{self.prog}: error: {printable(message)}\n")


def say_error(error: GipoError) -> int:
    """Print what happened, and return the exit code."""
    print(f"\nerror: {printable_lines(str(error))}", file=sys.stderr, flush=True)
    return error.exit_code


def say_warning(text: str) -> None:
    """Print what is odd, in one line."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def number(least: int, most: int) -> Any:
    """For `type=` of an argument: an integer in these bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {most}")
        return value

    return parse


def real(allowed: Callable[[float], bool], kind: str) -> Callable[[str], float]:
    """For `type=` of an argument: a number that is allowed, which NaN never is. kind: what it has to be, in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value) or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no {kind}")
        return value

    return parse


def name(text: str) -> str:
    """For `type=` of an argument: the name of a file or folder, one that a file system can have."""
    try:
        check_name(text, "the name")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
