"""What all verbs of gipo-mc share: --quiet, one JSON object with --json, no colours with NO_COLOR, and Ctrl-C."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.run.arguments import Parser
from gipo_mc.run.console import Console
from gipo_mc.run.terminal.voice import is_quiet
from gipo_mc.tools.command import VERBS, main
from gipo_mc.tools.commands import attempt
from gipo_mc.tools.complete import parsers_of
from gipo_mc.tools.paper import drive
from gipo_mc.tools.verbs import demo
from tests.monitor.folders import run as monitored_run
from tests.report.evaluations import evaluation
from tests.scripts import run_script
from tests.source_rules import ROOT
from tests.tools.paper.fake_commands import write_plan

PAPER = str(ROOT / "configs" / "paper" / "hh_rl.yaml")
TINY = str(ROOT / "configs" / "hh_tiny.yaml")
TRAIN = "model.policy=a model.reward=b data.prompts=c.jsonl data.demonstrations=c.jsonl data.preferences=c.jsonl"

#: Verb (and sub-command) -> (words behind it, what does its work).
WORK = {
    "demo": ("", "gipo_mc.tools.libraries.look"),
    "doctor": ("", "gipo_mc.tools.libraries.look"),
    "completion": ("bash --next train", "gipo_mc.tools.complete.candidates"),
    "train gi-ppo": (TRAIN, "gipo_mc.rl.gi_ppo.train"),
    "train sft": (TRAIN, "gipo_mc.supervised.sft.train"),
    "train reward": (TRAIN, "gipo_mc.supervised.reward_model.train"),
    "train dpo": (TRAIN, "gipo_mc.supervised.dpo.train"),
    "launch": (f"--config {PAPER}", "gipo_mc.tools.verbs.launch._checked"),
    "new-model": ("--out m --data d.jsonl", "gipo_mc.tools.new_model.create_text_model"),
    "monitor": ("r --once", "gipo_mc.monitor.terminal.snapshot"),
    "status": ("r", "gipo_mc.run.folder.RunFolder.read_status"),
    "config show": (TINY, "gipo_mc.config.explain.origins.shown_values"),
    "config diff": (f"{TINY} {PAPER}", "gipo_mc.config.explain.origins.differences"),
    "config check": (TINY, "gipo_mc.tools.start_checks.start_problems"),
    "config schema": ("", "gipo_mc.config.explain.json_schema.schema_text"),
    "config reference": ("", "gipo_mc.config.explain.reference.reference_lines"),
    "plan": (f"--config {PAPER} --gpus 8", "gipo_mc.plan.plan.make_plan"),
    "dry-run": (f"--config {PAPER} --gpus 8 --without-files", "gipo_mc.tools.dry_run.rehearsal.rehearse"),
    "generate": ("model.policy=a --prompt x", "gipo_mc.tools.respond.respond"),
    "report": ("r", "gipo_mc.report.report.build_report"),
    "evaluate judge": ("--ours PLAN --against x=PLAN --out e", "gipo_mc.evaluation.responses.read_responses"),
    "evaluate page": ("e --out p.html", "gipo_mc.evaluation.people.page.write_page"),
    "evaluate votes": ("e", "gipo_mc.evaluation.reading.read_pairs"),
    "evaluate table": ("e", "gipo_mc.evaluation.tables.build.build_table"),
    "evaluate export": ("e --format csv --out t.csv", "gipo_mc.evaluation.tables.model.read_table"),
    "convert": ("--check m", "gipo_mc.parallel.runtime.initialize"),
    "paper": ("--config PLAN --plan", "gipo_mc.tools.paper.plan.load_plan"),
}
#: Those whose result is no report: what they print is read by a shell, an editor or a person, and what a trainer
#: leaves is told by `status --json` and `monitor --json`.
NO_JSON = {"completion", "config schema", "config reference", *(name for name in WORK if name.startswith("train "))}


def all_parsers() -> dict[str, Parser]:
    return {
        f"{name} {own}".strip(): parser
        for name, verb in VERBS.items()
        for own, parser in parsers_of(importlib.import_module(verb.module)).items()
    }


def test_every_verb_can_be_quiet_and_those_that_report_speak_json() -> None:
    found = all_parsers()
    assert found.keys() == WORK.keys()
    assert all({"-q", "--quiet"} <= parser._option_string_actions.keys() for parser in found.values())
    assert {name for name, parser in found.items() if "--json" not in parser._option_string_actions} == NO_JSON


@pytest.mark.parametrize("name", WORK)
def test_ctrl_c_ends_it_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, work = WORK[name]
    monkeypatch.chdir(tmp_path)
    if name == "evaluate table":
        evaluation(tmp_path / "e", prompts=1, opponents=("sft",))
    (tmp_path / "PLAN").write_text("")
    asked: list[bool] = []

    def interrupted(*_: Any, **__: Any) -> None:
        asked.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(work, interrupted)
    code = main([*name.split(), *words.split()])
    said = capsys.readouterr()
    assert asked and code == (0 if name == "monitor" else 130), said.err
    assert said.out == "" and said.err.strip() == ("" if name == "monitor" else "Interrupted.")
    assert not is_quiet()


# ------------------------------------------------------------------------------------------------------- JSON
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, an evaluation, and a plan of the paper's table."""
    folder = tmp_path_factory.mktemp("verbs")
    monitored_run(folder / "run", last=3, state="done")
    evaluation(folder / "eval", prompts=4, opponents=("sft",))
    write_plan(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("doctor", "ready"),
        (f"launch --gpus 2 --config {TINY}", "torchrun"),
        ("monitor run", "runs"),
        ("status run", "code"),
        (f"config show {TINY}", "run.iterations"),
        (f"config diff {TINY} {PAPER}", "differences"),
        (f"config check {TINY} --no-files", "problems"),
        (f"plan --config {PAPER} --gpus 8", "memory"),
        ("report run", "report"),
        ("evaluate table eval --draws 100", "evaluators"),
        ("evaluate export eval --format csv --out t.csv", "export"),
        ("evaluate page eval --out p.html", "path"),
        ("paper --config plan.yaml --plan --commands", "steps"),
        ("paper --config plan.yaml", "table"),
        ("demo --dir .", "report"),
    ],
)
def test_json_is_one_object_on_stdout_and_quiet_is_quiet(
    words: str, key: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[bool] = []

    def step(*_: Any, aside: bool, **_more: Any) -> tuple[int, int]:
        told.append(aside)
        return 0, 0

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HH_DATA", "data/hh")
    monkeypatch.setattr(demo, "attempt", step)
    monkeypatch.setattr(demo, "comparison", lambda *_: "They differ.")
    if words.startswith("demo"):
        monkeypatch.setattr("gipo_mc.report.runs.load_run", lambda path: path)
    monkeypatch.setattr(drive, "attempt", step)
    monkeypatch.setattr("gipo_mc.tools.paper.drive.join_tables", lambda *_: None)
    code = main([*words.split(), "--json", "--quiet"])
    said = capfd.readouterr()
    assert code == 0 or (words == "doctor" and code == 2), said.err
    assert key in json.loads(said.out) and said.err == "" and all(told)
    assert told or words not in ("paper --config plan.yaml", "demo --dir .")


def test_what_needs_ranks_answers_with_one_object_too(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "The dog", "response": "runs to the park."}) + "\n")

    def answer(script: str, words: str) -> dict[str, Any]:
        done = run_script(ROOT / "scripts" / f"{script}.py", *words.split(), "--json", "--quiet", cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    made = answer("new_model", "--out m --data data.jsonl --vocab 270 --hidden 32 --layers 2")
    assert made["model"] == "m" and made["vocabulary"] > 0
    proof = answer("convert_checkpoint", "--check m --device cpu")
    assert proof["passed"] is True and all(check["passed"] for check in proof["checks"]) and len(proof["checks"]) > 2
    assert answer("convert_checkpoint", "--from-hf m r --device cpu")["run"] == "r"
    said = answer("generate", "model.policy=m rollout.max_new_tokens=2 device=cpu --prompt dog")
    assert [one["prompt"] for one in said["responses"]] == ["dog"]


def test_what_steps_print_goes_aside(capfd: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-ISc", "print('of a step')"]
    assert attempt(words, aside=True) == attempt(words) == (0, 0)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("of a step\n", "of a step\n")


# ---------------------------------------------------------------------------------------------------- colours
_COLOURS = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)[;\dm]")


def _of_a_run() -> None:
    console = Console("toy", 5)
    console.header([("data", "rows")])
    console.iteration(1, {"reward/mean": 0.5, "time/total": 1.0})
    console.warn("odd")


@pytest.mark.parametrize("what", ["doctor", "monitor run --once", "a run"])
def test_no_color_takes_the_colours_away(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown() -> str:
        _of_a_run() if what == "a run" else main(what.split())
        return capsys.readouterr().out

    assert _COLOURS.search(shown()), "or this test would find none in anything"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown()
    assert plain and not _COLOURS.search(plain)
