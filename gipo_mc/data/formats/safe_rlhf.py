"""safe_rlhf: questions with two answers, each labelled as better and as safer (PKU-Alignment/PKU-SafeRLHF).

pairs               prompt, response_0, response_1, better_response_id, safer_response_id, is_response_{0,1}_safe; later
                    versions add prompt_source, response_{0,1}_{source,harm_category,severity_level,sha256}
single-dimension    the same without safer_response_id
QA, BeaverTails     prompt, response, is_safe, harm_category or category

The prompt is a user's message. Of pairs with both labels, the better response has to be the safer one too; where both
are unsafe it is the better one of a pair, and no demonstration. The domain is the first harm, by name, that a row's
categories hold ("safe" where none does), "" in versions without categories.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, LeftOut, RowError, kind, string
from gipo_mc.data.formats.example import Parsed, one_of_two
from gipo_mc.types import Message

_HARMS = ("response_0_harm_category", "response_1_harm_category", "harm_category", "category")


def matches(row: Mapping[str, Any]) -> bool:
    keys = row.keys()
    return {"prompt", "response_0", "response_1"} <= keys or {"prompt", "response", "is_safe"} <= keys


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    prompt = (Message("user", string(row, "prompt").strip()),)
    domain = _harm(row)
    if not needs:
        return prompt, None, None, domain
    if "response_0" not in row:
        if not isinstance(row.get("is_safe"), bool):
            raise RowError(f"'is_safe' is {kind(row.get('is_safe'))}, not a boolean")
        if not row["is_safe"]:
            raise LeftOut("responses that are not safe")
        return prompt, string(row, "response"), None, domain
    better = one_of_two(row, "better_response_id")
    if "safer_response_id" in row and one_of_two(row, "safer_response_id") != better:
        raise LeftOut("pairs whose better response is not the safer one")
    if "rejected" not in needs and row.get(f"is_response_{better}_safe") is False:
        raise LeftOut("responses that are not safe")
    return prompt, string(row, f"response_{better}"), string(row, f"response_{1 - better}"), domain


def _harm(row: Fields) -> str:
    held = [row[key] for key in _HARMS if isinstance(row.peek(key), Mapping)]
    harms = {name for categories in held for name, holds in categories.items() if holds is True}
    return min(harms, default="safe") if held else ""
