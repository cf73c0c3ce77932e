"""Commands in docs/, CONTRIBUTING.md, the heads of configs/ and the docstrings of scripts and benchmarks are ones that
the programs take: each is started as it is written and stopped when its arguments have been read and checked.

tests/test_readme.py runs those of some pages to their end. `[...]` marks what may be left out: it is tried with it.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gipo_mc.tools.command import main as gipo_mc
from tests.source_rules import ROOT
from tests.test_readme import RUN_PAGES

#: Beginnings of commands that are not started here, and who starts them.
EXCLUDED = {
    "make": "test_make_targets_exist",
    "GIPO_MC_FUZZ=20000": "test_make_targets_exist",
    "pip": "CI builds the package before any test",
    "source": "an environment of the reader's",
    "pre-commit": "installs hooks",
    "scripts/gpu_check.sh": "needs a GPU; tests/csrc reads it",
    "sbatch": "tests/slurm submits jobs of the script where Slurm is installed",
    "began=": "a variable of the shell",
    'eval "$(gipo-mc completion': "tests/tools/test_complete.py does so in real shells",
    "mkdir": "a command of the shell",
    "export": "a command of the shell",
    "module load": "a command of the cluster",
    "hf download": "downloads a model",
    "python -c": "downloads rows",
    "GIPO_MC_CUDA=1": "needs nvcc",
    "python -m venv": "an environment of the reader's",
    "git worktree": "an earlier version, which the reader chooses",
    "GIPO_MC_CUDA=0": "a build in that version's folder",
    "GIPO_MC_OPS=reference pip": "tests/shell/test_install.py builds nothing with it",
}
_RUN = {ROOT / page for page in RUN_PAGES}
_PAGES = [*(page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in _RUN), ROOT / "CONTRIBUTING.md"]
_SOURCES = [
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *(path for folder in ("scripts", "benchmarks", "gipo_mc/tools") for path in sorted((ROOT / folder).rglob("*.py"))),
]
_START = re.compile(
    r"^(?:#\s*)?\s*((?:\w+=\S+ )*(?:(?:python|torchrun) (?:-m )?\S*(?:scripts|benchmarks)/\S+\.py"
    r"|(?:torchrun .*-m gipo_mc|gipo-mc) [a-z]).*)$"
)
#: Parsers that read which sub-command follows; its own reads the rest.
_FIRST = ("gipo-mc", "gipo-mc config", "gipo-mc evaluate", "evaluate.py")


def documented() -> list[tuple[str, str]]:
    """(file, command) of all of them."""
    found: list[tuple[str, str]] = []
    for path in _PAGES:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        for block in re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            lines = block.splitlines()
            found += [(path.name, line.strip()) for line in lines if line.strip() and not line.startswith("#")]
        unfenced = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        indented = (_START.match(line) for line in unfenced.splitlines() if line.startswith("    "))
        found += [(path.name, match[1]) for match in indented if match]
    for path in _SOURCES:
        found += [(path.name, match[1]) for line in path.read_text().splitlines() if (match := _START.match(line))]
    return found


def words_of(command: str) -> list[str]:
    """The words a shell would make of it, with what is optional and without what stands for more of the same."""
    text = (
        re.sub(r"\s(#|>|\||&&).*$", "", command)
        .replace("$HH_DATA", "data/hh")
        .replace("$began", "1764300000")
        .replace(" ...", "")
        .replace(" N]", " 5]")
    )
    text = re.sub(r"(?<= )\[(-[^\]]*)\]", r"\1", text)
    return [word for word in shlex.split(text) if not re.fullmatch(r"[A-Z_]+=\S*", word)]


class Read(BaseException):
    """The arguments were read."""


RUNNABLE = [(place, command) for place, command in documented() if not command.startswith(tuple(EXCLUDED))]


@pytest.mark.parametrize(("place", "command"), RUNNABLE, ids=[f"{place}: {c[:60]}" for place, c in RUNNABLE])
def test_a_documented_command_is_taken(place: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(command)
    ranks = "1"
    if words[0] == "torchrun":
        ranks = words[words.index("--nproc-per-node") + 1]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    start = _start_of(words)
    monkeypatch.setattr(sys, "argv", words[start:])
    _stop_early(words[start + 1] if Path(words[start]).name in _GIPO_MC else Path(words[start]).stem, monkeypatch)
    with pytest.raises(Read):
        if Path(words[start]).name in _GIPO_MC:
            gipo_mc(words[start + 1 :])
        else:
            runpy.run_path(str(ROOT / words[start]), run_name="__main__")


_GIPO_MC = ("gipo-mc", "gipo_mc")


def _start_of(words: list[str]) -> int:
    """Where the words of the program begin, behind those of python and torchrun."""
    return next(place for place, word in enumerate(words) if Path(word).name in _GIPO_MC or word.endswith(".py"))


def _stop_early(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer reads its arguments and then its configuration; the others take what argparse takes."""

    def stop(*_: object, **__: object) -> None:
        raise Read

    def reading(parse: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
        def read(parser: argparse.ArgumentParser, *arguments: object) -> argparse.Namespace:
            found = parse(parser, *arguments)
            if parser.prog in _FIRST:
                return found
            raise Read

        return read

    if verb == "train" or verb.startswith("train_") or verb == "generate":
        monkeypatch.setattr("gipo_mc.parallel.runtime.resolve_device", stop)
    elif verb in ("plan", "dry_run", "dry-run"):
        monkeypatch.setattr("gipo_mc.plan.run.read_run", stop)  # its configuration was read, too
    elif verb == "launch":
        monkeypatch.setattr("gipo_mc.tools.start_checks.check_layout", stop)
    else:
        for name in ("parse_args", "parse_intermixed_args"):
            monkeypatch.setattr(argparse.ArgumentParser, name, reading(getattr(argparse.ArgumentParser, name)))


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = [command.split() for _, command in documented() if command.startswith("make ")]
    assert named and {words[1] for words in named} <= targets


def test_what_is_left_out_is_there() -> None:
    assert [start for start in EXCLUDED if not any(command.startswith(start) for _, command in documented())] == []


def test_there_are_commands_of_each_kind() -> None:
    places = {place.rpartition(".")[2] for place, _ in RUNNABLE}
    assert len(RUNNABLE) > 15 and {"md", "yaml", "py"} <= places


def test_words_of() -> None:
    assert words_of("OMP=1 python a.py [--quick] [--seeds 1 2 ...] x=[b]  # why") == [
        "python", "a.py", "--quick", "--seeds", "1", "2", "x=[b]",
    ]  # fmt: skip
