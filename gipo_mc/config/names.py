"""Names of files and folders that no system call takes: found before they are used, in one sentence each."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

from gipo_mc.config.environment import has_password
from gipo_mc.errors import ConfigError

#: Bytes of a part of a path, and of a path, on Linux.
LONGEST_PART, LONGEST_PATH = 255, 4095
_NAMES = ("run.dir", "run.name", "model.", "data.prompts", "data.preferences", "data.demonstrations", "data.evaluation")
_MORE_NAMES = ("dpo.group_model", "eval.reward", "eval.pairs", "reward.also", "reward.models")


def name_problem(name: str) -> str:
    """Why no file can have this name; "" where one can."""
    data = os.fsencode(name) if "\0" not in name else b"\0"
    if b"\0" in data:
        return "holds a NUL byte"
    longest = max(map(len, data.split(b"/")))
    if longest > LONGEST_PART or len(data) > LONGEST_PATH:
        return f"is too long for a file system ({len(data)} bytes; a part of a path has at most {LONGEST_PART})"
    return ""


def check_name(name: str, key: str) -> None:
    """Raises ConfigError where no file can have the name that option `key` gives."""
    if problem := name_problem(name):
        raise ConfigError(f"{key}={_short(name)} {problem}: give another name.")


def is_file(path: str) -> bool:
    """Is there a regular file of this name? Where no file can have it, there is none."""
    return not name_problem(path) and Path(path).is_file()


def shipped(folder: str) -> str:
    """Where a folder of the repository is, for a sentence: its path where the program runs from a checkout."""
    there = Path(__file__).resolve().parents[2] / folder
    return f"{there}/" if there.is_dir() else f"{folder}/ of the repository"


def check_regular(folder: Path) -> None:
    """Raises ConfigError where a folder that was given holds what is no file: a named pipe, which never ends."""
    try:
        odd = [path for path in sorted(folder.iterdir()) if path.exists() and not (path.is_file() or path.is_dir())]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be listed: {error.strerror}.") from error
    if odd:
        raise ConfigError(f"{odd[0]} is a pipe, socket or device, not a file: take it out of the folder.")


def name_problems(values: dict[str, Any]) -> list[str]:
    """What is wrong with the names among the options, a line each."""
    problems = []
    for key, value in values.items():
        texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        if any(map(has_password, texts)):
            problems.append(f"{key} holds a password in a URL: put it into an environment variable")
        if not key.startswith(_NAMES + _MORE_NAMES):
            continue
        problems += [f"{key}={_short(text)} {problem}" for text in texts if (problem := name_problem(text))]
        if key == "run.name" and any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in str(value)):
            problems.append(f"{key}={value!r} holds characters that cannot be seen: give a plain name")
        if key == "run.name" and (Path(value).is_absolute() or ".." in Path(value).parts):
            problems.append(f"run.name={value!r} leaves run.dir: give a plain name")
    return problems


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:60]}...")
