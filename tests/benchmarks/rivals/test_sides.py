"""What needs no other environment: our side and transformers' on a tiny model, and the command's bookkeeping."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rivals import hf, loops, material, ours, rivals, units
from benchmarks.rivals.material import Rows
from benchmarks.rivals.protocol import ROOT, Turns
from benchmarks.rivals.units import Unit
from tests.ranks import run_ranks

TINY = {"HIDDEN": 32, "LAYERS": 1, "HEADS": 2, "INTERMEDIATE": 48, "VOCABULARY": 400, "POSITIONS": 512, "NEW_TOKENS": 4}
FILES = {
    "generation": Rows(4, 120, 10_000),
    "ppo": Rows(4, 120, 10_000),
    "demonstrations": Rows(4, 240, 480),
    "pairs": Rows(2, 240, 480),
}
GENERATION = {"sampled": Unit(4, 1, 1.0), "top_p": Unit(4, 1, 0.9), "four_samples": Unit(1, 4, 1.0)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(material, name, value)
        patch.setattr(material, "FILES", FILES)
        for module in (loops, units):
            patch.setattr(module, "GENERATION", GENERATION)
        material.make(folder, None)
        yield folder


def _answers(rank: int, module: Any, workload: str, orders: list[str], folder: Path) -> list[dict[str, Any]]:
    answers = io.StringIO()
    turns = Turns(io.StringIO("".join(json.dumps({"unit": unit}) + "\n" for unit in orders)), answers)
    with pytest.raises(SystemExit):
        getattr(module, workload)(folder, turns)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def _run(module: Any, workload: str, orders: list[str], folder: Path) -> list[dict[str, Any]]:
    ready, *done = run_ranks(_answers, 1, module, workload, orders, folder)[0]
    assert ready["ready"]["versions"]["torch"]
    assert len(done) == len(orders) and all(found["wall"] > 0 and found["processor"] > 0 for found in done)
    return done


@pytest.mark.parametrize("module", [ours, hf], ids=["ours", "transformers"])
def test_every_response_of_generation_has_full_length(module: Any, tiny: Path) -> None:
    for found in _run(module, "generation", list(GENERATION), tiny):
        assert found["responses"] == 4 and found["tokens"] == 16
    (found,) = _run(module, "memory", ["memory"], tiny)
    assert found["extra_bytes"] > 0


def test_a_step_of_training_takes_all_rows_each_time(tiny: Path) -> None:
    rows = material.read(tiny)
    answers = {which: [len(row[which]) for row in rows["pairs"]] for which in ("chosen", "rejected")}
    tokens = {
        "sft": sum(len(row["chosen"]) for row in rows["demonstrations"]),
        "dpo": sum(answers["chosen"]) + sum(answers["rejected"]),
        "reward": material.tokens_read(tiny, "pairs"),
    }
    for workload, expected in tokens.items():
        found = _run(ours, workload, [workload] * 2, tiny)
        assert [one["tokens"] for one in found] == [expected] * 2


def test_a_ppo_iteration_lists_its_phases(tiny: Path) -> None:
    (found,) = _run(ours, "ppo", ["ppo"], tiny)
    assert 4 <= found["tokens"] <= 16
    assert {"rollout", "update_policy", "update_critic", "total"} <= found["phases"].keys()


def test_rivals_that_are_not_there_are_listed(tmp_path: Path) -> None:
    record: dict[str, Any] = {"sides": {}, "not_run": []}
    workers: dict[str, Any] = {}
    workload = rivals.Workload(("dpo",), ("trl112", "trl116"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rivals.WORKLOADS, "dpo", workload)
        rivals.start("dpo", {"trl116": sys.executable}, tmp_path, record, workers)
    assert not workers and not record["sides"]
    assert [(left["side"], left["reason"]) for left in record["not_run"]] == [
        ("trl112", "not given: --python trl112=PATH"),
        ("trl116", f"no trl in {sys.prefix}"),
    ]


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--python", "trl117=/usr/bin/python"], "SIDE of trl116, trl112, vllm"),
        (["--only", "sft,dance"], "unknown: dance"),
        (["--only", "demo"], "--against FOLDER"),
    ):
        with pytest.raises(SystemExit):
            rivals.arguments(words)
        assert message in capsys.readouterr().err
    assert rivals.arguments(["--only", "demo", "--against", str(ROOT)]).only == ["demo"]
