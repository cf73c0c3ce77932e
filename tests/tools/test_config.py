"""gipo-mc config: show, diff, check, schema, reference."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from gipo_mc.config import load_config, options
from gipo_mc.config.explain.json_schema import schema_text
from gipo_mc.config.explain.reference import with_reference
from gipo_mc.tools.verbs.config import main
from tests.source_rules import ROOT

HH = str(ROOT / "configs/hh_tiny.yaml")


def test_what_show_prints_is_the_same_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = r'rollout.stop=["\n\nHuman:", "1e3"]'
    assert main(["show", HH, "run.iterations=5", stop, "run.name=007x"]) == 0
    text = capsys.readouterr().out
    assert "iterations: 5  # command line" in text and f"prompt_length: 128  # {HH}" in text
    (tmp_path / "shown.yaml").write_text(text)
    assert load_config(str(tmp_path / "shown.yaml"), []) == load_config(HH, ["run.iterations=5", stop, "run.name=007x"])


def test_show_only_changed_for_a_trainer_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--for", "sft", "--only-changed", "--json", "policy.lr=0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy.lr"] == {"value": 0.5, "default": 1e-05, "origin": "command line"}
    assert found["data.max_rows"]["origin"] == "built-in task", "nothing is named, so that is what would run"
    assert "rollout.batch_size" not in found and "run.seed" not in found


def test_diff_says_whether_a_run_may_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run_status.json").write_text('{"command": "train_gi_ppo"}')
    (tmp_path / "config.yaml").write_text(Path(HH).read_text().replace("seed: 1", "seed: 2"))
    assert main(["diff", str(tmp_path), HH, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "train_gi_ppo"
    (tmp_path / "other.yaml").write_text(Path(HH).read_text() + "dpo: {beta: 0.5}\n")
    assert main(["diff", HH, str(tmp_path / "other.yaml"), "--for", "gi-ppo"]) == 0
    out = capsys.readouterr().out
    assert "(1 more that train_gi_ppo does not read)" in out and "No option differs." in out
    assert main(["diff", HH, str(tmp_path / "other.yaml")]) == 0
    assert "1 of 1 options are fixed" in capsys.readouterr().out
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "run_status.json").write_text('{"command": "train_sft"}')
    (tmp_path / "sft" / "config.yaml").write_text(Path(HH).read_text())
    assert main(["diff", str(tmp_path), str(tmp_path / "sft")]) == 0
    assert "the second of gipo-mc train sft: neither continues the other." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--no-files"], 0, []),
        ([], 2, ["model.policy=runs/hh_sft: there is no such folder", "data.prompts: there is no file data/hh/"]),
        (["--for", "reward"], 2, ["data.preferences is empty, and gipo-mc train reward needs it"]),
        (
            ["model.policy=hub/name", "model.reward=python:os.path:join"],
            3,
            ["data.evaluation: there is no file", "note: model.policy=hub/name: there is no such folder here; taken"],
        ),
        (["model.policy=sfft"], 2, ["model.policy=sfft: there is no such folder"]),
        (
            ["--no-files", "--ranks", "3", "parallel.tensor=2", "run.iteratons=3", "policy.lr=x", "eval.evry=2"],
            2,
            [
                "did you mean run.iterations?",
                "policy.lr='x'",
                "did you mean eval.every?",
                "does not divide the 3 ranks",
            ],
        ),
    ],
)
def test_check_lists_everything_that_a_start_would_refuse(
    words: list[str], code: int, parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "configs")
    assert main(["check", HH, *words]) == code
    shown = capsys.readouterr()
    assert all(part in shown.err for part in parts), shown.err
    assert ("is right for the trainers." in shown.out) == (code == 0)


def test_check_sizes_the_models_that_are_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 64, "hidden_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 32, "model_type": "llama"}))
    monkeypatch.chdir(ROOT)
    words = [f"model.{key}={tmp_path}" for key in ("policy", "critic", "reward")]
    assert main(["check", HH, *words, "parallel.pipeline=2", "parallel.frozen_tensor=8"]) == 2
    said = capsys.readouterr().err
    assert said.count("- model.") == 2, "a model of two roles is told once for each layout"
    assert f"model.policy={tmp_path}: The model does not fit" in said and "does not divide the model's 3 layers" in said
    assert (
        f"- model.reward={tmp_path} on parallel.frozen_tensor x parallel.frozen_pipeline ranks, 0 meaning as the "
        "others: The model does not fit the layout or the data:\n  - parallel.tensor=8 does not divide the model's 4 "
        "attention heads: use one of 1, 2, 4\n"
    ) in said


def test_check_refuses_what_is_no_model_or_too_short_for_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 64, "hidden_size": 16}
    short, empty = tmp_path / "short", tmp_path / "empty"
    for folder in (short, empty / "checkpoints"):
        folder.mkdir(parents=True)
    config = sizes | {"intermediate_size": 32, "model_type": "llama", "max_position_embeddings": 32}
    (short / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(ROOT)
    words = [f"model.policy={short}", f"model.critic={empty}", "model.reference=python:a:b"]
    words.append("model.reward=python:os.path:join")
    assert main(["check", HH, *words, "data.prompt_length=256", "rollout.max_new_tokens=64"]) == 2
    said = capsys.readouterr().err
    assert f"- model.policy={short}: The model does not fit" in said and "320 tokens of prompt and response" in said
    assert f"- model.critic={empty} is no model (no config.json), no checkpoint, and no run that has one." in said
    assert "- model.reference=python:a:b: there is no such folder" in said and "model.reward" not in said


def test_check_takes_a_command_line_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """As the trainers do; where it names neither a model nor data it is of the built-in task."""
    assert main(["check", "run.iterations=5", "--for", "gi-ppo"]) == 0
    assert capsys.readouterr().out == "This command line is right for gipo-mc train gi-ppo.\n"
    assert main(["check", "run.iterations=-5", "data.prompts=[/nowhere/rows.jsonl]", "--for", "gi-ppo"]) == 2
    said = capsys.readouterr()
    assert "run.iterations=-5: it must be at least 1" in said.err and "there is no file /nowhere/rows.jsonl" in said.err
    assert "This command line: 4 problems" in said.out
    assert main(["check", "parallel.tensor=3", "--for", "gi-ppo", "--ranks", "4"]) == 2
    assert "parallel.tensor" in capsys.readouterr().err


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"score.weight": (2, 8)}, "its head (score.weight) has 2 labels: a reward model has exactly one"),
        ({"lm_head.weight": (9, 8)}, "its weights have no head (score.weight): give a reward model"),
        ({"score.weight": (1, 8)}, ""),
        ({}, "its weights cannot be read: "),
    ],
)
def test_check_refuses_a_reward_model_without_one_label(
    tensors: dict[str, tuple[int, int]],
    said: str,
    sharded: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "model-00001-of-00001.safetensors" if sharded else "model.safetensors"
    if tensors:
        save_file({key: numpy.zeros(size, numpy.float32) for key, size in tensors.items()}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b"no weights")
    if sharded:
        index = {"weight_map": dict.fromkeys(tensors or ["score.weight"], name)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64, "hidden_size": 8}
    config = sizes | {"intermediate_size": 32, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(ROOT)
    main(["check", HH, f"model.reward={tmp_path}"])
    found = capsys.readouterr().err
    assert (f"- model.reward={tmp_path}: {said}" in found) if said else ("- model.reward" not in found)


def test_check_names_what_lies_beside_a_mistyped_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "my-sft").mkdir(parents=True)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.chdir(tmp_path)
    far = ["model.reference=elsewhere/mine", "model.reward=./models/reward"]
    near = ["model.policy=models/mysft", f"model.critic={tmp_path}/models/my_sft", "data.prompts=[prompt.jsonl]"]
    (tmp_path / "mine.yaml").write_text("run: {name: mine}\n")
    main(["check", "mine.yaml", *near, *far])
    shown = capsys.readouterr()
    said = shown.out + shown.err
    assert "model.policy=models/mysft: there is no such folder here; taken for a name on the hub; did you mean " in said
    assert said.count("did you mean models/my-sft?") == 1 and f"did you mean {tmp_path}/models/my-sft?" in said
    assert "data.prompts: there is no file prompt.jsonl; did you mean prompts.jsonl?" in said
    assert "elsewhere/mine: there is no such folder here; taken for a name on the hub.\n" in said
    assert "model.reward=./models/reward: there is no such folder. A run" in said


CODE = "print('hello')\ndef reward(sample): ...\ndef odd(a, b): ...\n"
MODELS = "model: {policy: hub/name, reward: python:mine:reward}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["model.reward=python:nope_of_mine:reward"],
            "No module named 'nope_of_mine'). The module is looked for in the",
        ),
        (["model.reward=python:mine:rewward"], "there is no rewward in"),
        (["eval.reward=python:mine:odd"], "eval.reward=python:mine:odd takes a, b: a reward function is called as"),
        (["reward.also=[python:mine:reward]"], ""),
        (["--no-files", "model.reward=python:nope_of_mine:reward"], ""),
    ],
)
def test_check_loads_functions_as_a_start_does(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "c.yaml").write_text(MODELS + "data: {prompts: hub/rows}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    sys.modules.pop("mine", None)
    assert main(["check", "c.yaml", "--for", "gi-ppo", "--json", *words]) == (2 if said else 0)
    found = json.loads(capsys.readouterr().out)
    assert len(found["problems"]) == bool(said) and said in "".join(found["problems"])
    assert ("hub/rows is not on this machine" in "".join(found["notes"])) == ("--no-files" not in words)


@pytest.mark.parametrize(
    ("kind", "row", "words", "said"),
    [
        ("sft", {"question": "a b", "chosen": "c", "rejected": "d"}, [], "data.columns.prompt=question"),
        ("sft", {"prompt": "a b", "answer": "c"}, [], "data.columns.chosen=answer"),
        ("gi-ppo", {"prompt": "a b", "answer": "c"}, [], ""),
        ("", {"prompt": "a b", "answer": "c"}, [], "data.columns.chosen=answer"),
        ("sft", {"prompt": "a b", "answer": "c"}, ["data.columns.chosen=answer"], ""),
        (
            "sft",
            {"prompt": "a b", "answer": "c"},
            ["data.columns.chosen=anser"],
            "data.columns names anser (for chosen)",
        ),
        ("dpo", {"prompt": "a", "chosen": "c"}, [], "there is no rejected response"),
        ("sft", {"prompt": 3, "chosen": "c"}, ["data.on_error=quarantine"], ""),
        ("sft", {"prompt": "a", "chosen": "c"}, ["data.format=builtin"], "data.format=builtin is for the source"),
    ],
)
def test_check_reads_the_first_rows_as_a_start_does(
    kind: str,
    row: dict[str, Any],
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, good = tmp_path / "rows.jsonl", '{"prompt": "a", "chosen": "b", "answer": "b", "rejected": "c"}\n'
    rows.write_text((json.dumps(row) + "\n") * 12)
    (tmp_path / "good.jsonl").write_text(good * 11 + "broken behind the rows that are read\n")
    named = {"sft": "demonstrations", "gi-ppo": "prompts", "dpo": "preferences", "": "demonstrations"}[kind]
    (tmp_path / "c.yaml").write_text(
        f"model: {{policy: hub/name, reward: hub/name}}\ndata: {{{named}: rows.jsonl, evaluation: good.jsonl}}\n"
    )
    monkeypatch.chdir(tmp_path)
    code = main(["check", "c.yaml", *(["--for", kind] if kind else []), "--json", *words])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if not said else 2 if "builtin" in said else 3), found
    assert said in " ".join(found["problems"]) and bool(found["problems"]) == bool(said)
    skipped = [note for note in found["notes"] if "the first 10 rows are malformed" in note]
    assert len(skipped) == ("data.on_error=quarantine" in words)


def test_check_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "c.yaml").write_text(MODELS + "data: {prompts: rows.jsonl}\n")
    code = (
        "import sys\nfrom gipo_mc.tools.command import main\n"
        "assert main(['config', 'check', 'c.yaml', '--for', 'gi-ppo']) == 0\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60)


def test_check_names_trackers_that_are_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gipo_mc.run.trackers._installed", lambda package: False)
    assert main(["check", HH, "--no-files", "--json", "run.trackers=[wandb, mlflow]"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2 and "pip install 'gipo-mc[wandb,mlflow]'" in found["problems"][0]


@pytest.mark.parametrize(
    "words", [["check", "no_such_file.yaml"], ["show", "no_such_file.yaml"], ["diff", HH, "nowhere"]]
)
def test_what_cannot_be_read_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("\nerror: ")


def test_check_notes_a_typed_option_that_the_trainer_does_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", HH, "--no-files", "dpo.beta=0.3", "--for", "gi-ppo"]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "- note: dpo.beta changes nothing: gipo-mc train gi-ppo does not read it, gipo-mc train dpo does.\n"
    )
    assert said.out == f"{HH} is right for gipo-mc train gi-ppo, as far as the notes go.\n"


def test_a_file_beside_a_mistyped_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("run: {seed: 3}\n")
    assert main(["check", str(tmp_path / "mien.yaml")]) == 2
    assert f"mien.yaml; did you mean {tmp_path}/mine.yaml? The runnable ones are in " in capsys.readouterr().err


def test_the_documented_commands_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as it is written, in a folder with a run."""
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith("gipo-mc config ")]
    assert len(commands) == 7
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/configuration.md").write_text(page)
    (tmp_path / "runs/hh_gi_ppo").mkdir(parents=True)
    shutil.copy(HH, tmp_path / "runs/hh_gi_ppo/config.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gipo_mc.config.explain.json_schema.FOLDER", tmp_path)
    for command in commands:
        assert main(shlex.split(command)[2:]) == 0, command
    assert (tmp_path / "sft.json").read_text() == schema_text("sft")
    assert (tmp_path / "docs/configuration.md").read_text() == page
    capsys.readouterr()


def test_schema_prints_what_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "sft"]) == 0
    assert capsys.readouterr().out == schema_text("sft")


def test_the_reference_in_the_documents_is_that_of_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert with_reference(page) == page, "gipo-mc config reference --write docs/configuration.md"
    assert main(["reference"]) == 0
    tables = capsys.readouterr().out
    assert tables in page and all(f"| `{key}` |" in tables for key in options())
