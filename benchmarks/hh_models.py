"""What the study on HH rows starts from: two halves of the training rows that share no first question. One half makes
the policy's side (tokenizer, SFT policy, proxy reward model), the other, on a trunk of its own, the gold reward model.
All of it is trained by the package's own trainers from `configs/hh_tiny_*.yaml`, once for the whole study."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.study_runs import forked, trained

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DOMAINS = ("harmless", "helpful")
SIDES = ("policy", "gold")
#: The models are made here, of a size that two CPU cores train in minutes.
VOCABULARY = 1024
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

#: Half the rows bear about half the steps of `hh_tiny_reward.yaml`; of three learning rates this one was best for gold.
REWARD = ("run.iterations=60", "checkpoint.every=60", "policy.lr=7e-4", "policy.warmup=10", "eval.every=20")
REWARD += ("data.prompt_length=224", "data.sequence_length=256")


def prepare(data: Path, folder: Path, workers: int, quick: bool = False) -> Iterator[str]:
    """Split and train what is missing; yields a line for each part that is there. Raises RuntimeError where a trainer
    fails, OSError where the rows cannot be read.

    data: folder with {harmless,helpful}_base_{train,test}.jsonl.gz.
    """
    for side, count in split(data, folder).items():
        yield f"rows of the {side} side: {count}"
    run = [(side, (_sft, data, folder, side, quick)) for side in SIDES if not trained(folder / f"sft_{side}")]
    for name, seconds in forked(run, folder, workers):
        yield f"SFT of the {name} side: {seconds:.0f} s"
    run = [(side, (_reward, data, folder, side, quick)) for side in SIDES if not trained(folder / f"reward_{side}")]
    for name, seconds in forked(run, folder, workers):
        yield f"reward model of the {name} side: {seconds:.0f} s"
    if not (folder / "judge.json").exists():
        for _ in forked([("judge", (judge, data, folder))], folder, 1):
            yield "reward models judged on the test rows"


def split(data: Path, folder: Path) -> dict[str, str]:
    """Write <folder>/data/{policy,gold}_{harmless,helpful}.jsonl; a row goes where the hash of its first question says.
    Returns the number of rows of each domain by side."""
    counts: dict[str, list[str]] = {side: [] for side in SIDES}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        rows: dict[str, list[str]] = {side: [] for side in SIDES}
        with gzip.open(data / f"{domain}_base_train.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                question = json.loads(line)["chosen"].split("\n\nAssistant:", 1)[0]
                rows[SIDES[hashlib.sha256(question.encode()).digest()[0] & 1]].append(line)
        for side in SIDES:
            (folder / "data" / f"{side}_{domain}.jsonl").write_text("".join(rows[side]), encoding="utf-8")
            counts[side].append(f"{len(rows[side])} {domain}")
    return {side: " and ".join(found) for side, found in counts.items()}


def files(folder: Path, side: str) -> list[str]:
    return [str(folder / "data" / f"{side}_{domain}.jsonl") for domain in DOMAINS]


def held_out(data: Path) -> list[str]:
    return [str(data / f"{domain}_base_test.jsonl.gz") for domain in DOMAINS]


def words(key: str, data: Path, folder: Path, side: str) -> list[str]:
    """Options that put the rows of a side, and the published test rows, into a configuration of `configs/`."""
    return [
        f"run.dir={folder}",
        f"data.{key}=[{','.join(files(folder, side))}]",
        f"data.evaluation=[{','.join(held_out(data))}]",
        "device=cpu",
    ]


# ---------------------------------------------------------------------------------------------------- in forks
def _sft(data: Path, folder: Path, side: str, quick: bool) -> None:
    import torch

    from gipo_mc.config import load_config, validate
    from gipo_mc.training import builtin
    from gipo_mc.training.new_model import create_text_model

    torch.set_num_threads(1)
    start = folder / f"model_{side}"
    if not (start / "config.json").exists():
        # The gold side reads the policy's tokens, so both have its tokenizer; weights differ.
        rows = validate({"data": {"demonstrations": files(folder, "policy")}}).data
        create_text_model(start, rows, VOCABULARY, 1 + SIDES.index(side), **SHAPE)
    options = [*words("demonstrations", data, folder, side), f"run.name=sft_{side}", f"model.policy={start}"]
    options += ["run.iterations=2", "checkpoint.every=2", "policy.warmup=1", "eval.prompts=8"] if quick else []
    builtin.train_sft(load_config(str(CONFIGS / "hh_tiny_sft.yaml"), options))


def _reward(data: Path, folder: Path, side: str, quick: bool) -> None:
    import torch

    from gipo_mc.config import load_config
    from gipo_mc.training import builtin

    torch.set_num_threads(1)
    options = [*words("preferences", data, folder, side), f"run.name=reward_{side}"]
    options += [f"model.policy={folder / f'sft_{side}'}", *REWARD]
    options += ["run.iterations=2", "checkpoint.every=2", "policy.warmup=1", "eval.prompts=8"] if quick else []
    builtin.train_reward(load_config(str(CONFIGS / "hh_tiny_reward.yaml"), options))


def judge(data: Path, folder: Path) -> None:
    """Write <folder>/judge.json: how well proxy and gold know the published test pairs, by domain, and each other.

    accuracy: share of pairs whose chosen response gets more; agreement: share of pairs that both reward models order
    alike; correlation: Pearson's, of the two rewards of a pair's chosen response over pairs. The scores come from
    `transformers`, of the exported models.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from gipo_mc.config import load_config
    from gipo_mc.data.loading import load_preferences
    from gipo_mc.data.tokenizer import load_tokenizer
    from gipo_mc.parallel import runtime
    from gipo_mc.training import conversion

    config = load_config(str(CONFIGS / "hh_tiny_reward.yaml"), words("preferences", data, folder, "policy"))
    layout = runtime.initialize(config.parallel, config.device)
    scores: dict[str, Any] = {}
    for side in SIDES:
        exported = folder / f"reward_{side}_hf"
        conversion.to_hf(str(folder / f"reward_{side}"), exported, layout)
        model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
        pairs = load_preferences(config.data, load_tokenizer(str(exported)), part="evaluation")
        with torch.no_grad():
            scores[side] = torch.tensor(
                [
                    [float(model(torch.tensor([[*pair.prompt_ids, *response]])).logits) for response in responses]
                    for pair in pairs
                    for responses in [(pair.chosen_ids, pair.rejected_ids)]
                ]
            )
        domains = pairs.domain_of
    found: dict[str, Any] = {}
    for domain in (*DOMAINS, "all"):
        own = torch.tensor([domain in (name, "all") for name in domains])
        first, second = (scores[side][own] for side in SIDES)
        found[domain] = {
            "pairs": int(own.sum()),
            "proxy_accuracy": float((first[:, 0] > first[:, 1]).float().mean()),
            "gold_accuracy": float((second[:, 0] > second[:, 1]).float().mean()),
            "agreement": float(((first[:, 0] > first[:, 1]) == (second[:, 0] > second[:, 1])).float().mean()),
            "correlation": float(torch.corrcoef(torch.stack([first[:, 0], second[:, 0]]))[0, 1]),
        }
    (folder / "judge.json").write_text(json.dumps(found))
