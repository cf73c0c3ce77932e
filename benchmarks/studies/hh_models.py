"""What the study on HH rows starts from: two halves of the training rows that share no first question. One half makes
the policy's side (tokenizer, SFT policy, proxy reward model), the other, on a trunk of its own, the gold reward model.
All of it is trained by the package's own trainers from `configs/hh_tiny_*.yaml`, once for the whole study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.studies.runs import forked, trained

if TYPE_CHECKING:
    from torch import Tensor

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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
#: More steps learn the half's pairs by heart: of 80, 120 and 60 at 3e-4, 2e-3 and 7e-4 these were best for gold.
REWARD = ("run.iterations=60", "checkpoint.every=60", "policy.lr=7e-4", "policy.warmup=10", "eval.every=20")
LENGTHS = ("data.prompt_length=224", "data.sequence_length=256")
REWARD += LENGTHS
QUICK = ("run.iterations=2", "checkpoint.every=2", "policy.warmup=1", "eval.prompts=8")


def published(data: Path, part: str) -> list[Path]:
    """The files of the published part "train" or "test" in the folder `data`, a domain each."""
    return [data / f"{domain}_base_{part}.jsonl.gz" for domain in DOMAINS]


def lacking(data: Path | None) -> str:
    """Why the published rows cannot be read from --data, in words; "" where they can."""
    if data is None:
        return "--data DIR is missing: the folder with {harmless,helpful}_base_{train,test}.jsonl.gz"
    missing = [path for part in ("train", "test") for path in published(data, part) if not path.is_file()]
    return f"--data {data}: there is no {missing[0].name} in it" if missing else ""


def fingerprint(data: Path) -> str:
    """One number for the rows and for how the models are made of them. Raises OSError where a file is missing."""
    total = hashlib.sha256(repr((VOCABULARY, SHAPE, REWARD)).encode())
    for path in (*published(data, "train"), *published(data, "test")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def prepare(data: Path, folder: Path, workers: int, quick: bool = False) -> Iterator[str]:
    """Split the rows, train and judge what is missing; yields a line for each thing that was done. Raises DataError for
    rows that cannot be read, RuntimeError where a trainer fails."""
    for name, count in split(data, folder).items():
        yield f"rows of {name}: {count}"
    for kind, train in (("sft", _sft), ("reward", _reward)):
        missing = [side for side in SIDES if not trained(folder / f"{kind}_{side}")]
        jobs = [(f"{kind}_{side}", (train, folder, side, QUICK if quick else ())) for side in missing]
        for name, seconds in forked(jobs, folder, workers):
            yield f"{name}: {seconds:.0f} s"
    if not (folder / "judge.json").exists():
        for name, seconds in forked([("judge", (judge, folder))], folder, 1):
            yield f"{name}: {seconds:.0f} s"


def split(data: Path, folder: Path) -> dict[str, str]:
    """Write <folder>/data/{policy,gold,test}_{harmless,helpful}.jsonl; returns the number of rows of each domain.

    A training row goes to the side that the hash of its first question says. Test rows whose first question stands in
    the training rows are left out. Raises DataError for a file or a row that cannot be read.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    counts: dict[str, list[str]] = {}
    known: set[str] = set()
    for part in ("train", "test"):
        for domain, path in zip(DOMAINS, published(data, part), strict=True):
            sides: dict[str, list[str]] = {side: [] for side in (SIDES if part == "train" else ("test",))}
            for question, line in _rows(path):
                if part == "train":
                    known.add(question)
                    sides[SIDES[hashlib.sha256(question.encode()).digest()[0] & 1]].append(line)
                elif question not in known:
                    sides["test"].append(line)
            for side, lines in sides.items():
                Path(file(folder, side, domain)).write_text("".join(lines), encoding="utf-8")
                counts.setdefault(side, []).append(f"{len(lines)} {domain}")
    return {side: " and ".join(found) for side, found in counts.items()}


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """(first question, row as a line) of each dialogue."""
    from gipo_mc.data.sources import BadRow, read_rows
    from gipo_mc.errors import DataError

    for row in read_rows(str(path)):
        if isinstance(row, BadRow):
            raise DataError(f"{row.where}: {row.reason}")
        chosen = row.fields.get("chosen")
        if not isinstance(chosen, str):
            raise DataError(f"{row.where} has no text 'chosen': the study reads HH-RLHF dialogues as published.")
        yield chosen.split("\n\nAssistant:", 1)[0], json.dumps(dict(row.fields)) + "\n"


