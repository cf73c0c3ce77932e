"""What every side works on: one random Llama, prompts and pairs, made once and read by all.

    model, reward       Hugging Face folders, float32, with a tokenizer: the language model; the same trunk with a
                        fresh reward head
    NAME.jsonl          rows as HH-RLHF is published, which our loaders read; the names are those of FILES
    rows.json           the same rows as token ids, which the rivals read

Ids come from this project's loaders, so that all sides have the same ones. With HH-RLHF files the text is theirs;
without, words of nonsense in lengths of the same spread.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The model: large enough that matrix products and vocabulary cost what they cost, small enough for one core.
HIDDEN, LAYERS, HEADS, VOCABULARY, POSITIONS = 256, 4, 4, 8192, 512
INTERMEDIATE = 688
#: Response tokens of generation and of PPO.
NEW_TOKENS = 64


@dataclass(frozen=True)
class Rows:
    """How many rows of a file there are, and the most tokens that a prompt, and a prompt with its answer, may have."""

    count: int
    prompt: int
    whole: int


#: Every file with its rows. A step of training takes a whole file, so that it is the same step each time.
FILES = {
    "generation": Rows(64, 180, 10_000),
    "ppo": Rows(32, 128, 10_000),
    "demonstrations": Rows(32, 180, 256),
    "pairs": Rows(16, 180, 256),
}


def make(folder: Path, hh: Path | None) -> None:
    """Fill the folder. hh: folder with files of HH-RLHF, None: nonsense."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    from gipo_mc.data.tokenizer import train_bpe_tokenizer
    from gipo_mc.tools.new_model import create_model

    logging.disable_progress_bar()
    lines = list(_nonsense() if hh is None else _published(hh))
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_bpe_tokenizer((line["chosen"] for line in lines), VOCABULARY, scratch)
    create_model(
        folder / "model",
        tokenizer,
        1,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=POSITIONS,
    )
    torch.manual_seed(2)
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype="float32")
    reward.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    random.Random(1).shuffle(lines)
    found = {}
    for name, rows in FILES.items():
        chosen = _fitting(lines, tokenizer, rows)
        _write(folder / f"{name}.jsonl", chosen)
        found[name] = _ids(folder / f"{name}.jsonl", tokenizer, rows)
    ids = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    (folder / "rows.json").write_text(json.dumps(found | ids), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """rows.json: under each name of `FILES` a list of {"prompt", "chosen", "rejected"}, lists of token ids; and the ids
    "eos" and "pad"."""
    found: dict[str, Any] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    return found


def prompts(folder: Path, name: str) -> list[list[int]]:
    return [row["prompt"] for row in read(folder)[name]]


def tokens_read(folder: Path, name: str) -> int:
    """Tokens of all pairs of a file, prompts included."""
    pairs = read(folder)[name]
    return sum(len(pair["prompt"]) + len(pair[which]) for pair in pairs for which in ("chosen", "rejected"))


def summary(folder: Path) -> dict[str, str]:
    """A line on the lengths of each file."""
    found = {}
    for name in FILES:
        rows = read(folder)[name]
        prompt = sorted(len(row["prompt"]) for row in rows)
        chosen = sorted(len(row["chosen"]) for row in rows)
        found[name] = (
            f"{len(rows)} rows; prompts of {prompt[0]} to {prompt[-1]} tokens, {sum(prompt)} in all; chosen answers of "
            f"{chosen[0]} to {chosen[-1]}, {sum(chosen)} in all"
        )
    return found


def _published(folder: Path) -> Iterator[dict[str, str]]:
    for path in sorted(folder.glob("*_train.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            yield from map(json.loads, stream)


def _nonsense(count: int = 600) -> Iterator[dict[str, str]]:
    draw = random.Random(3)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(6000)]

    def text(middle: float) -> str:
        return " ".join(draw.choices(words, k=max(3, int(draw.lognormvariate(middle, 0.8)))))

    for _ in range(count):
        begin = f"\n\nHuman: {text(3.2)}\n\nAssistant: "
        yield {"chosen": begin + text(3.2), "rejected": begin + text(3.2)}


def _fitting(lines: Sequence[dict[str, str]], tokenizer: Any, rows: Rows) -> list[dict[str, str]]:
    """The first lines that fit with a few tokens to spare. Raises ValueError where they are too few."""
    found = []
    for line in lines:
        prompt = line["chosen"].rpartition("\n\nAssistant:")[0]
        whole = max(len(tokenizer(line[which])["input_ids"]) for which in ("chosen", "rejected"))
        answered = all(line[which].rpartition("\n\nAssistant:")[2].strip() for which in ("chosen", "rejected"))
        fits = len(tokenizer(prompt)["input_ids"]) <= rows.prompt - 8 and whole <= rows.whole - 8
        if answered and fits:
            found.append(line)
        if len(found) == rows.count:
            return found
    raise ValueError(f"Only {len(found)} of {rows.count} rows are short enough: give more data with --data.")


def _ids(path: Path, tokenizer: Any, rows: Rows) -> list[dict[str, list[int]]]:
    """What our loaders make of the file. Raises ValueError where they take other rows than were chosen."""
    from gipo_mc.config import validate
    from gipo_mc.data.loading import load_preferences

    data = validate(
        {"data": {"preferences": [str(path)], "prompt_length": rows.prompt, "sequence_length": rows.whole}}
    ).data
    pairs = load_preferences(data, tokenizer, seed=1)
    if len(pairs) != rows.count:
        raise ValueError(f"The loader took {len(pairs)} of the {rows.count} rows of {path.name}.")
    return [
        {"prompt": list(pair.prompt_ids), "chosen": list(pair.chosen_ids), "rejected": list(pair.rejected_ids)}
        for pair in pairs[:]
    ]


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
