"""A function by its name, module:function, in the current folder or wherever Python looks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gipo_mc.errors import ConfigError, did_you_mean

_ABSENT = object()


def import_function(name: str, said: str, usage: str) -> Callable[..., Any]:
    """The function behind "package.module:function"; imports the module, and what that imports.

    said: what the message calls it ("model.reward=python:a:b"). usage: how a name is written and the function called,
    one or more sentences. Raises ConfigError, whatever the module raises, SystemExit too.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function.isidentifier():
        raise ConfigError(f"{said}: the function cannot be loaded (the name is not written module:function). {usage}")
    _look_in_the_current_folder()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's module, which may raise anything
        why = f"{type(error).__name__}: {error}"
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        raise ConfigError(f"{said}: the function cannot be loaded ({why}). {_where() if absent else usage}") from error
    found = getattr(module, function, _ABSENT)
    if found is _ABSENT:
        near = did_you_mean(function, (known for known in vars(module) if not known.startswith("_")))
        raise ConfigError(
            f"{said}: the function cannot be loaded (there is no {function} in {_file_of(module)}{near}). {usage}"
        )
    if not callable(found):
        raise ConfigError(f"{said} is a {type(found).__name__}, not a function.")
    return found  # type: ignore[no-any-return]


def has_module(name: str) -> bool:
    """Is there the module of "package.module:function", or the package that it is in? Imports nothing."""
    _look_in_the_current_folder()
    try:
        return importlib.util.find_spec(name.partition(":")[0].partition(".")[0]) is not None
    except (ValueError, ImportError):  # an empty name; a module that was put together by hand
        return False


def _look_in_the_current_folder() -> None:
    """As `python -m` and torchrun do, whatever the command was started by: a console script has its own folder on the
    path. For good, because a function may import its neighbours when it is called; and last, so that a file here takes
    no library's place. `python -P` and PYTHONSAFEPATH ask for the path as it is."""
    here = os.getcwd()
    if not sys.flags.safe_path and "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def _where() -> str:
    if sys.flags.safe_path:
        return "The module is looked for on PYTHONPATH and among what is installed: add its folder to PYTHONPATH."
    return (
        f"The module is looked for in the current folder, {os.getcwd()}, on PYTHONPATH and among what is installed: "
        "start where it is, or add its folder to PYTHONPATH."
    )


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or f"the module {module.__name__}"
