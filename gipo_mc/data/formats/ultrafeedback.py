"""ultrafeedback: answers of several models, scored by GPT-4.

openbmb/UltraFeedback       source, instruction, models, completions (of {response, model, overall_score, ...}): the
                            best against the worst by overall_score
binarized                   prompt, prompt_id, chosen and rejected (lists of messages), messages, score_chosen,
                            score_rejected (HuggingFaceH4/ultrafeedback_binarized); or source, chosen-rating,
                            rejected-rating (argilla/ultrafeedback-binarized-preferences-cleaned)

`source`, the collection that a prompt comes from, is the domain. Pairs of equal scores, which prefer nothing, are left
out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, kind, string, wrong
from gipo_mc.data.formats.example import Parsed, label, number, sides
from gipo_mc.data.formats.messages import dialogue, message_list
from gipo_mc.types import Message

_SCORES = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"))


def matches(row: Mapping[str, Any]) -> bool:
    scored = any(set(pair) <= row.keys() for pair in _SCORES) and isinstance(row.get("chosen"), list)
    return scored or ({"instruction", "completions"} <= row.keys() and isinstance(row["completions"], list))


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    domain = label(row, "source")
    if "completions" in row:
        return _completions(row, needs, domain)
    scores = [number(row, key) for pair in _SCORES for key in pair if key in row]
    if "rejected" in needs and len(scores) == 2 and scores[0] is not None and scores[0] == scores[1]:
        raise LeftOut("pairs of equal scores")
    for key in ("prompt", "messages"):
        if row.has(key):
            _ = row[key]  # the first message and the chosen dialogue again
    if "chosen" not in row:
        return message_list(row, "messages"), None, None, domain
    return *sides(row, needs, dialogue)[:3], domain


def _completions(row: Fields, needs: Collection[str], domain: str) -> Parsed:
    prompt = (Message("user", string(row, "instruction").strip()),)
    if not needs:
        return prompt, None, None, domain
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(entry, Mapping) for entry in completions):
        raise RowError(wrong(row, "completions", "a list of objects with a 'response' and an 'overall_score'"))
    scored = []
    for position, entry in enumerate(completions):
        score = entry.get("overall_score")
        if not isinstance(score, int | float) or isinstance(score, bool):
            raise RowError(f"'completions'[{position}].overall_score is {kind(score)}, not a number")
        scored.append((score, string(entry, "response", f"'completions'[{position}].response")))
    if len(scored) < (2 if "rejected" in needs else 1):
        raise LeftOut("prompts with too few completions")
    best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
    if "rejected" in needs and best[0] == worst[0]:
        raise LeftOut("pairs of equal scores")
    return prompt, best[1], worst[1] if "rejected" in needs else None, domain
