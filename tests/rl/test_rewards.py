"""A reward model with a tokenizer of its own scores the text, not the policy's ids; functions are called once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from gipo_mc.config import ParallelConfig
from gipo_mc.config.reward import is_function
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.tokenizer import load_tokenizer, same_tokens, train_bpe_tokenizer
from gipo_mc.errors import ConfigError
from gipo_mc.generation.stopping import stop_on_strings
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.reward_sources.functions import FunctionReward
from gipo_mc.rl.rewards import ModelReward, responses
from gipo_mc.run.functions.rewards import load_function
from gipo_mc.run.model_sources import load_model, resolve
from gipo_mc.types import Prompt, Rollout
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import rl_config

TEXTS = ["How do I boil an egg?", "Tell me a joke about cats.", "Why?", "What is the capital of France, please?"]
ANSWERS = [" Boil it for ten minutes.", " No.", " Because cats are cats, and eggs are eggs.", " Paris"]
ENDED = [True, True, False, True]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two byte-level tokenizers with different merges, and a reward model for the second."""
    folder = tmp_path_factory.mktemp("reward")
    train_bpe_tokenizer(TEXTS * 3, 290, folder / "policy")
    tokenizer = train_bpe_tokenizer(ANSWERS * 3, 310, folder / "reward")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.25,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    return folder


def _rollout(tokenizer: PreTrainedTokenizerBase) -> tuple[list[Prompt], Rollout]:
    prompts = [Prompt(i, tuple(tokenizer(text)["input_ids"]), "a", text) for i, text in enumerate(TEXTS)]
    answers = [
        tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ended
        for text, ended in zip(ANSWERS, ENDED, strict=True)
    ]
    sequences = to_sequences([p.token_ids for p in prompts], answers, tokenizer.pad_token_id)
    times = int(sequences.response_length_B.max())
    return prompts, Rollout(sequences, torch.arange(4), ("a",) * 4, torch.zeros(4, times), ~torch.tensor(ENDED))


def _score(rank: int, folder: Path, policy_tokenizer: str, layout: dict[str, Any]) -> torch.Tensor:
    sizes = {key: value for key, value in layout.items() if key != "data"}
    here = runtime.initialize(ParallelConfig(timeout_minutes=1, **sizes), "cpu")
    source = resolve(str(folder / "reward"), "model.reward")
    model = load_model(source, here, head="reward", dtype=torch.float32, trainable=False, seed=1)
    tokenizer = load_tokenizer(policy_tokenizer)
    reward = ModelReward(
        Engine(model, here), load_tokenizer(str(folder / "reward")), tokenizer, ParallelConfig(micro_batch_size=3)
    )
    return reward(*_rollout(tokenizer))


@pytest.mark.parametrize("name", ["1", "TP2", "PP2", "DP2"])
@pytest.mark.parametrize("policy", ["policy", "reward"])
def test_scores_are_those_of_transformers_on_the_text(folder: Path, policy: str, name: str) -> None:
    """With another tokenizer (retokenized) and with the same one (the ids as they are)."""
    tokenizer = load_tokenizer(str(folder / "reward"))
    model = LlamaForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32).eval()
    expected = []
    for prompt, answer, ended in zip(TEXTS, ANSWERS, ENDED, strict=True):
        ids = tokenizer(prompt)["input_ids"] + tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] * ended
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids])).logits))
    layout = LAYOUTS[name]
    ranks = layout.get("tensor", 1) * layout.get("pipeline", 1) * layout.get("data", 1)
    for found in run_ranks(_score, ranks, folder, str(folder / policy), layout):
        assert found.dtype == torch.float32
        assert torch.allclose(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert max(expected) - min(expected) > 0.1, "the responses must differ for this to say anything"


def test_tokenizers_are_compared_by_what_ids_mean(folder: Path) -> None:
    policy, reward = load_tokenizer(str(folder / "policy")), load_tokenizer(str(folder / "reward"))
    assert same_tokens(reward, load_tokenizer(str(folder / "reward"))) and not same_tokens(policy, reward)
    ids = [policy(text)["input_ids"] for text in TEXTS]
    assert ids != [reward(text)["input_ids"] for text in TEXTS], "the tokenizers must differ for this to say anything"


def test_responses_are_text_without_special_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder / "policy"))
    assert responses(_rollout(tokenizer)[1].sequences, tokenizer) == ANSWERS


def test_responses_are_letter_for_letter_what_was_said(tmp_path: Path) -> None:
    """A tokenizer may ask for " !=" to be decoded as "!=": code and quotations would reach the reward changed."""
    words = ["</s>", "<unk>", "x", "!=", "y", ",", "it", "'s", "."]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    asks = {"eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": True}
    PreTrainedTokenizerFast(tokenizer_object=core, **asks).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    text = "x != y , it 's ."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert responses(to_sequences([[2]], [ids], 0), tokenizer) == [text] != [tokenizer.decode(ids)]
    condition = stop_on_strings(tokenizer, [" ."])
    assert condition is not None and condition(ids) and not condition(ids[:-1])


def _call(rank: int, folder: Path) -> Any:
    here = runtime.initialize(ParallelConfig(timeout_minutes=1), "cpu")
    tokenizer = load_tokenizer(str(folder / "policy"))
    seen: list[Any] = []

    def function(prompts: list[str], texts: list[str], domains: list[str]) -> list[float]:
        seen.append((prompts, texts, domains))
        return [len(text) + 0.5 for text in texts]

    rewards = FunctionReward("python:x:f", function, tokenizer, here)(*_rollout(tokenizer))
    return seen, rewards


def test_a_function_is_called_on_one_rank_and_answers_for_all(folder: Path) -> None:
    results = run_ranks(_call, 2, folder)
    assert results[0][0] == [(TEXTS, ANSWERS, ["a"] * 4)] and results[1][0] == []
    for _, rewards in results:
        assert rewards.tolist() == [len(text) + 0.5 for text in ANSWERS] and rewards.dtype == torch.float32


def test_names_of_functions() -> None:
    assert is_function("python:math:sqrt") and not is_function("runs/reward")
    assert load_function("python:os.path:join")("a", "b") == "a/b"  # type: ignore[arg-type,call-arg]
    for name in ("python:math", "python:math:nothing", "python:no.such.module:f", "python:", "python:a:b:c"):
        with pytest.raises(ConfigError, match="the function cannot be loaded"):
            load_function(name)


# --------------------------------------------------------------------------------------------- a template of its own
OWN = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_run_says_what_its_reward_model_reads_and_what_is_odd_about_its_rows(folder: Path, tmp_path: Path) -> None:
    for name, template in (("policy", OWN.replace("m.role", "m.role|upper")), ("reward", OWN)):
        (tmp_path / name).mkdir()
        tokenizer = load_tokenizer(str(folder / name))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
        fields = {**LlamaConfig.from_pretrained(folder / "reward").to_dict(), "num_labels": 1}
        kind = LlamaForCausalLM if name == "policy" else LlamaForSequenceClassification
        kind(LlamaConfig(**fields)).save_pretrained(tmp_path / name)
    rows = [{"prompt": text, "label": 1} for text in TEXTS] + [{"prompt": "<|im_start|>user\nhi"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = rl_config(
        tmp_path,
        {name: str(tmp_path / name) for name in ("policy", "reward")},
        f"data.prompts=[{tmp_path}/prompts.jsonl]",
        "data.evaluation=[]",
        "data.prompt_length=64",
        "data.chat_template=true",
        "rollout.stop=[e]",
        "run.iterations=1",
        "eval.reward=''",
    )
    run_ranks(lambda rank: gi_ppo.train(config), 1)
    about = dict(json.loads((tmp_path / "run" / "about.json").read_text()))
    assert about["reward"].endswith("reads the messages, in its own chat template")
    assert "columns not used: label" in about["prompts"]
    warnings = (tmp_path / "run" / "warnings.jsonl").read_text()
    assert warnings.count("as another model's chat template writes it") == 1
