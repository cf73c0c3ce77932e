"""Train a reward model on preference pairs (Bradley-Terry).

Without any argument: the built-in task, sized to the ranks and the device there are.

`gipo-mc train reward` from a checkout, and under torchrun.
"""

from __future__ import annotations

import sys

from gipo_mc.__main__ import main

if __name__ == "__main__":
    sys.exit(main("train", "reward"))
