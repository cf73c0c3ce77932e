"""Reward models of several strengths for the built-in task: trained from a seed's SFT policy by the package's trainer,
and judged where the task knows more than a user does.

A strength is a number of pairs, of steps, the noise of the labels and the width of the model. `judge` asks of each
domain: how many held-out pairs are ordered as labelled, beside the most that label noise allows; how well differences
between two responses follow gold's; and what the model gives an SFT response, the level that its training leaves open.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.runs import forked, trained

DOMAINS = ("easy", "hard")
#: A member of an ensemble sees pairs of its own; so far apart that no two seeds of a study share them.
MEMBER = 10_000


@dataclass(frozen=True)
class Strength:
    """pairs: training rows. steps: of 64 pairs. noisy: labelled by the task's noisy proxy; else by its mean, pairs that
    it pays alike left out. width: hidden size; 0: trained from the SFT policy, of its size, else from nothing."""

    pairs: int
    steps: int
    noisy: bool = True
    width: int = 0


STRENGTHS: dict[str, Strength] = {
    "weak": Strength(4096, 200),
    "middle": Strength(16384, 600),
    "strong": Strength(65536, 1500),
    "clean": Strength(65536, 1500, noisy=False),
    "wide": Strength(65536, 1500, width=128),
}


def reward_name(strength: str, member: int = 0) -> str:
    """Name of the run of a reward model in the folder of its seed."""
    return f"reward_{strength}" + (f"_{member}" if member else "")


def prepare(
    seeds: Sequence[int], strength: str, members: int, folder: Path, workers: int, quick: bool = False
) -> Iterator[str]:
    """Train the reward models that are missing, `members` of each seed, whose SFT policies are there; a line each."""
    wanted = [(seed, member) for seed in seeds for member in range(members)]
    missing = [(s, m) for s, m in wanted if not trained(folder / f"seed{s}" / reward_name(strength, m))]
    jobs = [
        (f"{reward_name(strength, member)} of seed {seed}", (train_reward, seed, strength, member, folder, quick))
        for seed, member in missing
    ]
    yield from (f"{name}: {seconds:.0f} s" for name, seconds in forked(jobs, folder, workers))


def pairs_of(seed: int, strength: str, folder: Path, rows: int = 0, split: str = "train") -> list[str]:
    """Options that name the training pairs of a strength, to a reward model as to DPO; noise-free ones are a file that
    is made here. rows: fewer than the strength's. split: of the task; "train": half of them hard."""
    kind = STRENGTHS[strength]
    count = rows or kind.pairs
    if kind.noisy:
        source = "builtin" if split == "train" else f"builtin:{split}"
        return [f"data.preferences=[{source}]", f"data.max_rows={count}"]
    file = folder / "pairs" / f"clean{seed}_{count}{'' if split == 'train' else f'_{split}'}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".partial{seed}")
        partial.write_text(
            "".join(f"{json.dumps(row)}\n" for row in _clean_pairs(seed, count, split)), encoding="utf-8"
        )
        partial.replace(file)
    return [f"data.preferences=[{file}]", f"data.max_rows={count}"]


def _clean_pairs(seed: int, count: int, split: str) -> Iterator[dict[str, str]]:
    """`count` pairs that the proxy without its noise orders, in the built-in task's words."""
    from gipo_mc.data import synthetic

    index = 0
    while count:
        prompt, one, other, domain = synthetic.preference(seed, split, index)
        index += 1
        better = synthetic.proxy_reward(prompt, one, domain) - synthetic.proxy_reward(prompt, other, domain)
        if better:
            chosen, rejected = (one, other) if better > 0 else (other, one)
            yield {
                "prompt": _words(prompt[1:]), "chosen": _words(chosen[:-1]), "rejected": _words(rejected[:-1]),
                "domain": domain,
            }  # fmt: skip
            count -= 1


def _words(ids: Sequence[int]) -> str:
    from gipo_mc.data.synthetic import VOCABULARY

    return " ".join(VOCABULARY[i] for i in ids)


