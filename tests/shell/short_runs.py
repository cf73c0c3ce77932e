"""Make the commands of this process short: what a configuration asks for is cut after it was parsed.

The command line, the configuration files, the checks and the code are those of the user; only sizes are smaller, and
data sets of the hub are read from local files. Called in a fork (tests/shell/lines.py), because nothing is put back.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

#: The most that a configuration may ask for; 0 and "auto" ask for everything there is.
LIMITS: dict[str, dict[str, Any]] = {
    "run": {"iterations": 2},
    "data": {"max_rows": 48},
    "rollout": {"batch_size": 8, "max_new_tokens": 6},
    "algorithm": {"mini_batch_size": 8, "critic_warmup": 1, "epochs": 1},
    "train": {"batch_size": 8},
    "parallel": {"micro_batch_size": 8},
    "eval": {"prompts": 4},
}


def shorten(hub: Path) -> None:
    """Cut what this process will parse; rows of the hub come from the folder `hub` (see `write_rows`)."""
    from gipo_mc.config import Config
    from gipo_mc.data import sources

    validated = Config.model_validate

    def shortened(raw: Any, **options: Any) -> Config:
        return validated(cut(validated(raw, **options).model_dump()))

    Config.model_validate = shortened  # type: ignore[method-assign, assignment]
    sources._load_hub = lambda _, name, options: _hub_rows(hub, name, options)


def cut(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with nothing above the limits, on the CPU."""
    short = config | {"device": "cpu"}
    for section, limits in LIMITS.items():
        values = config[section]
        short[section] = values | {key: min(values[key] or math.inf, most) for key, most in limits.items()}
    samples = short["rollout"]["samples_per_prompt"]
    short["rollout"]["batch_size"] = max(1, short["rollout"]["batch_size"] // samples) * samples
    return short


# ------------------------------------------------------------------------------------------------ a user's own files
def write_rows(folder: Path) -> None:
    """HH-RLHF as published, in small: {harmless,helpful}_base_{train,test}.jsonl.gz with 64 and 16 pairs each."""
    import gzip

    folder.mkdir(parents=True)
    for domain in ("harmless", "helpful"):
        for part, count in (("train", 64), ("test", 16)):
            rows = [json.dumps({k: row[k] for k in ("chosen", "rejected")}) for row in _dialogues(domain + part, count)]
            with gzip.open(folder / f"{domain}_base_{part}.jsonl.gz", "wt") as file:
                file.write("\n".join(rows) + "\n")


def write_user_file(path: Path) -> None:
    """prompt/chosen/rejected rows, or prompts alone where the name says so."""
    rows = [
        {"prompt": row["question"]} | ({} if "prompt" in path.name else {k: row[f"{k}_answer"] for k in _ANSWERS})
        for row in _dialogues(path.name, 48)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_model(folder: Path, rows: Path) -> None:
    """A random Llama that splits over 4 tensor-parallel ranks and 4 stages; a reward model where the name says so."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from gipo_mc.config import validate
    from gipo_mc.tools.new_model import create_text_model

    data = validate({"data": {"demonstrations": [str(path) for path in sorted(rows.glob("*_train*"))]}}).data
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "max_position_embeddings": 1024}
    create_text_model(folder, data, 384, 1, num_attention_heads=4, num_key_value_heads=4, **shape)
    if "reward" in folder.name:
        config = LlamaConfig.from_pretrained(folder, num_labels=1)
        torch.manual_seed(1)
        LlamaForSequenceClassification(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


_ANSWERS = ("chosen", "rejected")
_WORDS = "how do I make bread at home when is the best time to plant trees near my house and what should one not eat"


def _dialogues(seed: str, count: int) -> list[dict[str, str]]:
    draw, words = random.Random(seed), _WORDS.split()

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(2, 8))).capitalize()

    rows = []
    for _ in range(count):
        row = {"question": sentence() + "?", "chosen_answer": sentence() + ".", "rejected_answer": sentence() + "!"}
        start = f"\n\nHuman: {row['question']}\n\nAssistant: "
        rows.append(row | {name: start + row[f"{name}_answer"] for name in _ANSWERS})
    return rows


def _hub_rows(folder: Path, name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the hub's copy holds, as far as this project names it: Anthropic/hh-rlhf by folder."""
    import gzip

    if name != "Anthropic/hh-rlhf":
        raise FileNotFoundError(f"the tests have no rows of {name}")
    file = folder / f"{options['data_dir'].replace('-', '_')}_{options['split']}.jsonl.gz"
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]
