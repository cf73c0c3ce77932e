"""tldr: Reddit posts with summaries of them, and news articles with theirs.

openai/summarize_from_feedback  subset comparisons: info {id, post, title, subreddit, site, article}, summaries (two of
                    {text, policy, note}), choice, worker, batch, split, extra {confidence};
                    subset axis: info, summary {text, policy, note, axes}, worker, batch, split: prompts
filtered posts      id, subreddit, title, post, summary
as prompts          such a post as prompt with label, completion, or chosen and rejected
                    (CarperAI/openai_summarize_tldr, trl-lib/tldr, CarperAI/openai_summarize_comparisons)
cnn_dailymail       article, highlights: written as the articles of the comparisons are

The domain is tldr/SUBREDDIT for a post that states it, tldr for one that does not, cnndm for an article.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from gipo_mc.data.fields import Fields, RowError, first, kind, optional, string
from gipo_mc.data.formats.example import BOTH, Parsed

_POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
_ARTICLE = "Article:\n\n{article}\n\nTL;DR:"
_POSTED = ("subreddit", "title", "post")
_TLDR = "TL;DR:"
_SUBREDDIT = re.compile(r"SUBREDDIT: r/(\S+)")


def matches(row: Mapping[str, Any]) -> bool:
    keys = row.keys()
    if {"info", "summaries", "choice"} <= keys or {"post", "summary"} <= keys or {"article", "highlights"} <= keys:
        return True
    if {"info", "summary"} <= keys and isinstance(row["summary"], Mapping):
        return True
    lists = any(isinstance(row.get(key), list) for key in ("messages", "chosen", "rejected", "completion"))
    return not lists and isinstance(row.get("prompt"), str) and row["prompt"].startswith("SUBREDDIT:")


def parse(row: Fields, needs: Collection[str]) -> Parsed:
    if isinstance(row.peek("summary"), Mapping):
        return _rated(row, needs)
    if row.has("info") or row.has("summaries"):
        return _comparison(row, needs)
    if row.has("post"):
        unnamed = [key for key in ("subreddit", "title") if key in row and not row.has(key)]  # as in comparisons
        prompt, domain = _post({key: "" if key in unnamed else string(row, key) for key in _POSTED})
        return prompt, optional(row, "summary"), None, domain
    if row.has("article"):
        return _ARTICLE.format(article=string(row, "article").strip()), optional(row, "highlights"), None, "cnndm"
    prompt = string(row, "prompt").rstrip()
    chosen = first(row, "chosen", "completion", "response")
    if chosen is None and isinstance(row.peek("label"), str):
        chosen = string(row, "label")
    rejected = optional(row, "rejected")
    if not prompt.endswith(_TLDR):
        # CarperAI/openai_summarize_comparisons writes the "TL;DR:" in front of each response.
        prompt += f"\n\n{_TLDR}"
        chosen, rejected = (text and text.strip().removeprefix(_TLDR) for text in (chosen, rejected))
    subreddit = _SUBREDDIT.match(prompt)
    return prompt, chosen, rejected, f"tldr/{subreddit[1]}" if subreddit else "tldr"


def _post(fields: Mapping[str, str]) -> tuple[str, str]:
    """(prompt, domain) of subreddit, title and post."""
    stripped = {key: text.strip() for key, text in fields.items()}
    return _POST.format(**stripped), f"tldr/{stripped['subreddit']}" if stripped["subreddit"] else "tldr"


def _info(row: Fields) -> Mapping[str, Any]:
    info = row.get("info")
    if not isinstance(info, Mapping):
        raise RowError(f"'info' is {kind(info)}, not an object with the post")
    return info


def _source(info: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, domain) of `info`: a Reddit post, or, in some of the batches, a CNN/DailyMail article."""
    if info.get("post") is None:
        return _ARTICLE.format(article=string(info, "article").strip()), "cnndm"
    about = {key: optional(info, key) or "" for key in ("subreddit", "title")}
    return _post(about | {"post": string(info, "post")})


def _comparison(row: Fields, needs: Collection[str]) -> Parsed:
    info, summaries, choice = _info(row), row.get("summaries"), row.get("choice")
    chosen = rejected = None
    if needs or (summaries is not None and choice is not None):
        if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, Mapping) for s in summaries):
            raise RowError(f"'summaries' is {kind(summaries)}, not a list of two objects with a 'text'")
        if choice not in (0, 1) or isinstance(choice, bool):
            raise RowError(f"'choice' is {choice!r}, not 0 or 1")
        sides = zip(BOTH, (summaries[choice], summaries[1 - choice]), strict=True)
        chosen, rejected = (string(side, "text") if key in needs else optional(side, "text") for key, side in sides)
    prompt, domain = _source(info)
    return prompt, chosen, rejected, domain


def _rated(row: Fields, needs: Collection[str]) -> Parsed:
    """A summary that was rated by itself (axis): its post is a prompt, and the summary neither to be imitated as it
    stands nor one of a pair."""
    if needs:
        raise RowError(
            "'summary' is one that was rated by itself, neither a demonstration nor one of a pair: use the subset "
            "comparisons of openai/summarize_from_feedback; rows of axis are prompts"
        )
    prompt, domain = _source(_info(row))
    return prompt, None, None, domain
