"""scripts/generate.py and what it stands on: text in, the model's text out, from a folder that transformers wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gipo_mc.config import Config, validate
from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.evaluation.responses import Response
from gipo_mc.tools.respond import respond
from gipo_mc.tools.verbs.generate import _show
from tests.ranks import run_ranks
from tests.scripts import run_script

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["Where is the station?", "Tell me a story about two foxes and a very long road home."]
NEW = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    tokenizer = train_bpe_tokenizer(TEXTS, 280, path)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    """transformers' greedy continuations."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)
    found = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        found.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def config_of(folder: Path, **sections: dict) -> Config:
    raw = {"model": {"policy": str(folder)}, "rollout": {"max_new_tokens": NEW, "batch_size": 64}, "device": "cpu"}
    return validate(raw | sections)


@pytest.mark.parametrize("parallel, ranks", [({"tensor": 2}, 2), ({}, 2), ({}, 1)], ids=["TP2", "DP2", "1"])
def test_greedy_text_is_transformers(parallel: dict, ranks: int, folder: Path, expected: list[str]) -> None:
    config = config_of(folder, parallel=parallel)
    for responses in run_ranks(lambda rank: respond(config, TEXTS, greedy=True), ranks):
        assert [response.response for response in responses] == expected
        assert [response.prompt for response in responses] == TEXTS


@pytest.mark.parametrize("of_file", [True, False], ids=["a list in generation_config.json", "the end of turn"])
def test_a_response_ends_at_every_id_that_the_folder_names(of_file: bool, folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = config_of(folder)
    ids = LlamaForCausalLM.from_pretrained(folder).generate(
        **tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False), max_new_tokens=NEW, do_sample=False
    )[0]
    third = ids[-NEW + 2].item()
    if of_file:
        changed = tmp_path / "changed"
        shutil.copytree(folder, changed)
        listed = [tokenizer.eos_token_id, third]
        (changed / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
        config = config_of(changed)
    else:
        # The third token is what the template writes behind an answer.
        named = AddedToken(tokenizer.convert_ids_to_tokens(third), special=True)
        tokenizer.add_special_tokens({"additional_special_tokens": [named]})
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + named.content + "{% endfor %}"
        tokenizer.save_pretrained(tmp_path)
        config = config_of(folder, model={"policy": str(folder), "tokenizer": str(tmp_path)})
    response = run_ranks(lambda rank: respond(config, TEXTS[:1], greedy=True), 1)[0][0]
    assert response.tokens == ids[-NEW:].tolist().index(third) + 1 and not response.truncated


def test_prompts_of_a_file(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in (*TEXTS, "A third one.")]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(folder, data={"evaluation": [str(file)]}, eval={"prompts": 2})

    first, again = (run_ranks(lambda rank: respond(config), 1)[0] for _ in range(2))
    assert first == again, "one seed, one set of responses"
    assert [response.prompt for response in first] == TEXTS
    assert all(1 <= response.tokens <= NEW for response in first)


def test_progress_counts_the_prompts_that_there_are(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (*TEXTS, "A third one.", "And a fourth.")))
    config = config_of(folder, data={"evaluation": [str(file)]}, eval={"prompts": 300})

    def told(rank: int) -> list[tuple[int, int]]:
        steps: list[tuple[int, int]] = []
        respond(config, on_step=lambda done, of: steps.append((done, of)))
        return steps

    assert all(steps[-1] == (4, 4) and {of for _, of in steps} == {4} for steps in run_ranks(told, 2))