# ---------------------------------------------------------------------------------------------------- in forks
def train_reward(seed: int, strength: str, member: int, folder: Path, quick: bool) -> None:
    """One reward model. Its pairs and its head are of a seed of its own; of member 0 it is the run's."""
    from gipo_mc.config import load_config
    from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer
    from gipo_mc.supervised import reward_model
    from gipo_mc.tools import builtin
    from gipo_mc.tools.new_model import create_model

    kind, own = STRENGTHS[strength], seed + MEMBER * member
    start = folder / f"seed{seed}" / "reference"
    if kind.width:
        start = folder / f"seed{seed}" / f"model_{reward_name(strength, member)}"
        sizes = builtin_llama_config() | {"hidden_size": kind.width, "intermediate_size": 11 * kind.width // 4}
        create_model(start, builtin_tokenizer(), own, overwrite=True, **sizes)
    steps = 2 if quick else kind.steps
    words = [
        *pairs_of(own, strength, folder, 64 if quick else 0),
        f"run.dir={folder / f'seed{seed}'}",
        f"run.name={reward_name(strength, member)}",
        f"run.seed={own}",
        f"run.iterations={steps}",
        f"checkpoint.every={steps}",
        f"model.policy={start}",
        "device=cpu",
        "eval.every=0",
        "eval.prompts=8",
    ]
    reward_model.train(load_config(None, words, builtin.reward_base()))


def judge(seed: int, strength: str, folder: Path, rows: int = 1500) -> None:
    """Write <folder>/seed<seed>/judge_<strength>.json, see the module's docstring; `rows` held-out pairs a domain."""
    import torch

    from gipo_mc.config import load_config
    from gipo_mc.data import synthetic
    from gipo_mc.data.collate import to_sequences
    from gipo_mc.models.micro_batch import micro_batches, run_forward
    from gipo_mc.models.readout import sequence_rewards
    from gipo_mc.parallel import runtime
    from gipo_mc.parallel.engine import Engine
    from gipo_mc.run.model_sources import load_model, resolve
    from gipo_mc.tools import builtin

    base = folder / f"seed{seed}"
    parallel = load_config(None, ["device=cpu"], builtin.reward_base()).parallel
    layout = runtime.initialize(parallel, "cpu")
    source = resolve(str(base / reward_name(strength)), "model.reward")
    model = load_model(source, layout, head="reward", dtype=torch.float32, trainable=False, seed=1)
    engine, found = Engine(model, layout), {}
    for domain in DOMAINS:
        pairs = [synthetic.preference(seed, domain, index) for index in range(rows)]
        prompts = [prompt for prompt, *_ in pairs for _ in range(2)]
        responses = [response for _, chosen, rejected, _ in pairs for response in (chosen, rejected)]
        packed = micro_batches(to_sequences(prompts, responses, synthetic.PAD), parallel, layout)
        reward_P2 = run_forward(engine, packed, sequence_rewards(), {"reward": 0})["reward"].double().view(-1, 2)
        gold, mean = (
            torch.tensor([f(p, r, domain) for p, r in zip(prompts, responses, strict=True)]).double().view(-1, 2)
            for f in (synthetic.gold_reward, synthetic.proxy_reward)
        )
        found[domain] = compared(reward_P2, gold, mean)
    (base / f"judge_{strength}.json").write_text(json.dumps(found))


def compared(reward_P2: Any, gold_P2: Any, mean_P2: Any) -> dict[str, float]:
    """Of P pairs, labelled chosen first: rewards, gold and the proxy without its noise, [P, 2] each.

    accuracy: share ordered as labelled. bound: the share that the proxy without noise orders so, a tie one half. gold:
    of the pairs that gold orders, the share ordered alike. correlation: of the differences with gold's. level, spread:
    mean and standard deviation of the rewards.
    """
    import torch

    reward_P, gold_P, mean_P = (values[:, 0] - values[:, 1] for values in (reward_P2, gold_P2, mean_P2))
    ordered = gold_P != 0
    return {
        "accuracy": float((0.5 * (torch.sign(reward_P) + 1.0)).mean()),
        "bound": float((0.5 * (torch.sign(mean_P) + 1.0)).mean()),
        "gold": float((torch.sign(reward_P[ordered]) == torch.sign(gold_P[ordered])).double().mean()),
        "correlation": float(torch.corrcoef(torch.stack([reward_P, gold_P]))[0, 1]),
        "level": float(reward_P2.mean()),
        "spread": float(reward_P2.std()),
    }


def described() -> dict[str, Any]:
    """The strengths, as a record keeps them."""
    return {name: asdict(strength) for name, strength in STRENGTHS.items()}
