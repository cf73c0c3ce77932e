"""The verdict of an answer: one pattern on its last line, and nothing else anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gipo_mc.evaluation.judges.prompts import JudgePrompt, Position

#: What models put around a line for emphasis.
_EMPHASIS = re.compile("[*_`]")
#: Behind this, where a model writes its thoughts into the answer, the answer begins.
_THOUGHT = "</think>"


@dataclass(frozen=True)
class Verdict:
    """position: the better response, None where there is no verdict; `problem` then says why. reason: what stands
    before the verdict."""

    position: Position | None
    reason: str = ""
    problem: str = ""


def read_verdict(text: str, prompt: JudgePrompt, quoted: Iterable[str] = ()) -> Verdict:
    """The verdict on the last line of `text` that is not blank.

    It may be a part of that line, and there may be only one. A line before that is wholly another verdict makes it
    void: nobody knows which was meant. Lines of `quoted` (prompt and responses) are no verdicts, wherever an answer
    repeats them, except on its last line.
    """
    answer = text.replace("\r\n", "\n").rpartition(_THOUGHT)[2].strip()
    if not answer:
        return Verdict(None, problem="the answer is empty")
    before, _, last = answer.rpartition("\n")
    found = set(_choices(_plain(last), prompt))
    if not found:
        return Verdict(None, answer, "the answer does not end with a verdict")
    if len(found) > 1:
        return Verdict(None, answer, "the last line has two different verdicts")
    (choice,) = found
    repeated = {_plain(line) for text in quoted for line in text.split("\n")}
    others = {_plain(line).lower() for line in prompt.lines()} - {_plain(prompt.line(choice)).lower()}
    if any(line.lower() in others and line not in repeated for line in map(_plain, before.split("\n"))):
        return Verdict(None, answer, "the answer has two different verdicts")
    return Verdict(prompt.choices[choice], before.strip())


def _plain(line: str) -> str:
    """Without emphasis, and with single spaces."""
    return " ".join(_EMPHASIS.sub("", line).split()).removesuffix(".")


def _choices(line: str, prompt: JudgePrompt) -> list[str]:
    """The choices in all verdicts of a line."""
    named = {choice.lower(): choice for choice in prompt.choices}
    before, after = (re.escape(_plain(part)) for part in prompt.verdict.split("<<choice>>"))
    options = "|".join(sorted(map(re.escape, named), key=len, reverse=True))
    # Where nothing closes the choice, the line has to: "Preferred: A or B" is no verdict.
    end = rf"{after}(?!\w)" if after else r"(?=\W*$)"
    pattern = rf"(?<!\w){before}\s*({options}){end}"
    return [named[match.lower()] for match in re.findall(pattern, line, re.IGNORECASE)]
