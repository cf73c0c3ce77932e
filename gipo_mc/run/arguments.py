"""Command lines, and how a command says what was wrong: in one sentence that a terminal shows as it is.

What `--help` does not need is imported where it is used: the configuration takes a third of a second.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gipo_mc.errors import ConfigError, GipoError, did_you_mean, nearest
from gipo_mc.run.terminal.voice import Quiet


class Parser(argparse.ArgumentParser):
    """An argument parser that shows its description as it is written, quotes arguments with control characters
    escaped, and answers a mistyped option or value with the nearest ones.

    verb: of gipo-mc, such as "train sft". reports: whether there is --json, for one object on stdout. Its attribute
    `command` names the command whose options of a configuration `overrides` are; "": any.
    """

    def __init__(self, verb: str = "", *, reports: bool = False, **options: Any) -> None:
        if verb:
            options["prog"] = _typed(verb)
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        if self.add_help:
            self.add_argument("-q", "--quiet", action=Quiet, help="only the result, warnings and errors")
        if reports:
            self.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        self.command = ""
        self._words: list[str] = []
        self._is_front = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def up_to_verb(self, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse as far as the verb, whose options stand behind it: (what is found, the words behind the verb)."""
        self._is_front = True
        end = next((position for position, word in enumerate(words, 1) if not word.startswith("-")), len(words))
        return self.parse_args(words[:end]), words[end:]

    def error(self, message: str) -> NoReturn:
        from gipo_mc.run.jsonl import printable

        self.print_usage(sys.stderr)
        message += self._choices_of(message) + (self._with_dashes(message) or self._nearest())
        self.exit(ConfigError.exit_code, f"{self.prog}: error: {printable(message)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def _with_dashes(self, message: str) -> str:
        """How to give an option a value that begins with a dash, where one stands behind it."""
        option = message.removeprefix("argument ").partition(":")[0].split("/")[-1]
        if not message.endswith(": expected one argument") or option not in self._words[:-1]:
            return ""
        value = self._words[self._words.index(option) + 1]
        return f"; write {option}={value}" if value.startswith("-") else ""

    def _nearest(self) -> str:
        """What the first unknown option was perhaps meant to be: it may be why another one is missing."""
        from gipo_mc.config import options

        known = self._option_string_actions
        for word in (word.partition("=")[0] for word in self._words if word.startswith("--") and len(word) > 2):
            if any(option.startswith(word) for option in known):
                continue
            if self._is_front and not nearest(word, known, cutoff=0.75):
                return "; the options of a verb stand behind it"
            if (key := word.lstrip("-")) in options():
                return f"; an option of the configuration has no dashes: {key}=VALUE"
            if meant := self._keys(key):
                return f"; an option of the configuration has no dashes: write {' or '.join(meant)}"
            return did_you_mean(key, options()) if "." in key else did_you_mean(word, known)
        return ""

    def _keys(self, name: str) -> list[str]:
        """The options of a configuration that --NAME was perhaps meant to be, as they are written here."""
        from gipo_mc.config import read_by
        from gipo_mc.config.explain.problems import keys_called

        # Where a verb takes options of a configuration, and how.
        taken = {"overrides": "", "words": "", "set": "--set "}
        begin = next((taken[action.dest] for action in self._actions if action.dest in taken), None)
        if begin is None:
            return []
        first = next(word for word in self._words if word.lstrip("-").partition("=")[0] == name)
        behind = self._words[self._words.index(first) + 1 :][:1]
        value = first.partition("=")[2] or next((w for w in behind if w[0:1] != "-" and "=" not in w), "VALUE")
        return [f"{begin}{key}={value}" for key in keys_called(name, read_by(self.command))]

    def _choices_of(self, message: str) -> str:
        """The words that a missing argument may be, where that is all that is wrong."""
        missing = message.rpartition("required: ")[2]
        found = next((a.choices for a in self._actions if a.choices and a.metavar == missing), None)
        return f", one of {', '.join(map(str, found))}" if found else ""


def _typed(verb: str) -> str:
    """The command as it was typed: `gipo-mc evaluate judge`, or the script's name for it, `evaluate.py judge`."""
    script = Path(sys.argv[0]).name
    if script == "__main__.py" or not script.endswith(".py"):
        return f"gipo-mc {verb}"
    first, _, more = verb.partition(" ")
    return f"{script} {more}" if more and script == f"{first}.py" else script


def say_error(error: GipoError) -> int:
    """Print what happened, and return the exit code."""
    from gipo_mc.run.jsonl import printable_lines

    print(f"\nerror: {printable_lines(str(error))}", file=sys.stderr, flush=True)
    return error.exit_code


def say_warning(text: str) -> None:
    """Print what is odd, in one line."""
    from gipo_mc.run.jsonl import printable

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
    """For `type=` of an argument: the name of a file or folder, one that a file system can have. A ~ at its beginning
    is the home folder, which shells leave to a program in --out=~/folder."""
    from gipo_mc.config import check_name

    try:
        check_name(text, "the name")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return os.path.expanduser(text)
