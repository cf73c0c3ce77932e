"""Completion: what is proposed, and that real shells put it on the command line."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gipo_mc.presets import PRESETS
from gipo_mc.run.arguments import Parser
from gipo_mc.tools.command import VERBS
from gipo_mc.tools.complete import candidates, parsers_of
from gipo_mc.tools.verbs.completion import main
from tests.source_rules import ROOT


def _words(line: str) -> list[str]:
    return [word for word, _ in candidates(line.split(" "))]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tra", ["train"]),
        ("train g", ["gi-ppo"]),
        ("train gi-ppo algorithm.na", ["algorithm.name="]),
        ("train gi-ppo algorithm.name=threshold", ["algorithm.name=threshold_kl", "algorithm.name=threshold_gi_ppo"]),
        ("train gi-ppo alg", ["algorithm."]),
        ("train sft algorithm.", []),  # which it does not read
        ("train sft --config a.yaml device=c", ["device=cpu", "device=cuda"]),
        ("train sft parallel.sequence=", ["parallel.sequence=true", "parallel.sequence=false"]),
        ("train sft policy.lr=", []),
        ("train sft no.such.key=", []),
        ("--quiet pla", ["plan"]),
        ("--vers", ["--version"]),
        ("plan --gpus-", ["--gpus-per-node"]),
        ("plan --config ", []),
        ("evaluate ex", ["export"]),
        ("evaluate export --format l", ["latex"]),
        ("evaluate export --format=l", ["--format=latex"]),
        ("completion z", ["zsh"]),
        ("config sch", ["schema"]),
        ("config show algorithm.name=pap", ["algorithm.name=paper"]),
        ("config check --for s", ["sft"]),
        ("config check configs/hh_tiny_s", ["configs/hh_tiny_sft.yaml"]),
        ("config show conf", ["configs/"]),
        ("config show ch", ["checkpoint."]),
        ("config show nothing/", []),
        ("train gi-ppo run.trackers=w", ["run.trackers=wandb"]),
        ("train gi-ppo run.trackers=[mlflow,w", ["run.trackers=[mlflow,wandb"]),
        ("train gi-ppo data.prompts=[", []),
        ("evaluate judge --set data.format=tl", ["data.format=tldr"]),
        ("evaluate judge --set data.max_rows=3 alg", ["algorithm."]),
        ("evaluate judge --set data.max_rows=3 --dr", ["--dry-run"]),
        ("monitor --on", ["--once"]),
        ("nothing ", []),
    ],
)
def test_what_may_stand_next(line: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert _words(line) == found


def test_a_verb_may_have_parsers_of_parsers() -> None:
    def parsers() -> dict[str, Parser]:
        parser = Parser("config")
        parser.add_subparsers().add_parser("show").add_argument("--only-changed")
        return {"": parser}

    found = parsers_of(SimpleNamespace(parsers=parsers))  # type: ignore[arg-type]
    assert list(found) == ["show"] and "--only-changed" in found["show"].format_help()
    assert parsers_of(SimpleNamespace()) == {}  # type: ignore[arg-type]


def test_all_verbs_and_values_are_proposed() -> None:
    assert _words("") == list(VERBS)
    assert _words("train gi-ppo algorithm.name=") == [f"algorithm.name={name}" for name in PRESETS]
    assert all(meaning for _, meaning in candidates([""]))
    assert all(meaning for _, meaning in candidates(["train", "sft", "policy."]))


def test_fish_is_told_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, said in (("bash", "plan\n"), ("fish", f"plan\t{VERBS['plan'].help}\n")):
        assert main([shell, "--next", "pla"]) == 0
        assert capsys.readouterr().out == said


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    """With a gipo-mc on the PATH that is this package."""
    program = tmp_path / "gipo-mc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gipo_mc "$@"\n')
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PS1": "",
        "TERM": "dumb",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "COLUMNS": "200",
    }


def _typed(shell: list[str], lines: list[tuple[str, str]], environment: dict[str, str]) -> list[str]:
    """What an interactive shell shows after each (keys, text to wait for)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe(shell[0], shell, environment)
    shown: list[str] = []
    try:
        for keys, awaited in lines:
            os.write(terminal, keys.encode())
            text, deadline = "", time.monotonic() + 30
            while awaited not in text and time.monotonic() < deadline:
                if select.select([terminal], [], [], 0.05)[0]:
                    text += os.read(terminal, 4096).decode(errors="replace")
            shown.append(text)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    return shown


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(gipo-mc completion bash)"; echo rea""dy\n'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u -D; eval "$(gipo-mc completion zsh)"; echo rea""dy\n',
    ),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(shell: str, shell_environment: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words, start = SHELLS[shell]
    typed = [
        ("gipo-mc tra\t", "train "),
        ("gi-ppo algorithm.na\t", "me="),
        ("threshold_g\t", "threshold_gi_ppo "),
        ("run.name=CONTRIB\t", "run.name=CONTRIBUTING.md"),
        ("\x15gipo-mc config check conf\t", "igs/"),
        ("hh_tiny_s\t", "ft.yaml "),
    ]
    shown = _typed(words, [(start, "ready"), *typed], shell_environment)
    missing = [awaited for text, (_, awaited) in zip(shown[1:], typed, strict=True) if awaited not in text]
    assert not missing, shown


def test_a_real_fish_completes(shell_environment: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    asked = (
        "gipo-mc tra",
        "gipo-mc train sft device=cu",
        "gipo-mc report CONTRIB",
        "gipo-mc train sft run.name=CONTRIB",
    )
    lines = "; ".join(f"complete -C '{line}'" for line in asked)
    done = subprocess.run(
        ["fish", "-c", f"gipo-mc completion fish | source; {lines}"],
        env=shell_environment, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"train\t{VERBS['train'].help}", "device=cuda", "CONTRIBUTING.md", "run.name=CONTRIBUTING.md",
    ], done.stderr  # fmt: skip
