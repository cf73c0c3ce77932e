"""Small files and folders that are wrong, one of each kind, for tests/bad_input/test_bad_input.py."""

from __future__ import annotations

import json
import os
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.runs import save_models

DEEP = 20_000
#: What no terminal should get to see as it is: colour, a title, a bidirectional override, markup of rich.
NASTY = "\x1b[31m\u202e\x9b[red]"


def write_bad_files(folder: Path) -> None:
    """Everything that the table of tests/bad_input/test_bad_input.py names, in `folder`."""
    save_models(folder)
    policy = folder / "policy"
    _configs(folder)
    _models(folder, policy)
    _data(folder)
    _runs(folder)
    _evaluations(folder)
    _plans(folder)
    (folder / "folder").mkdir()
    for name in ("fifo", "fifo.jsonl", "fifo.yaml"):
        os.mkfifo(folder / name)


def _configs(folder: Path) -> None:
    letters = "abcdefghijklm"
    bomb = [f"{letters[0]}: &{letters[0]} [x,x,x,x,x,x,x,x,x]"]
    bomb += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in pairwise(letters)]
    texts: dict[str, str] = {
        "bomb": "\n".join(bomb),
        "itself": "run: &a [*a]",
        "deep": "run: " + "[" * DEEP + "]" * DEEP,
        "twice": "run: {seed: 1}\nrun: {seed: 2}",
        "list": "[1, 2]",
        "number": "3",
        "open": "run: [",
        "nul": "run: \0",
        "object": "run: !!python/object/apply:os.getcwd []",
        "set": "run: !!set {a}",
        "circle": "run: {name: '${run.name}'}",
        "absent": "run: {name: '${oc.env:GIPO_MC_NOT_SET}'}",
        "preset": "algorithm: {name: '${run.name}'}",
        "large": "run: {seed: " + "9" * 6000 + "}",
        "nasty": '"' + NASTY.encode("unicode_escape").decode().replace("\\x9b", "\\x9B") + '": 1',
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "latin.yaml").write_bytes(b"run: {name: caf\xe9}")
    (folder / "huge.yaml").write_bytes(b"#" * (1 << 21))


def _models(folder: Path, policy: Path) -> None:
    config = json.loads((policy / "config.json").read_text())
    for name, change in {
        "text_hidden": {"hidden_size": "thirty-two"},
        "list_layers": {"num_hidden_layers": [2]},
        "null_heads": {"num_attention_heads": None},
        "no_layers": {"num_hidden_layers": -1},
        "no_hidden": {"hidden_size": 0},
        "huge_vocab": {"vocab_size": 10**12},
        "huge_hidden": {"hidden_size": 10**12, "head_dim": None},
        "many_layers": {"num_hidden_layers": 10**9},
        "nan_norm": {"rms_norm_eps": float("nan")},
        "text_rope": {"rope_parameters": "x"},
        "odd_heads": {"num_attention_heads": 3},
        "other_type": {"model_type": ["llama"]},
        "nasty_type": {"model_type": NASTY},
    }.items():
        _copy(policy, folder / name, {"config.json": json.dumps(config | change)})
    texts = {
        "config_list": ("config.json", "[]"),
        "config_deep": ("config.json", "[" * DEEP),
        "config_cut": ("config.json", '{"model_type": "lla'),
        "tokenizer_cut": ("tokenizer.json", '{"version": '),
        "tokenizer_list": ("tokenizer.json", "[]"),
        "tokenizer_deep": ("tokenizer.json", "[" * DEEP),
        "tokenizer_empty": ("tokenizer.json", "{}"),
        "tokenizer_config_list": ("tokenizer_config.json", "[]"),
        "tokenizer_config_deep": ("tokenizer_config.json", "[" * DEEP),
    }
    for name, (file, text) in texts.items():
        _copy(policy, folder / name, {file: text})
    weights = (policy / "model.safetensors").read_bytes()
    for name, data in {
        "weights_cut": weights[:-100],
        "weights_empty": b"",
        "weights_header": struct.pack("<Q", 1 << 60) + weights[8:],
        "weights_json": struct.pack("<Q", 8) + b"[[[[[[[[",
    }.items():
        _copy(policy, folder / name, {})
        (folder / name / "model.safetensors").write_bytes(data)
    for name, index in {
        "index_absent": {
            "weight_map": {"model.embed_tokens.weight": "model-1.safetensors", "no.tensor": "a.safetensors"}
        },
        "index_other": {"weight_map": {"no.such.tensor": "model-1.safetensors"}},
        "index_outside": {"weight_map": {"x": "../policy/model.safetensors"}},
        "index_numbers": {"weight_map": {"x": 3}},
        "index_list": [],
    }.items():
        _copy(policy, folder / name, {"model.safetensors.index.json": json.dumps(index)})
        (folder / name / "model.safetensors").rename(folder / name / "model-1.safetensors")
    _copy(policy, folder / "index_deep", {"model.safetensors.index.json": "[" * DEEP})
    (folder / "index_deep" / "model.safetensors").unlink()
    for name, file in (("fifo_config", "config.json"), ("fifo_weights", "model.safetensors")):
        _copy(policy, folder / name, {})
        (folder / name / file).unlink()
        os.mkfifo(folder / name / file)


