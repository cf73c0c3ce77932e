"""Commands of this package as words to start them with, from a checkout as from an installed wheel."""

from __future__ import annotations

import sys


def gipo_mc(*words: str) -> list[str]:
    """`gipo-mc words`, behind `python` or torchrun."""
    return ["-m", "gipo_mc", *words]


def trainer(command: str) -> list[str]:
    """A trainer by the name that configurations have for it (train_gi_ppo), behind `python` or torchrun."""
    return gipo_mc("train", command.removeprefix("train_").replace("_", "-"))


def launched(words: list[str], ranks: int) -> list[str]:
    """These words on so many ranks of this machine."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *(torchrun if ranks > 1 else []), *words]
