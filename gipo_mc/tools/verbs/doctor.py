"""What this machine has, what a run would use by default, and what to install for more.

    gipo-mc doctor [--json] [--imports] [--require-cuda-kernels]

Nothing is started and no connection is opened. torch and Megatron-core are looked at as they are installed; where torch
may use a GPU, and with --imports, they are imported too, which takes seconds. Exit code 0: ready; 2: a run would not
start, and the reason is shown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from gipo_mc.run.arguments import Parser
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.waiting import IMPORTS, waiting
from gipo_mc.tools import doctor, libraries


def parsers() -> dict[str, Parser]:
    parser = Parser("doctor", reports=True, description=__doc__)
    parser.add_argument(
        "--require-cuda-kernels", action="store_true", help="count an extension built without nvcc as a problem"
    )
    parser.add_argument("--imports", action="store_true", help="import torch and Megatron-core, too")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _examine(parsers()[""].parse_args(words)))


def _examine(options: argparse.Namespace) -> int:
    with waiting("Importing torch and Megatron-core in a process of their own", IMPORTS):
        found = libraries.look(options.imports)
    findings, uses = doctor.examine(found, options.require_cuda_kernels), doctor.defaults(found)
    if options.json:
        print(json.dumps(doctor.as_json(findings, uses, found.imported), indent=2))
    else:
        doctor.show(findings, uses, found.imported)
    return doctor.exit_code(findings)
