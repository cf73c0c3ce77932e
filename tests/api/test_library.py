"""The library in a plain process: sample, score, train, read; groups made and left, also after an error."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import gipo_mc
from gipo_mc.errors import ConfigError, DataError
from tests.api.apart import in_a_process
from tests.ranks import run_ranks
from tests.runs import save_models

PROMPTS = ["s0 s1 s0 s3 c4", "s1 s1 s0 s2 c1"]
OPTIONS = {
    "run.iterations": 1,
    "device": "cpu",
    "rollout.batch_size": 4,
    "rollout.max_new_tokens": 4,
    "algorithm.mini_batch_size": 4,
    "data.prompt_length": 8,
    "eval.prompts": 0,
}
ROWS = [{"prompt": f"s{row % 3} s1 s0 s3 c{row % 4}", "answer": row} for row in range(6)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _reads(models: dict[str, str]) -> dict[str, Any]:
    """What a policy and a reward model say, beside transformers; both open at once."""
    found: dict[str, Any] = {}
    with gipo_mc.load_policy(models["policy"], device="cpu") as policy:
        again = [policy.sample(PROMPTS, max_new_tokens=6, seed=seed, samples_per_prompt=2) for seed in (1, 1, 2)]
        found["sampled"] = again
        responses = [list(one.token_ids) for one in again[0]]
        repeated = [prompt for prompt in PROMPTS for _ in range(2)]
        found["log_probs"] = policy.log_probs(repeated, responses)
        found["of text"] = policy.log_probs(PROMPTS, ["c1 c2", "f0"])
        with gipo_mc.load_reward(models["reward"], device="cpu") as reward:
            found["rewards"] = reward.score(PROMPTS, ["c1 c2", "f0"])
            found["cut"] = reward.score(PROMPTS, ["c1 c2", "f0"], truncated=[True, False])
        found["between"] = dist.is_initialized()
        for wrong in (
            lambda: policy.sample(PROMPTS, temperature=-1.0),
            lambda: policy.sample(PROMPTS, max_new_tokens=10_000),
            lambda: policy.log_probs(PROMPTS, ["c1"]),
            lambda: policy.sample([[{"role": "nobody", "content": "x"}]]),
            lambda: gipo_mc.load_policy(models["reward"] + "/none"),
        ):
            with pytest.raises((ConfigError, DataError)):
                wrong()
    found["after"] = dist.is_initialized()
    with pytest.raises(ConfigError, match="was closed"):
        policy.sample(PROMPTS)
    policy.close()
    return found


def test_a_policy_and_a_reward_model_say_what_transformers_says(tmp_path: Path, models: dict[str, str]) -> None:
    found = in_a_process(_reads, tmp_path, models)
    first, again, other = found["sampled"]
    assert first == again != other and [one.prompt for one in first] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert found["between"] and not found["after"]
    model = AutoModelForCausalLM.from_pretrained(models["policy"], dtype=torch.float32).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(models["reward"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(models["policy"])
    for one, ours in zip(first, found["log_probs"], strict=True):
        prompt = tokenizer(one.prompt)["input_ids"]
        ids = torch.tensor([[*prompt, *one.token_ids]])
        with torch.no_grad():
            logp = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = logp.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
        assert torch.allclose(ours, wanted, atol=1e-4) and torch.allclose(
            torch.tensor(one.log_probs), wanted, atol=1e-4
        )
        assert one.truncated == (one.token_ids[-1] != tokenizer.eos_token_id)
    for row, text in enumerate(("c1 c2", "f0")):
        ids = tokenizer(PROMPTS[row])["input_ids"] + tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            whole = float(scorer(torch.tensor([[*ids, tokenizer.eos_token_id]])).logits)
            cut = float(scorer(torch.tensor([ids])).logits)
        assert found["rewards"][row] == pytest.approx(whole, abs=1e-4)
        assert found["cut"][row] == pytest.approx(cut if row == 0 else whole, abs=1e-4)
    assert [len(one) for one in found["of text"]] == [3, 2], "EOS is counted"


def _trains(models: dict[str, str]) -> list[Any]:
    """Twice in a row, inside of a running event loop as in a notebook, and after an error; then continued."""
    seen: list[Any] = []

    def mine(sample: gipo_mc.Sample) -> float:
        seen.append((sample.prompt, sample.columns["answer"]))
        return float(len(sample.response_ids))

    async def broken(samples: list[gipo_mc.Sample]) -> list[float]:
        raise RuntimeError("not today")

    def train(run: str, reward: Any, **more: Any) -> gipo_mc.Run:
        return gipo_mc.train(policy=models["policy"], reward=reward, prompts=ROWS, run=run, options=OPTIONS | more)

    async def cell() -> gipo_mc.Run:
        return train("runs/one", mine)

    found: list[Any] = []
    run = asyncio.run(cell())
    with pytest.raises(DataError, match=r"broken failed at .*test_library.py.*RuntimeError: not today"):
        train("runs/two", broken)
    assert not dist.is_initialized()
    train("runs/two", mine)
    train("runs/one", mine, **{"run.iterations": 2})
    assert not dist.is_initialized()
    state = run.status()["state"]
    others = [row | {"answer": -1} for row in ROWS]
    call = {"policy": models["policy"], "reward": mine, "run": "runs/one", "options": OPTIONS | {"run.iterations": 3}}
    with pytest.raises(ConfigError, match=r"data\.prompts \(columns\) was made of"):
        gipo_mc.train(prompts=others, **call)
    table = run.metrics()
    found += [table.index.tolist(), table["reward/mean"].tolist(), str(table.dtypes["reward/mean"]), table.index.name]
    found += [state, run.options()["model.reward"], len(run.samples()), seen]
    with gipo_mc.load_policy(run.path, device="cpu") as policy:
        found.append(policy.sample(PROMPTS[:1], max_new_tokens=3, greedy=True)[0].text)
    return found


def test_training_with_a_function_of_ones_own_again_and_again(tmp_path: Path, models: dict[str, str]) -> None:
    steps, means, kind, index, state, name, samples, seen, text = in_a_process(_trains, tmp_path, models)
    assert steps == [1, 2] and index == "step" and kind == "float64" and all(mean > 0 for mean in means)
    assert state == "done" and name.startswith("python:tests.api.test_library:") and name.endswith("mine")
    assert samples == 8 and len(seen) == 12 and isinstance(text, str)
    answers = {row["prompt"]: row["answer"] for row in ROWS}
    assert all(answers[prompt] == answer for prompt, answer in seen), "each response has the columns of its row"
    status = json.loads((tmp_path / "runs" / "two" / "run_status.json").read_text())
    assert status["state"] == "done" and len(list(tmp_path.glob("runs/one.rows-*/prompts.jsonl"))) == 2


def _on_ranks(rank: int, folder: Path, models: dict[str, str]) -> Any:
    """As under torchrun; the tests' own process group is there before, and has to be there afterwards."""
    os.chdir(folder)
    with gipo_mc.load_policy(models["policy"], device="cpu", tensor=2) as policy:
        sampled = policy.sample(PROMPTS, max_new_tokens=4)
        with pytest.raises(ConfigError, match="close that first"):
            gipo_mc.load_policy(models["policy"], device="cpu", tensor=1)
    assert dist.is_initialized()
    options = OPTIONS | {"parallel.tensor": 2, "parallel.timeout_minutes": 1}
    run = gipo_mc.train(policy=models["policy"], reward=_shorter, prompts=ROWS, run="runs/tp2", options=options)
    return sampled, run.metrics()["reward/mean"].tolist(), dist.is_initialized()


