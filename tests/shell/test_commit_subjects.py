"""Commits with a long subject are refused, by the hook and by CI."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.source_rules import ROOT

SCRIPT = ROOT / ".ci" / "commit_subjects"
LONG = "Übergröße " + "x" * 63  # 73 characters


def _git(folder: Path, *words: str) -> str:
    name = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **name, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _check(folder: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run([SCRIPT, *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (LONG[:-1] + "\n\nA body of any length: " + "y" * 100, 0),
        (LONG, 1),
        ("# a comment\n\n" + LONG, 1),
        ("Forty characters in the first line, and\nas many in the second, without an empty one", 1),
        (f"fixup! {LONG[:-1]}", 0),
        (f"fixup! squash! {LONG}", 1),
        (f"Merge branch {LONG}", 0),
    ],
)
def test_the_hook(tmp_path: Path, message: str, code: int):
    (tmp_path / "message").write_text(message + "\n# Please enter the commit message\n", encoding="utf-8")
    found, output = _check(tmp_path, "message")
    assert found == code, output
    if code:
        assert "more than 72. Give the reason in the body." in output


def test_the_history(tmp_path: Path):
    origin = tmp_path / "origin"
    origin.mkdir()
    _git(origin, "init", "-q", "-b", "main")

    def commit(subject: str) -> str:
        _git(origin, "commit", "-q", "--allow-empty", "-m", subject)
        return _git(origin, "rev-parse", "HEAD")

    commit("Before, " + LONG)
    base = commit("Also before, " + LONG)
    assert _check(origin, "--since", base) == (0, "")
    _git(origin, "checkout", "-q", "-b", "side")
    commit(LONG[:-1])
    _git(origin, "checkout", "-q", "main")
    commit("Begin")
    _git(origin, "merge", "-q", "--no-ff", "-m", "Merge " + LONG, "side")
    assert _check(origin, "--since", base) == (0, "")
    bad = commit(LONG)
    commit("The newest")
    code, output = _check(origin, "--since", base)
    assert code == 1 and bad[:7] in output and "has 73 characters, 1 more than 72" in output and LONG in output
    _git(tmp_path, "clone", "-q", "--depth", "1", f"file://{origin}", "shallow")
    code, output = _check(tmp_path / "shallow", "--since", base)
    assert code == 0 and "only the newest commit" in output
    (tmp_path / "none").mkdir()
    assert _check(tmp_path / "none")[0] == 0


def test_hook_and_ci_call_the_script():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert "commit-msg" in hooks["default_install_hook_types"]
    assert any(
        h["entry"] == ".ci/commit_subjects" and h["stages"] == ["commit-msg"] for h in hooks["repos"][0]["hooks"]
    )
    assert ".ci/commit_subjects || status=1" in (ROOT / ".ci" / "run").read_text()
    assert os.access(SCRIPT, os.X_OK)
