"""What comes from the environment (`${oc.env:NAME}`) is used and not shown: it may be a password or a token.

`config.yaml` keeps the reference. In whatever a command prints or writes, `hide` puts the reference in the value's
place; `gipo_mc.run.jsonl` calls it for all of them. Values of fewer than `SHORTEST` characters are no secrets, and
replacing them would garble text that has nothing to do with them. What run.dir and run.name hold is a folder's name and
cannot be hidden, so a variable that is named like a secret is refused there.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gipo_mc.errors import ConfigError

SHORTEST = 6
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASS(WORD|WD|PHRASE)|CREDENTIAL|AUTH|(^|_)(API|ACCESS|PRIVATE)?_?KEY", re.IGNORECASE
)
_VISIBLE = ("run.dir", "run.name")
_MARK = re.compile("gipo_environment_((?:[0-9a-f]{2})+)_")
_URL_PASSWORD = re.compile(r"(?P<before>\w://[^/\s:@]*:)(?P<password>[^/\s@]+)@")
#: Spelling of a value -> the reference that is shown instead.
_hidden: dict[str, str] = {}


@contextmanager
def marked_environment() -> Iterator[None]:
    """Let every environment variable read as a mark of its name, so that what is resolved tells where it came from."""
    real = os.environ
    marks = {name: f"gipo_environment_{name.encode('utf-8', 'surrogateescape').hex()}_" for name in real}
    os.environ = marks  # type: ignore[assignment]  # noqa: B003 - for readers in this process alone
    try:
        yield
    finally:
        os.environ = real  # noqa: B003


def references(real: dict[str, Any], marked: dict[str, Any]) -> dict[str, Any]:
    """Option -> its value with references in place of what the environment said, for those where there is any.

    real, marked: options by key, resolved without and with marks. What is found is hidden from now on.
    Raises ConfigError where a secret would become the name of a folder.
    """
    found: dict[str, Any] = {}
    names: dict[str, set[str]] = {}
    for key, value in marked.items():
        codes = [*_marks(value), *_MARK.findall(key)]  # a key that came from there is refused later, in words
        names[key] = {bytes.fromhex(code).decode("utf-8", "surrogateescape") for code in codes}
        if names[key]:
            as_text = type(real.get(key)) is type(value)
            found[key] = _referring(value, "${{oc.env:{}}}" if as_text else "${{oc.decode:${{oc.env:{}}}}}")
    visible = {name for key in _VISIBLE for name in names.get(key, ())}
    if secret := sorted(name for name in visible if _SECRET_NAME.search(name)):
        raise ConfigError(
            f"run.dir and run.name are folders that everybody can read, and {', '.join(secret)} looks like a secret: "
            "name the folder after something else."
        )
    for name in {name for found_names in names.values() for name in found_names} - visible:
        _remember(os.environ.get(name, ""), f"${{oc.env:{name}}}")
    return found


def hide_named(configuration: str) -> None:
    """Hide what a configuration that is refused takes from the environment: its error quotes values."""
    for name in re.findall(r"oc\.env:\s*(\w+)", configuration):
        _remember(os.environ.get(name, ""), f"${{oc.env:{name}}}")


def hide(text: str) -> str:
    """`text` with the values of the environment that the configuration uses replaced by references, and passwords in
    URLs by ***."""
    for value, reference in _hidden.items():
        text = text.replace(value, reference)
    return _URL_PASSWORD.sub(r"\g<before>***@", text) if "://" in text else text


def hide_value(value: str, name: str) -> None:
    """Hide what the variable `name` holds from now on."""
    _remember(value, f"${{oc.env:{name}}}")


def fingerprint(key: str, value: Any) -> str:
    """A slow hash of an option's value: tells whether it changed, and not what it is."""
    digest = hashlib.pbkdf2_hmac("sha256", json.dumps(value).encode(), f"gipo_mc {key}".encode(), 100_000)
    return digest.hex()[:16]


def has_password(text: str) -> bool:
    """Is there a URL with a password in it?"""
    return _URL_PASSWORD.search(text) is not None


def _remember(value: str, reference: str) -> None:
    if len(value) < SHORTEST:
        return
    escaped = value.encode("unicode_escape").decode("ascii")
    spellings = {value, escaped, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    spellings |= {repr(value)[1:-1], html.escape(value)}
    _hidden.update(dict.fromkeys(spellings, reference))
    # A value may hold another one.
    ordered = sorted(_hidden.items(), key=lambda item: -len(item[0]))
    _hidden.clear()
    _hidden.update(ordered)


def _marks(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [mark for item in value for mark in _marks(item)]
    return _MARK.findall(value) if isinstance(value, str) else []


def _referring(value: Any, reference: str) -> Any:
    if isinstance(value, list):
        return [_referring(item, reference) for item in value]
    if isinstance(value, dict):
        return {key: _referring(item, reference) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return _MARK.sub(lambda mark: reference.format(bytes.fromhex(mark[1]).decode("utf-8", "surrogateescape")), value)