def file(folder: Path, side: str, domain: str) -> str:
    return str(folder / "data" / f"{side}_{domain}.jsonl")


def words(key: str, folder: Path, side: str, evaluation: str = "test") -> list[str]:
    """Options that put the rows of `side` under data.<key>, and those of `evaluation` beside them, into a configuration
    of `configs/`."""
    names = {key: side, "evaluation": evaluation}
    lists = {name: ",".join(file(folder, part, domain) for domain in DOMAINS) for name, part in names.items()}
    return [f"run.dir={folder}", "device=cpu", *(f"data.{name}=[{found}]" for name, found in lists.items())]


# ---------------------------------------------------------------------------------------------------- in forks
def _sft(folder: Path, side: str, others: tuple[str, ...]) -> None:
    from gipo_mc.config import load_config, validate
    from gipo_mc.supervised import sft
    from gipo_mc.tools.new_model import create_text_model

    start = folder / f"model_{side}"
    if not (start / "config.json").exists():
        # The gold side reads the policy's tokens, so both have its tokenizer; weights differ.
        rows = validate({"data": {"demonstrations": [file(folder, "policy", domain) for domain in DOMAINS]}}).data
        create_text_model(start, rows, VOCABULARY, 1 + SIDES.index(side), **SHAPE)
    options = [*words("demonstrations", folder, side), f"run.name=sft_{side}", f"model.policy={start}", *others]
    sft.train(load_config(str(CONFIGS / "hh_tiny_sft.yaml"), options))


def _reward(folder: Path, side: str, others: tuple[str, ...]) -> None:
    from gipo_mc.config import load_config
    from gipo_mc.supervised import reward_model

    options = [*words("preferences", folder, side), f"run.name=reward_{side}"]
    options += [f"model.policy={folder / f'sft_{side}'}", *REWARD, *others]
    reward_model.train(load_config(str(CONFIGS / "hh_tiny_reward.yaml"), options))


def judge(folder: Path) -> None:
    """Write <folder>/judge.json: how well proxy and gold know the test pairs, and each other, by domain (`compared`).
    The scores come from `transformers`, of the exported models."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from gipo_mc.config import load_config
    from gipo_mc.data.loading import load_preferences
    from gipo_mc.data.tokenizer import load_tokenizer
    from gipo_mc.parallel import runtime
    from gipo_mc.tools import conversion

    options = [*words("preferences", folder, "policy"), *REWARD]
    config = load_config(str(CONFIGS / "hh_tiny_reward.yaml"), options)
    layout = runtime.initialize(config.parallel, config.device)
    scores: dict[str, Tensor] = {}
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
    found = {}
    for domain in (*DOMAINS, "all"):
        own = torch.tensor([domain in (name, "all") for name in domains])
        found[domain] = compared(scores["policy"][own], scores["gold"][own])
    (folder / "judge.json").write_text(json.dumps(found))


def compared(proxy_P2: Tensor, gold_P2: Tensor) -> dict[str, Any]:
    """Rewards of P pairs, chosen and rejected, [P, 2] each. proxy_accuracy, gold_accuracy: share of pairs whose chosen
    response gets more; agreement: share that both order alike; correlation: Pearson's, of the two rewards of a response
    over all responses."""
    import torch

    proxy_P, gold_P = (scores[:, 0] > scores[:, 1] for scores in (proxy_P2, gold_P2))
    return {
        "pairs": len(proxy_P2),
        "proxy_accuracy": float(proxy_P.double().mean()),
        "gold_accuracy": float(gold_P.double().mean()),
        "agreement": float((proxy_P == gold_P).double().mean()),
        "correlation": float(torch.corrcoef(torch.stack([proxy_P2.flatten(), gold_P2.flatten()]).double())[0, 1]),
    }
