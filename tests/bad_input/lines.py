"""A command line that is wrong, as the tables of tests/bad_input hold it."""

from __future__ import annotations

from dataclasses import dataclass

LONG = "a" * 300
BAD_CONFIGS = (
    "bomb", "itself", "deep", "twice", "list", "number", "open", "nul", "object", "set", "circle", "absent", "large",
    "nasty", "latin", "huge",
)  # fmt: skip


@dataclass(frozen=True)
class Bad:
    """A command line that is wrong. code: of the answer. says: part of it."""

    command: str
    words: list[str]
    code: int
    says: str = ""

    @property
    def name(self) -> str:
        return f"{self.command} {' '.join(self.words)}".encode("unicode_escape").decode()[:90]


def each(command: str, code: int, *lines: str, says: str = "") -> list[Bad]:
    return [Bad(command, line.split(" "), code, says) for line in lines]