def _shorter(samples: list[gipo_mc.Sample]) -> list[float]:
    return [-float(len(sample.response_ids)) for sample in samples]


def test_ranks_make_the_same_calls_and_a_group_of_the_programs_own_stays(
    tmp_path: Path, models: dict[str, str]
) -> None:
    first, second = run_ranks(_on_ranks, 2, tmp_path, models)
    assert first == second and first[2] and len(first[1]) == 1


def _joins_again(rank: int, folder: Path, models: dict[str, str], port: int) -> Any:
    """As a program under torchrun, whose store outlives each process group."""
    os.chdir(folder)
    dist.destroy_process_group()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    options = OPTIONS | {"parallel.tensor": 2, "parallel.timeout_minutes": 1}
    call = {"policy": models["policy"], "prompts": ROWS, "run": "runs/again", "options": options}
    with pytest.raises(DataError):
        gipo_mc.train(reward=_fails, **call)  # type: ignore[arg-type]
    assert not dist.is_initialized()
    run = gipo_mc.train(reward=_shorter, **call)  # type: ignore[arg-type]
    with gipo_mc.load_policy(run.path, device="cpu", tensor=2) as policy:
        said = policy.sample(PROMPTS, max_new_tokens=4)
    return said, run.metrics()["reward/mean"].tolist(), dist.is_initialized()


def _fails(samples: list[gipo_mc.Sample]) -> list[float]:
    raise RuntimeError("not today")


def test_ranks_of_torchrun_join_again_after_an_error(tmp_path: Path, models: dict[str, str]) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second = run_ranks(_joins_again, 2, tmp_path, models, store.port)
    assert first == second and not first[2] and len(first[1]) == 1


def test_what_is_no_run_or_no_reward_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no run folder"):
        gipo_mc.read_run(tmp_path)
    call = {"policy": "p", "prompts": "builtin", "run": tmp_path / "r"}
    with pytest.raises(ConfigError, match="takes a, b"):
        gipo_mc.train(reward=lambda a, b: 0.0, **call)
    with pytest.raises(ConfigError, match=r"did you mean run\.iterations"):
        gipo_mc.train(reward=_shorter, options={"run.iteration": 1}, **call)
    with pytest.raises(ConfigError, match="is no value of an option"):
        gipo_mc.train(reward=_shorter, options={"run.seed": object()}, **call)
    with pytest.raises(ConfigError, match="prompts holds rows and names of files"):
        gipo_mc.train(reward=_shorter, **call | {"prompts": ["a.jsonl", {"prompt": "x"}]})
    with pytest.raises(ConfigError, match="preferences holds rows and names of files"):
        gipo_mc.train_dpo(policy="p", preferences=["a.jsonl", {"prompt": "x"}], run=tmp_path / "r")
    with pytest.raises(ConfigError, match="names no folder"):
        gipo_mc.train_sft(policy="p", demonstrations="a.jsonl", run="")
