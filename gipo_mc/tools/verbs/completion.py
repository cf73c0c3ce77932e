"""Completion of verbs, options, keys and values by your shell's tabulator.

    eval "$(gipo-mc completion bash)"                      # in ~/.bashrc
    eval "$(gipo-mc completion zsh)"                       # in ~/.zshrc, behind compinit
    gipo-mc completion fish > ~/.config/fish/completions/gipo-mc.fish

Prints the lines that the shell reads. They ask this program at each press, so they know what an upgrade brings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files

from gipo_mc.run.arguments import Parser
from gipo_mc.run.terminal.ending import ended

SHELLS = ("bash", "zsh", "fish")
#: What the printed lines call: `completion SHELL --next WORD...`.
NEXT = "--next"


def parsers() -> dict[str, Parser]:
    parser = Parser("completion", description=__doc__)
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to read it")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _complete(list(sys.argv[1:] if words is None else words)))


def _complete(words: list[str]) -> int:
    if words[1:2] == [NEXT]:  # argparse would take some of the words behind it for its own
        _propose(words[0], words[2:])
        return 0
    shell = parsers()[""].parse_args(words).shell
    print(files("gipo_mc.tools").joinpath("shells", f"gipo-mc.{shell}").read_text(encoding="utf-8"), end="")
    return 0


def _propose(shell: str, words: list[str]) -> None:
    """Print what may stand in the place of the last word, one a line; for fish with its meaning."""
    from gipo_mc.tools.complete import candidates

    for word, meaning in candidates(words):
        print(f"{word}\t{' '.join(meaning.split())}" if shell == "fish" and meaning else word)
