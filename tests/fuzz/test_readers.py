"""Damaged files in front of every reader: nothing comes out but values and sentences (`GipoError`).

A reader gets some hundred seeded mutations of a small valid file; CONTRIBUTING.md says how to run more. A mutation that
fails is named by its number, and is the same every time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
from datasets import Dataset

from gipo_mc.config import load_config
from gipo_mc.data.sources import read_rows
from gipo_mc.data.tokenizer import load_tokenizer
from gipo_mc.errors import GipoError
from gipo_mc.evaluation.judge_config import load_judge
from gipo_mc.evaluation.judges.journal import Journal
from gipo_mc.evaluation.judges.judging import judge_pairs
from gipo_mc.evaluation.judges.prompts import load_prompt
from gipo_mc.evaluation.pairs import write_pairs
from gipo_mc.evaluation.reading import games_of
from gipo_mc.evaluation.responses import read_responses
from gipo_mc.models.families import read_shape
from gipo_mc.models.weights.hf_load import INDEX, SafetensorsFolder, stored_dtype
from gipo_mc.report.report import build_report
from gipo_mc.report.runs import load_run
from gipo_mc.run import checkpoint, manifest
from gipo_mc.run.jsonl import read_jsonl
from tests.evaluation.games import Server, chat_judge, pairs_of
from tests.fuzz.mutations import COUNT, mutated
from tests.report.fake_runs import rl_run
from tests.runs import save_models


@dataclass(frozen=True)
class Target:
    """A reader and the file that is damaged for it. count: mutations of an ordinary test run, about two seconds."""

    file: Path
    read: Callable[[Path], object]
    count: int


def _tensors(folder: Path) -> None:
    weights = SafetensorsFolder(folder)
    stored_dtype(weights)
    for name, size in weights.shapes.items():
        if size:
            weights.read(name, slice(0, 1))


def _checkpoint(folder: Path) -> None:
    manifest.verify(folder)
    checkpoint.load_state(folder)


def _text(folder: Path) -> None:
    load_tokenizer(str(folder))("s0 s1")


def _evaluation(folder: Path) -> dict[str, Target]:
    """An evaluation of two pairs and a judge that answered one game without a verdict."""
    folder.mkdir()
    pairs = pairs_of(folder, ["a", "é"], sft=["b", "c"])
    server = Server(lambda question, settings: "[[A]]" if "\na\n" in question else "Hm.")
    with Journal(folder) as journal:
        write_pairs(folder, pairs)
        judge_pairs(chat_judge(server, max_invalid=1), pairs, journal)
    (folder / "judge.yaml").write_text(
        "kind: openai\nbase_url: http://localhost:1/v1\nmodel: m\ntemperature: 0.5\nextra: {top_k: 3}\n"
    )
    shutil.copy("gipo_mc/evaluation/templates/judge/tldr_forced.yaml", folder / "prompt.yaml")
    return {
        "responses": Target(folder / "ours.jsonl", read_responses, 400),
        "pairs": Target(folder / "pairs.jsonl", lambda path: games_of(path.parent), 300),
        "verdicts": Target(folder / "verdicts.jsonl", lambda path: games_of(path.parent), 300),
        "invalid answers": Target(folder / "invalid.jsonl", lambda path: games_of(path.parent), 100),
        "judges": Target(folder / "judges.json", lambda path: games_of(path.parent), 300),
        "a judge": Target(folder / "judge.yaml", lambda path: load_judge(str(path)), 40),
        "a judge's prompt": Target(folder / "prompt.yaml", lambda path: load_prompt(str(path)), 20),
    }


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    save_models(folder)
    policy = folder / "policy"
    sharded = shutil.copytree(policy, folder / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-1.safetensors")
    names = SafetensorsFolder(policy).shapes
    (sharded / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")}))
    small = shutil.copytree(policy, folder / "small")
    header = int.from_bytes((small / "model.safetensors").read_bytes()[:8], "little")
    (folder / "header").write_bytes((small / "model.safetensors").read_bytes()[: 8 + header])
    rows = folder / "rows.jsonl"
    row = {"prompt": "a", "messages": [{"role": "user", "content": "é"}], "score": 1.5}
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(3)))
    (folder / "array.json").write_text(json.dumps([row, row]))
    (folder / "config.yaml").write_text(
        "run: {seed: 3, name: 'x-${run.seed}'}\ndata:\n  prompts: [a, b]\n  domains: &d [x, y]\nalgorithm:\n"
        "  name: ppo\n  lam: 0.9\npolicy:\n  lr: 1e-4\n"
    )
    Dataset.from_list([row, row, row]).to_parquet(str(folder / "rows.parquet"))
    step = folder / "step_00000001"
    step.mkdir()
    (step / "notes").write_bytes(b"x")
    (step / "state.json").write_text(json.dumps({"format": 1, "step": 1, "settings": {"run.seed": 1}, "frozen": {}}))
    state = (step / "state.json").read_bytes()
    files = {
        "notes": {"size": 1, "blake3": [blake3(b"x").hexdigest()]},
        "state.json": {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()},  # as checkpoints of before
    }
    (step / "MANIFEST.json").write_text(json.dumps({"format": 1, "step": 1, "files": files}))
    run = rl_run(folder, "run", "gi_ppo", 3)
    return {
        "data in lines": Target(rows, lambda path: list(read_rows(str(path))), 1500),
        "data in a list": Target(folder / "array.json", lambda path: list(read_rows(str(path))), 1500),
        "data in Parquet": Target(folder / "rows.parquet", lambda path: list(read_rows(str(path))), 250),
        "configuration": Target(folder / "config.yaml", lambda path: load_config(str(path), []), 150),
        "config.json": Target(policy / "config.json", lambda path: read_shape(path.parent), 400),
        "tokenizer.json": Target(policy / "tokenizer.json", lambda path: _text(path.parent), 200),
        "tokenizer_config.json": Target(policy / "tokenizer_config.json", lambda path: _text(path.parent), 200),
        "index": Target(sharded / INDEX, lambda path: _tensors(path.parent), 100),
        "weights": Target(small / "model.safetensors", lambda path: _tensors(path.parent), 150),
        "manifest": Target(step / "MANIFEST.json", lambda path: _checkpoint(path.parent), 1500),
        "state": Target(step / "state.json", lambda path: _checkpoint(path.parent), 1500),
        "metrics": Target(run / "metrics.jsonl", read_jsonl, 200),
        "run, metrics": Target(run / "metrics.jsonl", lambda path: load_run(path.parent), 60),
        "run, about": Target(run / "about.json", lambda path: load_run(path.parent), 60),
        "run, config": Target(run / "config.yaml", lambda path: load_run(path.parent), 20),
        "run, status": Target(run / "run_status.json", lambda path: load_run(path.parent), 60),
        **_evaluation(folder / "evaluation"),
        "report, samples": Target(
            run / "samples.jsonl", lambda path: build_report([path.parent], folder / "r.html"), 2
        ),
    }


_NAMES = (
    "data in lines", "data in a list", "data in Parquet", "configuration", "config.json", "tokenizer.json",
    "tokenizer_config.json", "index", "weights", "manifest", "state", "metrics", "run, metrics", "run, about",
    "run, config", "run, status", "report, samples", "responses", "pairs", "verdicts", "invalid answers", "judges",
    "a judge", "a judge's prompt",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """A reader that waits for ever is a failure, too."""
    yield
    signal.alarm(0)


def _hang(signum: int, frame: object) -> None:
    raise TimeoutError("the reader did not come back")


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.timeout(0)
def test_damage_is_answered_in_sentences(targets: dict[str, Target], name: str) -> None:
    target, failures, sentences = targets[name], [], 0
    whole = target.file.read_bytes()
    signal.signal(signal.SIGALRM, _hang)
    target.read(target.file)
    try:
        for number in range(COUNT or target.count):
            target.file.write_bytes(_damaged(whole, target.file, name, number))
            signal.alarm(10)
            try:
                target.read(target.file)
            except GipoError as error:
                sentences += 1
                assert len(str(error)) > 20, error
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(f"mutation {number}: {type(error).__name__}: {str(error)[:200]}")
            signal.alarm(0)
    finally:
        target.file.write_bytes(whole)
    assert not failures, f"{len(failures)} of {name}:\n" + "\n".join(failures[:20])
    assert sentences or target.count < 100 or name == "run, about"


def _damaged(whole: bytes, file: Path, name: str, number: int) -> bytes:
    """The header of safetensors is what a reader can stumble over; of Parquet, that at the end, and the pages."""
    if file.suffix == ".safetensors":
        end = 8 + int.from_bytes(whole[:8], "little")
        return mutated(whole[:end], name, number) + whole[end:]
    if file.suffix == ".parquet" and number % 4:
        last = len(whole) - 8  # length and mark, without which nothing else is looked at
        start = last - int.from_bytes(whole[last : last + 4], "little")
        header = mutated(whole[start:last], name, number)
        return whole[:start] + header + len(header).to_bytes(4, "little") + whole[-4:]
    return mutated(whole, name, number)


def test_mutations_are_repeatable_and_differ() -> None:
    made = [mutated(b'{"a": [1, 2], "b": "c"}', "x", number) for number in range(50)]
    assert made == [mutated(b'{"a": [1, 2], "b": "c"}', "x", number) for number in range(50)] and len(set(made)) > 30
