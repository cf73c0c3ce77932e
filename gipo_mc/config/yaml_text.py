"""YAML that a user wrote, bounded before it is expanded: a few lines of aliases can stand for billions of values."""

from __future__ import annotations

import io
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gipo_mc.errors import ConfigError

#: A configuration has some hundred values in three levels.
MOST_BYTES, MOST_VALUES, DEEPEST = 1 << 20, 10_000, 50


def read_yaml(path: str) -> Any:
    """The file as an OmegaConf container. Raises ConfigError where it is no text, too large or too deep; the errors of
    yaml and OmegaConf where it does not parse."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start + 1}): save it as UTF-8."
        ) from error
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path} has more than {MOST_BYTES:,} bytes, which no configuration needs: is it another file?"
        )
    check_yaml(text, path)
    return OmegaConf.load(io.StringIO(text))


def read_values(path: str, wrong: str, *, resolve: bool = False) -> Any:
    """What the file holds, as plain values. wrong: how the sentence begins that says it cannot be read, before the
    reason. resolve: put what references stand for in their place. Raises ConfigError."""
    try:
        return OmegaConf.to_container(read_yaml(path), resolve=resolve)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{wrong}: {' '.join(str(error).split())[:300]}.") from error


def check_yaml(text: str, where: str) -> None:
    """Raises ConfigError where `text`, with its aliases written out, is larger or deeper than a configuration is."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        size = _size(root, {}, 0) if root is not None else 0
    except RecursionError:
        size = MOST_VALUES + 1
    if size > MOST_VALUES:
        raise ConfigError(
            f"{where} stands for more than {MOST_VALUES:,} values or {DEEPEST} levels: write it without aliases "
            "(*name) and see which part is so large."
        )


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values in `node`, aliases counted as often as they stand for something; above MOST_VALUES it stops counting.

    known: sizes of nodes counted before, 0 for those that are being counted (an alias of its own parent).
    """
    if depth > DEEPEST or known.get(id(node)) == 0:
        return MOST_VALUES + 1
    if id(node) not in known:
        known[id(node)] = 0
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(child, known, depth + 1) for child in children)
    return known[id(node)]
