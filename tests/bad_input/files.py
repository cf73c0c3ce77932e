"""Small files and folders that are wrong, one of each kind, for tests/bad_input/test_bad_input.py."""

from __future__ import annotations

import json
import os
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bad_input.evaluation_files import write_bad_evaluations
from tests.runs import save_models

DEEP = 20_000
#: Of YAML, whose reader calls itself for each level: Python allows 1,000 calls within each other.
DEEP_YAML = 2_000
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
    write_bad_evaluations(folder, NASTY, DEEP)
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
        "deep": "run: " + "[" * DEEP_YAML + "]" * DEEP_YAML,
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
