"""The reward functions that a configuration names, and which of the forms each has, read from its signature:

    def f(sample)                         one response at a time: a number
    def f(samples)                        all responses of an iteration: a number for each, in their order
    def f(prompts, responses, domains)    the same with three lists of strings, the form that every version has taken
    async def ...                         any of these; of the first form `reward.workers` calls run at a time

`sample` is a `gipo_mc.types.Sample`. Whether one or all are wanted is told by the annotation of the only parameter, or
by its name: `samples`, `rows`, `batch`, `responses` and `completions` stand for all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from gipo_mc.config.reward import FUNCTION
from gipo_mc.errors import ConfigError
from gipo_mc.run.functions.named import import_function
from gipo_mc.types import Sample

#: Any of the forms above.
RewardFunction = Callable[..., Any]
Form = Literal["sample", "samples", "texts"]

_ALL = ("samples", "rows", "batch", "responses", "completions")
_OF_MANY = re.compile(r"([\w.]+\.)?(list|sequence|iterable|collection|tuple)\b", re.IGNORECASE)
_FORMS = "f(sample), f(samples) or f(prompts, responses, domains)"
#: Functions that were handed over as objects (`gipo_mc.train`), by their names.
_given: dict[str, RewardFunction] = {}


@contextmanager
def given_function(name: str, function: RewardFunction) -> Iterator[None]:
    """Let `name`, python:..., stand for a function that need not be importable: a closure, a method, one of a
    notebook."""
    before = _given.get(name)
    _given[name] = function
    try:
        yield
    finally:
        del _given[name]
        if before is not None:
            _given[name] = before


def load_function(name: str, key: str = "model.reward") -> RewardFunction:
    """The function behind "python:package.module:function", the value of `key`. Raises ConfigError; imports the
    module."""
    if name in _given:
        return _given[name]
    return import_function(
        name.removeprefix(FUNCTION), f"{key}={name}", f"Write python:package.module:function; it is called as {_FORMS}."
    )


def form_of(function: RewardFunction, name: str = "The reward function") -> Form:
    """How a function is to be called. Raises ConfigError where it takes neither one argument nor three."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C, without a signature
        return "texts"
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    takes_three = any_number or len(needed) == 3 or (len(needed) != 1 and len(places) >= 3)
    if takes_three and len(needed) <= 3 and not keywords:
        return "texts"
    if keywords or len(needed) != 1:
        raise ConfigError(
            f"{name} takes {', '.join([*(p.name for p in needed), *keywords]) or 'no argument'}: a reward function is "
            f"called as {_FORMS}, async or not."
        )
    annotation = needed[0].annotation
    if annotation is not inspect.Parameter.empty:
        text = annotation if isinstance(annotation, str) else str(annotation)
        if _OF_MANY.match(text):
            return "samples"
        if text.rpartition(".")[2].rstrip("'>") == Sample.__name__:
            return "sample"
    return "samples" if needed[0].name in _ALL else "sample"
