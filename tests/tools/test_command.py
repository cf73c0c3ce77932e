"""`gipo-mc`: each verb is there, says what it is for at once, and answers what is mistyped with the nearest."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gipo_mc import __version__
from gipo_mc.tools.command import GROUPS, VERBS, main
from gipo_mc.tools.reference import renewed
from tests.monitor import folders
from tests.source_rules import ROOT

WANTED = {
    "demo", "train", "generate", "evaluate", "report", "convert", "plan", "dry-run", "doctor", "new-model", "launch",
    "paper", "status", "completion", "config", "monitor",
}  # fmt: skip


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    found = capsys.readouterr()
    return code, found.out, found.err


def test_every_verb_is_there_and_has_an_example() -> None:
    assert VERBS.keys() >= WANTED and sum(map(len, GROUPS.values())) == len(VERBS)
    for name, verb in VERBS.items():
        assert callable(importlib.import_module(verb.module).main), name
        assert f"gipo-mc {name}" in verb.example


def test_help_groups_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], []):
        code, said, _ = said_by(words, capsys)
        assert code == 0
        places = [said.index(f"\n{title}\n") for title in GROUPS]
        assert places == sorted(places)
        assert all(re.search(rf"^  {name} +\S.*\n +\$ .*gipo-mc", said, re.MULTILINE) for name in VERBS)
    assert said_by(["--version"], capsys)[:2] == (0, f"gipo-mc {__version__}\n")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("plna", "did you mean plan?"),
        ("train gippo", "did you mean gi-ppo?"),
        ("evaluate juge", "did you mean judge?"),
        ("evaluate export DIR --format markdwon --out x", "did you mean markdown?"),
        ("plan --confg x", "did you mean --config"),
        ("doctor --quite", "did you mean --quiet?"),
        ("train sft --policy.lr=3", "an option of the configuration has no dashes: policy.lr=VALUE"),
        ("train sft --iterations 30", "no dashes: write run.iterations=30\n"),
        ("train sft --iterations=30 policy.lr=1", "no dashes: write run.iterations=30\n"),
        ("train sft --iterations policy.lr=1", "no dashes: write run.iterations=VALUE\n"),
        ("train sft --learning-rate 1e-5", "no dashes: write policy.lr=1e-5\n"),
        ("train gi-ppo --learning_rate 1e-5", "no dashes: write policy.lr=1e-5 or critic.lr=1e-5\n"),
        ("train gi-ppo --every -3", "no dashes: write checkpoint.every=VALUE or eval.every=VALUE\n"),
        ("launch --iterations 3 --config x", "no dashes: write run.iterations=3\n"),
        ("evaluate judge --evaluation=x", "no dashes: write --set data.evaluation=x\n"),
        ("status --iterations 3", "unrecognized arguments: --iterations\n"),
        ("train", "required: TRAINER, one of gi-ppo, sft, reward, dpo\n"),
        ("config", "required: VERB, one of show, diff, check,"),
        ("train sft --polcy.lr=3", "did you mean policy.lr"),
        ("train sft polcy.lr=3", "did you mean policy"),
        ("train sft policy.warmpu=3", "did you mean policy.warmup?"),
        ("--quiet plna", "did you mean plan?"),
        ("Doctor", "did you mean doctor?"),
        ("train SFT", "did you mean sft?"),
        ("convert --check x --device gpu", "did you mean cuda?"),
        ("doctor --JSON", "did you mean --json?"),
        ("--json doctor", "--json; the options of a verb stand behind it\n"),
        ("train --json sft", "--json; the options of a verb stand behind it\n"),
        ("train --quite sft", "did you mean --quiet?"),
        ("train --quiet sft a.yaml", "for example run.iterations=50. A file is named with --config a.yaml.\n"),
        ("train sft =3", "Not understood: =3. Overrides are written key.sub=value"),
        ("config --quiet shwo", "did you mean show?"),
        ("evaluate -q tabel", "did you mean table?"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest(
    words: str, nearest: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = said_by(words.split(), capsys)
    assert code == 2 and nearest in said and "Traceback" not in said


def test_the_page_has_every_verb_and_option_as_it_is() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert renewed(page) == page, "python -m gipo_mc.tools.reference docs/commands.md renews its tables"
    assert {name for name in VERBS if f"\n## {name}\n" not in page} == set()


def test_scripts_and_verbs_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Each script is `gipo-mc` with the words of its verb, and holds no parser of its own."""
    for path in sorted((ROOT / "scripts").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "from gipo_mc.__main__ import main" in text and "add_argument" not in text, path.name
        assert re.findall(r"(?:main|gipo_mc)\(.([\w-]+).", text)[0] in VERBS, path.name


_TIMED = """
import sys, time
from gipo_mc.tools.command import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
slow = {name.split(".")[0] for name in sys.modules} & {"torch", "megatron", "transformers", "datasets", "matplotlib"}
print("slow:", *sorted(slow), file=sys.stderr)
"""


def _timed(code: str, words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The words of `gipo-mc` in a process of their own, in this folder."""
    return subprocess.run(
        [sys.executable, "-c", code, *words.split()],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate judge --ours runs/a --against b=runs/b --out eval", "--ours is a model, and no prompts are named"),
        ("generate model.policy=runs/a", "There is nothing to respond to: give --prompt TEXT"),
        ("generate --prompt hello", "No model is named"),
        ("generate model.policy=runs/a --prompt hello --out full/mine", "full/mine is a file of another kind"),
        ("convert --to-hf runs/a full", "full is not empty (it holds mine)"),
        ("convert --from-hf models/a full", "full is not empty (it holds mine)"),
        ("new-model --out full --data texts.jsonl", "full is not empty (it holds mine)"),
    ],
)
def test_what_can_be_refused_at_once_is(words: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious\n")
    code = _TIMED.replace("    main(sys.argv[1:])", "    code = main(sys.argv[1:])\n    assert code == 2, code")
    done = _timed(code, words, tmp_path)
    assert done.returncode == 0 and said in done.stderr and done.stderr.splitlines()[-1] == "slow:", done.stderr


@pytest.mark.parametrize("words", ["--help", "plan --help", "doctor --json", "completion bash --next train gi-ppo a"])
def test_what_is_quick_imports_nothing_slow(words: str) -> None:
    done = _timed(_TIMED, words)
    assert done.stderr.splitlines()[-1] == "slow:" or (words.startswith("doctor") and "GPU" in done.stdout), done.stderr


def test_status_shows_a_list_as_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders.status(tmp_path, "failed", 0, exit_code=2, message="It has problems:\n  - one\x1b[2J\n  - two")
    code, said, _ = said_by(["status", str(tmp_path)], capsys)
    assert code == 2 and said.endswith("step 0. It has problems:\n  - one\\x1b[2J\n  - two\n")


def test_status_and_plan_answer_with_one_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said, _ = said_by(["status", str(tmp_path), "--json"], capsys)
    assert code == 1 and json.loads(said) == {
        "run": str(tmp_path), "code": 1, "says": f"{tmp_path}: no status was left there.", "status": {},
    }  # fmt: skip
    code, said, _ = said_by(["status", str(tmp_path / "none")], capsys)
    assert code == 3 and said == f"{tmp_path / 'none'} is not there (yet).\n"
    config = str(ROOT / "configs" / "paper" / "hh_rl.yaml")
    code, said, errors = said_by(["plan", "--config", config, "--gpus", "8", "--json"], capsys)
    assert code == 0 and json.loads(said)["fits"] is True and errors == ""
