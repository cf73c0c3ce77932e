"""pairs: `prompt` and any of `chosen`, `rejected`, `response`, `completion`, all strings. The project's own format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, first, optional, string
from gipo_mc.data.formats.example import Parsed


def matches(row: Mapping[str, Any]) -> bool:
    return "prompt" in row


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    return string(row, "prompt"), first(row, "chosen", "response", "completion"), optional(row, "rejected"), ""
