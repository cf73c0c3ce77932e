"""Refusals: the built-in phrases, and those that take their place."""

from __future__ import annotations

import pytest

from gipo_mc.algorithms.responses.refusals import PHRASES, refuses


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "  I cannot   assist\nwith this request.",
        "As an AI language model, ...",
        "Well. I WON'T do it.",
    ],
)
def test_a_refusal_is_seen_however_it_is_written(text: str) -> None:
    assert refuses([text]) == [True]


@pytest.mark.parametrize("text", ["", "Sure, here is how.", "You can't go wrong with tea.", "word " * 50 + "I refuse"])
def test_what_is_none(text: str) -> None:
    assert refuses([text]) == [False]


def test_other_phrases_take_the_place_of_the_built_in_ones() -> None:
    assert refuses(["Das kann ich nicht.", "I refuse"], ["DAS KANN ICH NICHT"]) == [True, False]
    assert refuses(["a.c", "abc"], ["a.c"]) == [True, False], "plain text, no pattern"


def test_the_list_holds_no_phrase_twice_and_none_that_another_makes_needless() -> None:
    assert len(set(PHRASES)) == len(PHRASES)
    assert not [(one, other) for one in PHRASES for other in PHRASES if one != other and one in other]