def _copy(policy: Path, folder: Path, changed: dict[str, str]) -> None:
    shutil.copytree(policy, folder)
    for name, text in changed.items():
        (folder / name).write_text(text)


def _data(folder: Path) -> None:
    texts: dict[str, str] = {
        "deep": "[" * DEEP + "\n",
        "deep_array": '[{"prompt": "a", "response": "b"}, ' + "[" * DEEP,
        "nasty": json.dumps({NASTY: 1}) + "\n",
        "empty": "",
    }
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "not.parquet").write_bytes(b"PAR1 but not really PAR1")
    (folder / "cut.gz").write_bytes(b"\x1f\x8b\x08 cut")


def _runs(folder: Path) -> None:
    def run(name: str, files: dict[str, str]) -> None:
        path = folder / "runs" / name
        path.mkdir(parents=True)
        for file, text in ({"metrics.jsonl": '{"step": 1, "loss": 1.0}\n'} | files).items():
            (path / file).write_text(text)

    values: dict[str, dict[str, Any]] = {
        "good": {},
        "text": {"metrics.jsonl": '{"step": 1, "loss": "x"}\n'},
        "large": {"metrics.jsonl": '{"step": 1, "loss": ' + "9" * 400 + "}\n"},
        "step": {"metrics.jsonl": '{"step": ' + "9" * 30 + ', "loss": 1}\n'},
        "deep": {"metrics.jsonl": "[" * DEEP + "\n"},
        "nasty": {"metrics.jsonl": json.dumps({"step": 1, f"reward/domain/{NASTY}": "x"}) + "\n"},
        "distributions": {"distributions.jsonl": '{"step": 1, "name": "reward", "values": {"a": 1}}\n'},
    }
    for name, files in values.items():
        run(name, files)
    (folder / "runs" / "fifo").mkdir()
    os.mkfifo(folder / "runs" / "fifo" / "metrics.jsonl")
    state = folder / "runs" / "state" / "checkpoints" / "step_00000001"
    state.mkdir(parents=True)
    for name in ("manifest_deep", "manifest_list", "manifest_types"):
        shutil.copytree(state, folder / "runs" / name / "checkpoints" / "step_00000001")
    manifests = {
        "manifest_deep": "[" * DEEP,
        "manifest_list": "[]",
        "manifest_types": '{"files": 3, "format": 1, "step": 1}',
    }
    for name, text in manifests.items():
        (folder / "runs" / name / "checkpoints" / "step_00000001" / "MANIFEST.json").write_text(text)


def _response(number: int, **changed: object) -> dict[str, object]:
    return {"prompt": f"question {number}", "response": f"answer {number}", "tokens": 3} | changed


