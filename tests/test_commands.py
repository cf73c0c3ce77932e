"""Every command has a help text and its guard; every configuration loads and says what it is for."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

from gipo_mc.config import load_config
from gipo_mc.evaluation.judge_config import load_judge
from tests.source_rules import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
JUDGES = sorted((ROOT / "configs" / "judges").glob("*.y*ml"))
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.y*ml")) if path not in JUDGES]


def command_violations(name: str, source: str) -> list[str]:
    """A command has a docstring, and the guard without which spawned processes would start it again."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{name} does not begin with what it is for"]
    guards = [n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test)]
    if not guards:
        found.append(f'{name} has no `if __name__ == "__main__"`')
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_commands(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    violations = command_violations(path.name, path.read_text(encoding="utf-8"))
    assert not violations, "\n".join(violations)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code in (0, None)
    assert "usage" in capsys.readouterr().out.lower()


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_configs_load_and_say_what_they_are_for(path: Path):
    load_config(str(path), [])
    assert path.read_text(encoding="utf-8").startswith("#"), f"{path.name} does not begin with a comment"


@pytest.mark.parametrize("path", JUDGES, ids=lambda p: p.name)
def test_judges_load_and_say_what_they_are_for(path: Path):
    load_judge(str(path))
    assert path.read_text(encoding="utf-8").startswith("#"), f"{path.name} does not begin with a comment"


def test_the_rule_finds():
    assert len(command_violations("x.py", "print('hello')")) == 2
