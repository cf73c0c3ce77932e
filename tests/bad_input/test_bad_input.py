"""Whatever a user gives, a command answers with a sentence and an exit code of the contract (gipo_mc/errors.py).

One table for every command. What is wrong lies in files of tests.bad_input.files.py; {} in an argument is their folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import re
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.rl import gi_ppo
from gipo_mc.run.command import run_command
from gipo_mc.supervised import dpo, reward_model, sft
from gipo_mc.tools import builtin
from gipo_mc.tools.command import main as gipo_mc
from tests.bad_input.evaluation_rows import EVALUATION_ROWS
from tests.bad_input.files import DEEP_YAML, NASTY, write_bad_files
from tests.bad_input.lines import BAD_CONFIGS, LONG, Bad, each

#: No answer takes longer; what hangs (a named pipe without a writer) is stopped.
SECONDS = 20
_TRAINERS: dict[str, tuple[Callable[..., None], Any]] = {
    "train_sft": (sft.train, builtin.SFT),
    "train_reward": (reward_model.train, builtin.REWARD),
    "train_dpo": (dpo.train, builtin.DPO),
    "train_gi_ppo": (gi_ppo.train, builtin.GI_PPO),
}
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _models(names: str, code: int, says: str = "") -> list[Bad]:
    """A model in every place where one is read: converted, continued and sampled from."""
    found = []
    for name in names.split():
        found += each("convert_checkpoint", code, f"--check {{}}/{name}", says=says)
        found += each("generate", code, f"model.policy={{}}/{name} --prompt {WORD} rollout.max_new_tokens=2", says=says)
    return found


#: A word of the built-in tokenizer.
WORD = "s0"
_BAD_DATA = (
    "none.jsonl", "fifo.jsonl", "folder", "deep.jsonl", "deep_array.jsonl", "nasty.jsonl", "empty.jsonl", "not.parquet",
    "cut.gz", "fifo",
)  # fmt: skip
_SIZE = "model.policy={}/policy data.sequence_length=24"
TABLE: list[Bad] = [
    # ------------------------------------------------------------------------------------------------- configuration
    *(bad for name in BAD_CONFIGS for bad in each("train_sft", 2, f"--config {{}}/{name}.yaml")),
    *each("train_gi_ppo", 2, "--config {}/preset.yaml", says="write the name itself"),
    *each("train_sft", 2, "--config {}/fifo.yaml", "--config {}/folder", "--config /dev/zero", "--config {}/none.yaml"),
    *each("train_sft", 2, f"--config {LONG}", f"run.name={LONG}", f"run.dir={LONG}", says=""),
    *each("train_reward", 2, f"data.preferences=[{LONG}]", f"model.policy={LONG}", f"model.reward={'a/' * 3000}"),
    *each("train_dpo", 2, "data.preferences=['https://me:secret@host/x']", says="password in a URL"),
    Bad("train_sft", [f"run.name={NASTY}"], 2),
    Bad("train_sft", [f"{NASTY}=1"], 2),
    Bad("train_sft", [f"--{NASTY}"], 2),
    Bad("train_sft", [NASTY], 2),
    Bad("train_sft", [f"run.seed={NASTY}"], 2),
    Bad("train_sft", ["run.name=../x"], 2),
    *each(
        "train_sft", 2, "run=3", "=3", "[=1", "run.seed[0]=1", "run.seed=1e400", "run.seed=" + "1" * 5000, "a." * 1500
    ),
    *each(
        "train_sft",
        2,
        "a." * 1500 + "b=1",
        "run.seed=" + "[" * DEEP_YAML,
        "run.name=${",
        "run.seed=-1",
        "run.seed=2147483648",
    ),
    *each("train_gi_ppo", 2, "policy.lr=nan", "policy.lr=0", "policy.lr=-1", "policy.lr=inf", "rollout.batch_size=0"),
    *each(
        "train_gi_ppo",
        2,
        "rollout.batch_size=1000000000000000000",
        "rollout.max_new_tokens=1000000000000000000",
        "rollout.samples_per_prompt=1000000000000000000",
        "parallel.timeout_minutes=inf",
        "parallel.timeout_minutes=1e300",
        "run.iterations=1000000000000000000000",
        "train.batch_size=1000000000000000000",
        "data.prompt_length=1000000000000000000",
        "data.sequence_length=1000000000000000000",
        "parallel.tensor=1000000000000000000",
        "parallel.micro_batch_size=1000000000000000000000",
        "eval.prompts=1000000000000000000000",
    ),
    # -------------------------------------------------------------------------------------------------------- models
    *_models("config_list other_type nasty_type", 2),
    *_models(
        "odd_heads text_hidden list_layers null_heads no_layers no_hidden nan_norm text_rope config_cut config_deep", 4
    ),
    *_models("huge_vocab huge_hidden many_layers", 4),
    *_models("weights_cut weights_empty weights_header weights_json", 4),
    *_models("index_absent index_other index_outside index_numbers index_list index_deep", 4),
    *(
        bad
        for name in ("cut", "list", "deep", "empty", "config_list", "config_deep")
        for bad in [
            *each("generate", 2, f"model.policy={{}}/tokenizer_{name} --prompt {WORD} rollout.max_new_tokens=2"),
            *each("convert_checkpoint", 2, f"--from-hf {{}}/tokenizer_{name} {{}}/imported"),
        ]
    ),
    *_models("fifo_config", 2),
    *_models("fifo_weights", 2),
    *each(
        "generate",
        2,
        f"--prompt {WORD}",
        f"model.policy={{}}/none --prompt {WORD}",
        f"model.policy={LONG} --prompt {WORD}",
    ),
    *each("generate", 2, f"model.policy={{}}/folder --prompt {WORD}", f"model.policy=/dev/zero --prompt {WORD}"),
    *each(
        "generate", 6, f"model.policy={{}}/policy --prompt {WORD} rollout.max_new_tokens=2 --out {{}}/none/out.jsonl"
    ),
    *each("generate", 6, f"model.policy={{}}/policy --prompt {WORD} rollout.max_new_tokens=2 --out {{}}/folder"),
    # ---------------------------------------------------------------------------------------------------- conversion
    *each(
        "convert_checkpoint", 2, "", "--check {}/none", "--check {}/folder", f"--check {LONG}", "--tensor 0 --check x"
    ),
    *each("convert_checkpoint", 2, "--to-hf {}/policy {}/out", "--to-hf {}/none {}/out", "--from-hf {}/none {}/out"),
    *each("convert_checkpoint", 4, "--to-hf {}/runs/manifest_deep {}/out", "--to-hf {}/runs/manifest_list {}/out"),
    *each("convert_checkpoint", 4, "--to-hf {}/runs/manifest_types {}/out"),
    *each("convert_checkpoint", 6, "--from-hf {}/policy {}/policy/config.json/x"),
    *each("convert_checkpoint", 2, "--check ~nobody-here/x", "--from-hf {}/policy ~nobody-here/x"),
    *each("generate", 2, f"model.policy=~nobody-here/x --prompt {WORD}"),
    *each("train_sft", 3, f"{_SIZE} data.demonstrations=[~nobody-here/x.jsonl] run.name=sft-nobody"),
    *each("train_sft", 2, f"{_SIZE} model.tokenizer=~nobody-here/x run.name=sft-nobody"),
    *each("convert_checkpoint", 2, "--tensor 1000000000000000000000 --check {}/policy"),
    Bad("convert_checkpoint", ["--check", NASTY], 2),
    # ----------------------------------------------------------------------------------------------------- new models
    *each(
        "new_model",
        2,
        "",
        f"--out {LONG} --data x",
        "--out {}/new --data x --vocab 1000000000000",
        "--out x --data y --hidden 0",
    ),
    *each("new_model", 2, "--out x --data y --layers -1", "--out x --data y --heads 0", "--out x --data y --seed -1"),
    *each(
        "new_model", 2, "--out x --data y --heads 3", "--out x --data y --kv-heads 3", "--out x --data y --hidden nan"
    ),
    *each("new_model", 2, "--out {}/new --data y --hidden 65536 --layers 1024 --heads 64", says="memory"),
    *each(
        "new_model",
        3,
        "--out {}/new --data {}/none.jsonl",
        "--out {}/new --data {}/fifo.jsonl",
        "--out {}/new --data {}/folder",
    ),
    # ----------------------------------------------------------------------------------------------------------- data
    *(
        bad
        for name in _BAD_DATA
        for bad in [
            *each(
                "train_sft",
                3,
                f"{_SIZE} data.demonstrations=[{{}}/{name}] run.name=sft-{name}",
            ),
            *each(
                "train_dpo",
                3,
                f"{_SIZE} data.preferences=[{{}}/{name}] run.name=dpo-{name}",
            ),
        ]
    ),
    # --------------------------------------------------------------------------------------------------------- report
    *each("report", 2, "", f"{LONG}", "{}/runs/text --out " + LONG),
    *each(
        "report", 3, "{}/none", "{}/folder", "{}/policy/config.json", "{}/runs/text", "{}/runs/large", "{}/runs/step"
    ),
    *each("report", 3, "{}/runs/deep", "{}/runs/nasty", "{}/runs/distributions", "{}/runs/fifo", "/dev/null"),
    *each("report", 6, "{}/runs/good --out {}/folder", "{}/runs/good --out /dev/null/x"),
    *each("report", 3, "{}/runs/good --note {}/none", "{}/runs/good --note {}/fifo", "{}/runs/good --note {}/folder"),
    Bad("report", ["{}/" + NASTY], 3),
    Bad("report", [f"--{NASTY}"], 2),
    *each("run_status", 2, "", LONG, "{}/runs/good --since x"),
    Bad("run_status", [f"--{NASTY}"], 2),
    *EVALUATION_ROWS,
    # ---------------------------------------------------------------------------------------------- doctor, the demo
    *each("doctor", 2, "x", "--json=3"),
    Bad("doctor", [f"--{NASTY}"], 2),
    *each("demo", 2, "--iterations -1", "--iterations 1.5", f"--dir {LONG}", "x"),
    Bad("demo", [NASTY], 2),
]


def _main(command: str) -> Callable[[list[str]], int]:
    if command in _TRAINERS:
        train, task = _TRAINERS[command]
        return lambda words: run_command(command, train, argv=words, builtin=task)
    verb = {"run_status": "status", "convert_checkpoint": "convert"}.get(command, command.replace("_", "-"))
    return lambda words: gipo_mc([verb, *words])


class Hang(BaseException):
    """An answer that does not come."""


def _hang(signum: int, frame: object) -> None:
    raise Hang


def _answer(main: Callable[[list[str]], int], words: list[str]) -> tuple[int, str]:
    """(exit code, what was said on both streams) of a command."""
    said = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else -1
    except BaseException:
        return -1, said.getvalue() + traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    return code, said.getvalue()


def _answers(folder: Path, out: Path) -> None:
    """Answers to the whole table, in a process of its own: a line each."""
    signal.signal(signal.SIGALRM, _hang)
    mains = {command: _main(command) for command in {bad.command for bad in TABLE}}
    with out.open("w") as lines:
        for bad in TABLE:
            words = [word.replace("{}", str(folder)) for word in bad.words if word]
            if bad.command in (*_TRAINERS, "generate"):
                words += ["device=cpu"]
            if bad.command in _TRAINERS and not any(word.startswith("run.dir") for word in words):
                words += [f"run.dir={folder}/out"]
            lines.write(json.dumps(_answer(mains[bad.command], words)) + "\n")
            lines.flush()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    folder = tmp_path_factory.mktemp("bad")
    write_bad_files(folder)
    with tempfile.NamedTemporaryFile("r") as out:
        process = multiprocessing.get_context("fork").Process(target=_answers, args=(folder, Path(out.name)))
        process.start()
        process.join(timeout=280)
        if process.is_alive():
            process.kill()
        return [tuple(json.loads(line)) for line in out]


@pytest.mark.parametrize("number", range(len(TABLE)), ids=lambda number: TABLE[number].name)
def test_bad_input_is_answered_in_a_sentence(answers: list[tuple[int, str]], number: int) -> None:
    bad = TABLE[number]
    assert number < len(answers), f"the process ended at {TABLE[len(answers)].name}"
    code, said = answers[number]
    assert "Traceback" not in said and code == bad.code, said
    assert "error:" in said, said
    assert bad.says in said, said
    assert not _CONTROL.search(said), repr(said)