def _evaluations(folder: Path) -> None:
    rows: dict[str, list[dict[str, object]]] = {
        "ours": [_response(n) for n in range(4)],
        "theirs": [_response(n, response=f"other {n}") for n in range(4)],
        "fewer": [_response(n) for n in range(3)],
        "others": [_response(n + 9) for n in range(4)],
        "doubled": [_response(n // 2) for n in range(4)],
        "no_tokens": [{"prompt": "a", "response": "b"}],
        "text_tokens": [_response(0, tokens="3")],
        "huge_tokens": [_response(n, tokens=10**400) for n in range(4)],
        "huge_group": [_response(n, group=10**30) for n in range(4)],
        "empty_prompt": [_response(0, prompt=" ")],
        "role": [_response(0, messages=[{"role": "root", "content": "x"}])],
        "nasty": [{NASTY: 1}],
    }
    path = folder / "responses"
    path.mkdir()
    for name, lines in rows.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, text in {"cut": '{"prompt": "a", "resp', "deep": "[" * DEEP, "empty": ""}.items():
        (path / f"{name}.jsonl").write_text(text)
    (path / "latin.jsonl").write_bytes(b"caf\xe9")
    _judges(folder)
    good = {
        "pair": "0" * 16, "row": "", "conversation": "c", "domain": "", "group": None, "opponent": "sft", "prompt": "p",
        "ours": "a", "theirs": "b", "ours_tokens": 1, "theirs_tokens": 1, "ours_truncated": False,
        "theirs_truncated": False, "ours_model": "", "theirs_model": "",
    }  # fmt: skip
    pair = json.dumps(good) + "\n"
    folders: dict[str, dict[str, str]] = {
        "unjudged": {"pairs.jsonl": pair},
        "pairs_cut": {"pairs.jsonl": pair[:-9]},
        "pairs_list": {"pairs.jsonl": "[]\n"},
        "pairs_types": {"pairs.jsonl": json.dumps(good | {"ours": 3}) + "\n"},
        "pairs_huge": {"pairs.jsonl": json.dumps(good | {"ours_tokens": 10**400}) + "\n"},
        "no_pairs": {"pairs.jsonl": ""},
        "verdicts": {"pairs.jsonl": pair, "verdicts.jsonl": '{"key": 1}\n'},
        "verdicts_deep": {"pairs.jsonl": pair, "verdicts.jsonl": "[" * DEEP + "\n"},
        "judges": {"pairs.jsonl": pair, "judges.json": "[" * DEEP},
        "judges_list": {"pairs.jsonl": pair, "judges.json": "[]"},
        "votes": {"pairs.jsonl": pair, "votes.jsonl": '{"voter": 1}\n'},
        "table": {"pairs.jsonl": pair, "table.json": "{"},
        "table_deep": {"pairs.jsonl": pair, "table.json": "[" * DEEP},
        "table_version": {"pairs.jsonl": pair, "table.json": '{"version": 99}'},
    }
    for name, files in folders.items():
        (folder / "evaluations" / name).mkdir(parents=True)
        for file, text in files.items():
            (folder / "evaluations" / name / file).write_text(text)
    (folder / "evaluations" / "fifo").mkdir()
    os.mkfifo(folder / "evaluations" / "fifo" / "pairs.jsonl")
    (folder / "page.html").write_text("<!doctype html><!-- gipo_mc votes --><p>no page</p>")


def _judges(folder: Path) -> None:
    address = "base_url: 'http://127.0.0.1:9/v1'\nmodel: m\n"
    texts: dict[str, str] = {
        "rule": "kind: python\nfunction: gipo_mc.evaluation.judges.rules:longer\n",
        "no_kind": "model: m\n",
        "other_kind": "kind: oracle\n",
        "list_kind": "kind: [openai]\n",
        "typo": f"kind: openai\n{address}temprature: 0\n",
        "text": f"kind: openai\n{address}workers: many\n",
        "no_address": "kind: openai\nmodel: m\n",
        "no_scheme": "kind: openai\nbase_url: localhost\nmodel: m\n",
        "bad_port": "kind: openai\nbase_url: 'http://h:99999/v1'\nmodel: m\n",
        "bracket": "kind: openai\nbase_url: 'http://[::1/v1'\nmodel: m\n",
        "password": "kind: openai\nbase_url: 'http://me:secret@h/v1'\nmodel: m\n",
        "no_prompt": f"kind: openai\n{address}prompt: nowhere\n",
        "prompt_list": f"kind: openai\n{address}prompt: {folder}/list.yaml\n",
        "prompt_slots": f"kind: openai\n{address}prompt: {folder}/judges/slots.yaml\n",
        "slots": "user: hello\nverdict: x\nchoices: {A: first, B: second}\n",
        "no_key": f"kind: openai\n{address}key_variable: GIPO_MC_NOT_SET\n",
        "no_module": "kind: python\nfunction: no.such.module:f\n",
        "no_function": "kind: python\nfunction: gipo_mc.evaluation.judges.rules:f\n",
        "not_callable": "kind: python\nfunction: gipo_mc.evaluation.judges.rules:annotations\n",
        "dots": "kind: python\nfunction: '..:f'\n",
        "no_model": f"kind: reward\nmodel: {folder}/none\n",
        "file_model": f"kind: reward\nmodel: {folder}/list.yaml\n",
        "policy": f"kind: reward\nmodel: {folder}/policy\ndevice: cpu\n",
        "people": "kind: python\nname: people\nfunction: gipo_mc.evaluation.judges.rules:longer\n",
    }
    (folder / "judges").mkdir()
    for name, text in texts.items():
        (folder / "judges" / f"{name}.yaml").write_text(text)


def _plans(folder: Path) -> None:
    """Plans of a paper's table."""
    head = f"folder: {folder}/paper\ntasks:\n  hh:\n"
    sft = "    runs:\n      sft: {command: train_sft, config: ../good.yaml}\n"
    texts: dict[str, str] = {
        "no_tasks": "folder: x\n",
        "typo": f"{head}{sft}    evalutions: {{}}\n",
        "command": f"{head}    runs:\n      sft: {{command: train_sftt, config: a.yaml}}\n",
        "order": f"{head}    runs:\n      dpo: {{command: train_dpo, config: a.yaml}}\n",
        "absent": f"{head}    runs:\n      sft: {{command: train_sft, config: none.yaml}}\n",
        "option": f"{head}    runs:\n      sft: {{command: train_sft, config: ../good.yaml, set: [run.sed=1]}}\n",
        "judged": f"{head}{sft}    evaluations:\n      a: {{prompts: {{x: y}}, judges: [j.yaml]}}\n",
        "label": f"{head}    runs:\n      '../sft': {{command: train_sft, config: ../good.yaml}}\n",
        "whole": f"{head}{sft}",
    }
    (folder / "good.yaml").write_text("data: {demonstrations: [x.jsonl]}\n")
    (folder / "plans").mkdir()
    for name, text in texts.items():
        (folder / "plans" / f"{name}.yaml").write_text(text)
