"""What may stand next on a command line of gipo-mc: verbs, options, keys of the configuration and their values. A shell
asks for it at each press of the tabulator, so neither torch nor Megatron-core is imported."""

from __future__ import annotations

import importlib
from argparse import Action, _SubParsersAction
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args, get_origin

from gipo_mc.run.arguments import Parser
from gipo_mc.tools.command import VERBS, first_parser

#: (what may stand there, what it means). Where it goes on, it ends with "=", "." or "/".
Candidate = tuple[str, str]


def candidates(words: Sequence[str]) -> list[Candidate]:
    """Of the last word, which may be empty or a beginning; words: those behind `gipo-mc`. Nothing is proposed where
    the name of a file alone may stand, which shells know, and where nothing is known."""
    *before, current = words or [""]
    return [found for found in _all(before, current) if found[0].startswith(current)]


def _all(before: Sequence[str], current: str) -> Iterable[Candidate]:
    rest = [word for word in before if not word.startswith("-")]
    if not rest and current.startswith("-"):
        return _of_parser(first_parser(), before, current)
    if not rest:
        return [(name, verb.help) for name, verb in VERBS.items()]
    verb, after = VERBS.get(rest[0]), before[before.index(rest[0]) + 1 :]
    if verb is None:
        return []
    parsers = parsers_of(importlib.import_module(verb.module))
    if "" in parsers:
        return _of_parser(parsers[""], after, current)
    named = [word for word in after if not word.startswith("-")]
    if not named:
        return [(name, (parser.description or "").split("\n")[0]) for name, parser in parsers.items()]
    return _of_parser(parsers[named[0]], after, current) if named[0] in parsers else []


def parsers_of(module: ModuleType) -> dict[str, Parser]:
    """Sub-command -> its parser, of a verb's module; "" where it has no sub-commands."""
    parsers: dict[str, Parser] = getattr(module, "parsers", dict)()
    for action in parsers[""]._actions if "" in parsers else ():
        if isinstance(action, _SubParsersAction):
            return dict(action.choices)
    return parsers


def _of_parser(parser: Parser, before: Sequence[str], current: str) -> Iterable[Candidate]:
    options: dict[str, Action] = parser._option_string_actions
    waiting = options.get(before[-1]) if before else None
    last = next((options.get(word) for word in reversed(before) if word.startswith("-")), None)
    if last is not None and last.dest == "set" and not current.startswith("-"):
        return _of_configuration(parser.command, current)
    if waiting is not None and waiting.nargs != 0:
        return [(str(choice), "") for choice in waiting.choices or ()]
    option, equals, _ = current.partition("=")
    if equals and option in options:
        return [(f"{option}={choice}", "") for choice in options[option].choices or ()]
    if current.startswith("-"):
        return [(name, action.help or "") for name, action in options.items() if name.startswith("--")]
    positional = [action for action in parser._actions if not action.option_strings]
    if any(action.dest == "words" for action in positional):
        return [*_of_configuration(parser.command, current), *_files(current)]
    if any(action.dest == "overrides" for action in positional):
        return _of_configuration(parser.command, current)
    return [(str(choice), "") for action in positional for choice in action.choices or ()]


def _of_configuration(command: str, current: str) -> Iterable[Candidate]:
    """Values behind "key=", else keys; sections alone while none is named, because there are some hundred keys."""
    from gipo_mc.config import describe, read_by

    known = read_by(command)
    key, equals, begun = current.partition("=")
    if equals:
        return [(f"{key}={value}", "") for value in _values(key, begun)] if key in known else []
    if "." in current:
        return [(f"{name}=", meaning) for name, _, meaning in describe(known)]
    sections = dict.fromkeys(name.split(".")[0] for name in known if "." in name)
    return [
        *((f"{name}.", "a section") for name in sections),
        *((f"{name}=", meaning) for name, _, meaning in describe([name for name in known if "." not in name])),
    ]


def _files(begun: str) -> Iterable[Candidate]:
    """Files and folders beside the options of a configuration, where a shell would propose none."""
    folder, slash, last = begun.rpartition("/")
    if "=" in begun or not Path(folder + slash).is_dir():
        return []
    beside = sorted(path for path in Path(folder + slash).iterdir() if last or not path.name.startswith("."))
    return [(f"{folder}{slash}{path.name}{'/' * path.is_dir()}", "") for path in beside]


def _values(key: str, begun: str) -> Sequence[str]:
    """The values of an option that has only a few; of a list, behind what is begun of it."""
    from gipo_mc.config import options
    from gipo_mc.presets import PRESETS

    if key == "algorithm.name":
        return list(PRESETS)
    kind = options()[key].annotation
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is list:
        before = begun[: max(begun.rfind(each) for each in "[,") + 1]
        return [f"{before}{value}" for each in get_args(kind) for value in get_args(each)]
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []
