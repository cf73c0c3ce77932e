"""A model means the same trained here, exported, read by transformers, imported and exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from gipo_mc.config import ParallelConfig, load_config
from gipo_mc.parallel import runtime
from gipo_mc.run.model_sources import ModelSource
from gipo_mc.supervised import reward_model, sft
from gipo_mc.tools import conversion
from tests.chat import END, RESERVED, TURN, chat_tokenizer
from tests.models.tiny import let_this_rank_write
from tests.ranks import run_ranks

QUESTIONS = {"hello": ("Bob", "mat"), "name?": ("I am Bob", "cat"), "the cat": ("sat", "Bob")}


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def model_folder(folder: Path, kind: Any = LlamaForCausalLM, eos: str = "<|turn|>", **named: Any) -> Path:
    """A random model with a chat tokenizer, whose special ids config.json has, too."""
    torch.manual_seed(2)
    tokenizer = chat_tokenizer(eos_token=eos, **named)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=128, num_labels=1, **sizes, **ids
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(trainer: Any, folder: Path, model: Path, iterations: int, **data: str) -> None:
    base = {
        "run": {"dir": str(folder), "name": "run", "iterations": iterations},
        "device": "cpu",
        "model": {"policy": str(model)},
        "data": {"chat_template": True, "prompt_length": 40, "sequence_length": 64, **data},
        "policy": {"lr": 3e-3},
        "train": {"batch_size": 3},
        "eval": {"prompts": 0},
    }
    trainer.train(load_config(None, [], base))


# ---------------------------------------------------------------------------------------------------------- rewards
def train_reward(rank: int, folder: Path, model: Path) -> None:
    let_this_rank_write()
    rows = [
        {"prompt": [say("user", question)], "chosen": [say("assistant", good)], "rejected": [say("assistant", bad)]}
        for question, (good, bad) in QUESTIONS.items()
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(reward_model, folder, model, 20, preferences=str(folder / "pairs.jsonl"))
    layout = runtime.initialize(ParallelConfig(), "cpu")
    conversion.to_hf(str(folder / "run"), folder / "out", layout)
    conversion.from_hf(str(folder / "out"), folder / "imported", layout)
    conversion.to_hf(str(folder / "imported"), folder / "again", layout)


def test_a_reward_trained_at_an_eos_that_pads_is_read_there_by_transformers(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", pad_token="<|turn|>")
    run_ranks(train_reward, 1, tmp_path, base)
    for name in ("out", "again"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval()
        assert tokenizer.pad_token_id == model.config.pad_token_id == RESERVED
        for question, (good, bad) in QUESTIONS.items():
            texts = [
                tokenizer.apply_chat_template([say("user", question), say("assistant", answer)], tokenize=False)
                for answer in (good, bad)
            ]
            ids = [tokenizer(text.strip(), add_special_tokens=False).input_ids for text in texts]
            assert all(row[-1] == TURN for row in ids), "the EOS that was trained"
            padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            with torch.no_grad():
                scores = model(**padded).logits[:, 0]
                for row, score in zip(ids, scores, strict=True):
                    every = model.score(model.model(torch.tensor([row])).last_hidden_state)[0, :, 0]
                    torch.testing.assert_close(score, every[-1], rtol=0, atol=1e-5)
            assert scores[0] > scores[1], question


def shape_for_reward(folder: Path) -> int | None:
    return ModelSource("x", "hf", folder).shape_for("reward").pad_token_id


def import_and_export(rank: int, folder: Path) -> None:
    let_this_rank_write()
    layout = runtime.initialize(ParallelConfig(), "cpu")
    conversion.from_hf(str(folder / "model"), folder / "imported", layout)
    conversion.to_hf(str(folder / "imported"), folder / "again", layout)


def test_an_imported_reward_model_keeps_the_pad_id_it_is_read_by(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", LlamaForSequenceClassification, pad_token="<|turn|>")
    run_ranks(import_and_export, 1, tmp_path)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["pad_token_id"] == config["eos_token_id"] == TURN
    assert AutoTokenizer.from_pretrained(tmp_path / "again").pad_token_id == TURN
    assert shape_for_reward(tmp_path / "again") == TURN


def test_a_fresh_head_and_one_of_an_older_version_are_read_at_the_last_token(tmp_path: Path) -> None:
    assert shape_for_reward(model_folder(tmp_path / "lm", pad_token="<|turn|>")) is None
    (tmp_path / "state.json").write_text(json.dumps({"format": 1, "heads": {"model": "reward"}}))
    config = tmp_path / "lm" / "config.json"
    source = ModelSource("x", "run", tmp_path / "lm", tmp_path, "model")
    assert source.shape_for("reward").pad_token_id is None, "it said LlamaForCausalLM, whatever the head"
    fields = json.loads(config.read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    config.write_text(json.dumps(fields))
    assert source.shape_for("reward").pad_token_id == TURN
    assert source.shape_for("lm").pad_token_id == TURN


# ----------------------------------------------------------------------------------------------- ends of a response
def train_sft(rank: int, folder: Path, model: Path) -> None:
    let_this_rank_write()
    rows = [{"messages": [say("user", question), say("assistant", good)]} for question, (good, _) in QUESTIONS.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(sft, folder, model, 60, demonstrations=str(folder / "rows.jsonl"))
    conversion.to_hf(str(folder / "run"), folder / "out", runtime.initialize(ParallelConfig(), "cpu"))


@pytest.mark.parametrize("generation", [None, {"eos_token_id": [END], "temperature": 0.6}], ids=["base", "settings"])
def test_what_ends_a_trained_response_ends_one_in_transformers(generation: Any, tmp_path: Path) -> None:
    """The template ends turns with a token that neither the tokenizer nor the model calls its EOS."""
    base = model_folder(tmp_path / "base", eos="<|end|>", pad_token="<|reserved_0|>")
    file = base / "generation_config.json"
    file.unlink()
    if generation:
        file.write_text(json.dumps(generation))
    run_ranks(train_sft, 1, tmp_path, base)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert tokenizer.eos_token_id == model.config.eos_token_id == TURN
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert set(written["eos_token_id"]) == {END, TURN} and written.get("temperature") == (generation or {}).get(
        "temperature"
    )
    ids = tokenizer.apply_chat_template(
        [say("user", "name?")], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    answer = model.generate(ids, do_sample=False, max_new_tokens=30)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "I am Bob<|turn|>"
