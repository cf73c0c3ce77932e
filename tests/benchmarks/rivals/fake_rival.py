"""A rival that needs no package: it counts, prints lines that are no answers, and stops where it is told to."""

from __future__ import annotations

import os
import sys

from benchmarks.rivals.protocol import open_turns

turns = open_turns()
if sys.argv[1] == "missing":
    turns.missing("no counting here")
print("a line that is no answer")
unit = turns.wait(versions={"fake": "1"}, threads=os.environ["OMP_NUM_THREADS"])
while True:
    if unit == "stop":
        sys.exit("stopped as asked")
    unit = turns.wait(tokens=sum(1 for _ in range(300_000)), unit=unit)