@pytest.mark.parametrize(("quiet", "as_json"), [(False, False), (True, False), (False, True)])
def test_a_file_of_responses_is_told_of(
    quiet: bool, as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gipo_mc.run.terminal.voice._quiet", quiet)
    response = Response("a", "b c", "", 3, False)
    _show([response], tmp_path / "out.jsonl", as_json=as_json)
    found = capsys.readouterr()
    assert found.err == ("" if quiet or as_json else f"1 response written to {tmp_path / 'out.jsonl'}.\n")
    assert bool(found.out) == as_json


@pytest.mark.parametrize(
    "sections, texts, error, words",
    [
        ({"model": {}}, TEXTS, ConfigError, "model.policy="),
        ({}, [], ConfigError, "--prompt"),
        ({"model": {"policy": "./nowhere"}}, TEXTS, ConfigError, "no such folder"),
        ({"rollout": {"max_new_tokens": 500}}, TEXTS, ConfigError, "128 positions"),
    ],
)
def test_refusals(folder: Path, sections: dict, texts: list[str], error: type[Exception], words: str) -> None:
    def attempt(_: int) -> str:
        with pytest.raises(error) as caught:
            respond(config_of(folder, **sections), texts)
        return str(caught.value)

    assert words in run_ranks(attempt, 1)[0]


def test_empty_prompt_is_refused_where_the_tokenizer_adds_nothing(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["post_processor"] = None
    bare = tmp_path / "bare"
    AutoTokenizer.from_pretrained(folder).save_pretrained(bare)
    (bare / "tokenizer.json").write_text(json.dumps(raw))
    config = config_of(folder, model={"policy": str(folder), "tokenizer": str(bare)})

    def attempt(_: int) -> str:
        with pytest.raises(DataError) as caught:
            respond(config, ["x", ""])
        return str(caught.value)

    assert "Prompt 1 of the batch has no tokens" in run_ranks(attempt, 1)[0]


def test_a_prompt_follows_the_chat_template(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ bos_token }}[{{ m.role }}]{{ m.content }}{% endfor %}|"
    tokenizer.save_pretrained(tmp_path)
    told: list[str] = []

    def attempt(_: int) -> list[str]:
        model = {"policy": str(folder), "tokenizer": str(tmp_path)}
        plain = respond(config_of(folder, model=model), ["hi"], tell=told.append)
        chat = config_of(folder, model=model, data={"chat_template": True})
        found = respond(chat, ["hi", "a [INST] b"], tell=told.append)
        with pytest.raises(DataError) as caught:
            respond(chat, ["a</s>b"])
        return [*(response.prompt for response in [*plain, *found]), str(caught.value), *told]

    plain, chat, odd, refused, *told = run_ranks(attempt, 1)[0]
    assert plain == "hi" and chat == "<s>[user]hi|" and odd == "<s>[user]a [INST] b|"
    assert "'a</s>b' is one of the messages that hold the special token </s>" in refused
    assert "data.chat_template=true makes each --prompt a user's message" in told[0]
    assert "as another model's chat template writes it" in told[-1]


def test_the_command(folder: Path, expected: list[str], tmp_path: Path) -> None:
    out = tmp_path / "responses.jsonl"
    options = [f"model.policy={folder}", f"rollout.max_new_tokens={NEW}", "device=cpu", "--greedy", "--out", str(out)]
    done = run_script(ROOT / "scripts" / "generate.py", *options, *(f"--prompt={text}" for text in TEXTS))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert done.stderr.endswith(f"2 responses written to {out}.\n")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["response"] for row in rows] == expected
    assert set(rows[0]) == {field.name for field in fields(Response)}
    first = rows[0]
    assert (first["row"], first["messages"], first["group"]) == ("--prompt 1", [], None)
    assert first["model"].startswith(f"{folder} [") and first["sampling"]["greedy"] is True
    assert first["conversation"] != rows[1]["conversation"]


@pytest.mark.parametrize(
    ("truncated", "stop", "words"),
    [
        (False, [], "3 tokens, the last of them EOS"),
        (False, ["\n"], "3 tokens, the last of them EOS or a stop string"),
        (True, [], "3 tokens, cut at rollout.max_new_tokens before an end"),
    ],
)
def test_the_heading_says_how_a_response_ended(
    truncated: bool, stop: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text has a word less than it has tokens where the last one is EOS."""
    _show([Response("a", " b c", "", 3, truncated, sampling={"stop": stop})], None, as_json=False)
    assert capsys.readouterr().out == f"--- prompt, {words}\na[ b c]\n"
