"""Numbers that YAML reads otherwise than the person who wrote them: 010 as 8, 1:30 as 90 (YAML 1.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

_OCTAL_OR_SEXAGESIMAL = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def misread(path: str | None, overrides: list[str]) -> list[str]:
    """Numbers of a configuration that YAML would read otherwise than the user wrote them, a sentence each."""
    texts = [(f"{path}, ", Path(path).read_text(encoding="utf-8"))] if path else []
    texts += [(f"{override}, ", override.partition("=")[2]) for override in overrides]
    found = []
    for label, text in texts:
        with suppress(yaml.YAMLError):  # said already
            found += [label + problem for problem in misread_numbers(text)]
    return found


def misread_numbers(text: str) -> list[str]:
    """The numbers in a YAML document that are octal or sexagesimal, a sentence each. Raises yaml.YAMLError."""
    return [
        f"line {node.start_mark.line + 1}: YAML reads {node.value} as the number {yaml.safe_load(node.value)}. Write it"
        " without a leading zero or a colon, or in quotes where it is a name."
        for node in _scalars(yaml.compose(text, Loader=yaml.SafeLoader))
        if node.style is None and node.tag.endswith((":int", ":float")) and _OCTAL_OR_SEXAGESIMAL.fullmatch(node.value)
    ]


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _scalars(value)
