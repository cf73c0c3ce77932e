"""scripts/new_model.py: a model of each family that loads here and in transformers, from a line of text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from gipo_mc.data.tokenizer import load_tokenizer
from gipo_mc.models.families import FAMILIES, read_shape
from gipo_mc.tools.verbs.new_model import main


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_of_each_family(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "The dog", "response": "runs to the park."}) + "\n")
    words = f"--out {tmp_path / 'model'} --data {data} --family {family} --vocab 270 --hidden 32 --layers 2"
    monkeypatch.setattr(sys, "argv", ["new_model.py", *words.split()])
    assert main() == 0
    assert capfd.readouterr().err == "", "no progress bar of the library for a moment's work"
    shape, tokenizer = read_shape(tmp_path / "model"), load_tokenizer(str(tmp_path / "model"))
    assert (shape.family, shape.layers, shape.head_dim, shape.vocab_size) == (family, 2, 8, len(tokenizer))
    assert tokenizer.decode(tokenizer("The dog", add_special_tokens=False).input_ids) == "The dog"
    assert main() == 2, "nothing is written over"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    assert main() == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == FAMILIES[family].causal_lm


def test_prompts_are_enough_and_chat_has_a_template(tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"Where is city {number}?"}]} for number in range(3)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["--out", str(tmp_path / "model"), "--data", str(data), "--vocab", "270", "--hidden", "32", "--layers", "2"]
    assert main([*words, "--chat"]) == 0
    tokenizer = load_tokenizer(str(tmp_path / "model"), chat_template=True)
    said = tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False, add_generation_prompt=True)
    assert said == "<s><|user|>\nWhere is city 0?</s>\n<|assistant|>\n"


def test_the_builtin_task_has_a_model_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "m"), "--data", "builtin:easy"]) == 2
    assert "--data builtin:easy: the built-in task has a model of its own" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_rows_with_neither_are_told_as_demonstrations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "The dog"}\n')
    assert main(["--out", str(tmp_path / "model"), "--data", str(data)]) == 3
    assert f"{data}:1" in capsys.readouterr().err
