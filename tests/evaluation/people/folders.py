"""Folders of evaluations with pairs that are easy to follow, and files of votes as the page downloads them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gipo_mc.evaluation.people.key import PAGES, Key, read_key
from gipo_mc.evaluation.people.page import Written, write_page

OPPONENTS = ("sft", "ppo")


def pair(number: int, opponent: str = "sft", **changed: Any) -> dict[str, Any]:
    """A line of pairs.jsonl: prompt `number`, our response "o<number>" against "<opponent><number>"."""
    row = {
        "row": str(number), "conversation": f"c{number}", "domain": ("harmless", "helpful")[number % 2],
        "group": number % 3, "opponent": opponent, "prompt": f"\n\nHuman: question {number}?\n\nAssistant:",
        "ours": f" o{number} words", "theirs": f" {opponent}{number} words", "ours_tokens": 2, "theirs_tokens": 3,
        "ours_truncated": False, "theirs_truncated": False, "ours_model": "model-ours [1]",
        "theirs_model": f"model-{opponent} [1]",
    } | changed  # fmt: skip
    name = json.dumps([row["prompt"], row["ours"], row["theirs"], row["opponent"]])
    return {"pair": hashlib.sha256(name.encode()).hexdigest()[:16]} | row


def write_pairs(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The folder of an evaluation. Its secret follows from its name, so that the same pages are drawn in every run."""
    secret = folder / PAGES / "secret.txt"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text(hashlib.sha256(folder.name.encode()).hexdigest()[:32] + "\n")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluation(folder: Path, prompts: int = 10, opponents: tuple[str, ...] = OPPONENTS) -> Path:
    """Every prompt with every opponent."""
    return write_pairs(folder, [pair(number, each) for each in opponents for number in range(prompts)])


def page(folder: Path, **options: Any) -> tuple[Written, Key]:
    """A page of the folder, beside it, and its key."""
    written = write_page(folder, folder.parent / "page.html", **options)
    return written, read_key(folder, written.hash)


def data_of(written: Written) -> dict[str, Any]:
    """What the page shows."""
    html = written.path.read_text(encoding="utf-8")
    return json.loads(html.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def side_of(key: Key, item: int, verdict: str) -> str:
    """The side on which this verdict is given."""
    if verdict not in ("ours", "theirs"):
        return verdict
    return "left" if (verdict == "ours") == key.items[item].ours_first else "right"


def votes_file(path: Path, key: Key, voter: str, verdicts: dict[int, str] | str, **changed: Any) -> Path:
    """A file of votes: by item, or one verdict for all; attention pairs are answered as they ask."""
    given = verdicts if isinstance(verdicts, dict) else dict.fromkeys(range(len(key.items)), verdicts)
    votes = [
        {"item": item, "vote": key.items[item].asked or side_of(key, item, verdict), "seconds": 1.5 + item}
        for item, verdict in given.items()
    ]
    file = {"format": "gipo_mc votes 1", "page": key.page, "voter": voter, "pairs": len(key.items), "votes": votes}
    path.write_text(json.dumps(file | changed))
    return path
