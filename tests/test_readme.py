"""Every command of the README, of the tutorial and of the way from checkpoints to a verdict runs exactly as it is
written, in order, in one shell, in a folder like a fresh clone; every metric that these runs log has a meaning in the
reference.

Runs are cut short after the command line was parsed (tests/shell/short_runs.py), and `make` and `pip` are not carried
out (tests/shell/lines.py): CI has done so before any test. What `make demo` runs has a test of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gipo_mc.config import load_config, validate
from gipo_mc.report.meanings import meaning
from tests.shell.lines import Outcome, run_lines
from tests.shell.short_runs import LIMITS, cut, write_model, write_rows, write_user_file
from tests.source_rules import ROOT

#: Whose commands are carried out to their end.
RUN_PAGES = ("README.md", "docs/tutorial.md", "docs/howto/checkpoints.md")
#: Not part of a clone: what is built, trained and cached, and what is linked instead of copied.
_NOT_CLONED = {"runs", "models", "data", "build", "shared", "gipo_mc", "tests", "results"}


def commands_of(text: str) -> list[str]:
    """Commands of the blocks marked bash, sh or shell, as written: a line each, or several joined by backslashes."""
    commands: list[str] = []
    for block in re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        pieces = re.split(r"(?<!\\)\n", block)
        commands += [piece for piece in pieces if piece.strip() and not piece.lstrip().startswith("#")]
    return commands


def clone(folder: Path) -> Path:
    """What git would bring, without what is large: the package and the tests are links."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name in _NOT_CLONED or path.name.startswith(".") or path.suffix == ".egg-info":
            continue
        if path.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", *_NOT_CLONED)
            shutil.copytree(path, folder / path.name, ignore=skipped)
        else:
            shutil.copy(path, folder)
    for name in ("gipo_mc", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text("# the tests' own interpreter stands for it\n")
    return folder


def write_what_is_the_users(commands: list[str], folder: Path, page: str = "") -> None:
    """The data and models that the commands name and none of them makes; of a page the blocks of YAML that begin with
    the name of a file, and what those name."""
    write_rows(folder / "data" / "hh")
    files = re.findall(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    for name, block in files:
        (folder / name).write_text(block)
    text = "\n".join([*commands, *(block for _, block in files)])
    made = set(re.findall(r"--(?:out|to-hf \S+|from-hf \S+) +(\S+)", text))
    for name in sorted(set(re.findall(r"(?<![\w./-])models/[\w.-]+", text)) - made):
        write_model(folder / name, folder / "data" / "hh")
    for name in sorted(set(re.findall(r"(?<![\w./$-])[\w-]+(?:/[\w-]+)*\.jsonl\b(?!\.)", text)) - made):
        if not name.startswith("runs/"):
            write_user_file(folder / name)


def failures(outcomes: list[Outcome], commands: list[str]) -> list[str]:
    """What did not end as it should, each with the end of its output."""
    found = []
    for outcome in outcomes:
        if outcome.code or "Traceback" in outcome.output:
            found.append(f"{outcome.command}\nended with {outcome.code}:\n{outcome.output[-3000:]}")
    return found + [f"{command}\nwas not reached" for command in commands[len(outcomes) :]]


@pytest.mark.timeout(600)
def test_every_command_of_these_pages_runs(tmp_path: Path):
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in RUN_PAGES]
    pages = [commands_of(text) for text in texts]
    assert [len(page) >= least for page, least in zip(pages, (10, 5, 12), strict=True)] == [True] * 3
    commands = [command for page in pages for command in page]
    folder = clone(tmp_path / "clone")
    write_what_is_the_users(commands, folder, "\n".join(texts))
    outcomes = run_lines(commands, folder, folder / "data" / "hh")
    for outcome in outcomes:
        print(f"{outcome.seconds:6.1f} s  {outcome.command}")
    found = failures(outcomes, commands)
    assert not found, "\n\n".join(found)
    runs = [path.parent for path in (folder / "runs").glob("*/config.yaml")]
    assert len(runs) >= 5
    for run in runs:
        assert json.loads((run / "run_status.json").read_text())["exit_code"] == 0, run.name
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == LIMITS["run"]["iterations"], run.name
        unknown = [name for name in last if name not in ("step", "nonfinite") and meaning(name) is None]
        assert not unknown, f"{run.name} logs metrics that gipo_mc/report/meanings.py does not know: {unknown}"


@pytest.mark.timeout(600)
def test_make_demo_ends_with_a_report(tmp_path: Path):
    folder = clone(tmp_path / "clone")
    # Not with the arguments of the make that may have started these tests.
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    planned = subprocess.run(["make", "-n", "demo"], cwd=folder, capture_output=True, text=True, check=True, env=free)
    # Of the recipe only the last line is the demo; the others make the environment, in which this test runs.
    command = planned.stdout.splitlines()[-1].replace(".venv/bin/python", "python")
    assert command.startswith("python scripts/demo.py")
    (outcome,) = run_lines([command], folder, folder)
    assert not failures([outcome], [command]), outcome.output
    report = re.search(r"(\S+\.html)", outcome.output.splitlines()[-1])
    assert report and Path(report[1]).is_file(), outcome.output
    assert len(list((folder / "runs").glob("*/checkpoints"))) >= 4


def test_what_fails_is_found(tmp_path: Path):
    text = """
```bash
export NAME=builtin_sft          # the shell is one for all lines
python scripts/train_sft.py run.name=$NAME \\
    policy.lr=0.002
python scripts/train_gi_ppo.py algorithm.nme=ppo
python scripts/absent.py
torchrun --nproc-per-node 2 scripts/train_sft.py parallel.tensor=3
torchrun --nproc-per-nodes 2 scripts/train_sft.py
make nothing
pip install nothing
no_such_program
python -c "import sys; sys.exit(int(sys.argv[1]))" 5
cd docs && ls algorithm.md
exit 0
ls
```"""
    folder = clone(tmp_path / "clone")
    commands = commands_of(text)
    outcomes = run_lines(commands, folder, folder)
    assert [outcome.code for outcome in outcomes] == [0, 0, 2, 2, 1, 2, 2, 1, 127, 5, 0, -1]
    assert len(failures(outcomes, commands)) == 10
    assert "did you mean algorithm.name?" in outcomes[2].output
    config = load_config(str(folder / "runs" / "builtin_sft" / "config.yaml"), [])
    assert config.policy.lr == 0.002 and config.run.iterations == LIMITS["run"]["iterations"]


def test_cut_changes_sizes_alone():
    long = validate({"rollout": {"samples_per_prompt": 3, "batch_size": 96}, "train": {"batch_size": 2}}).model_dump()
    short = cut(long)
    assert short["rollout"] | {"batch_size": 96, "max_new_tokens": 64} == long["rollout"]
    assert short["rollout"]["batch_size"] == 6 and short["train"] == long["train"] and short["policy"] == long["policy"]
    assert short["data"]["max_rows"] == LIMITS["data"]["max_rows"]  # 0 was: all
