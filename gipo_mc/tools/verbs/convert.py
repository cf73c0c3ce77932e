"""Convert between Hugging Face folders and checkpoints of this package, and prove a conversion right.

    gipo-mc convert --check FOLDER
    torchrun --nproc-per-node 4 -m gipo_mc convert --check FOLDER --tensor 2 --pipeline 2
    gipo-mc convert --to-hf runs/gi_ppo models/trained
    gipo-mc convert --from-hf FOLDER runs/imported

--check compares logits (or rewards) with transformers in float32, and writes the weights back and compares every bit;
--reader PYTHON repeats the comparison with the transformers of another environment. docs/models.md has the rest.
OUT is a new folder, which appears when all of it is written. Training reads Hugging Face folders directly; --from-hf is
for a model that many jobs load in parallel.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gipo_mc.config import Config, check_layout, validate
from gipo_mc.errors import CheckpointError, GipoError
from gipo_mc.parallel.launcher import adopt_slurm, world_size
from gipo_mc.run.arguments import Parser, name, number
from gipo_mc.run.command import refuse, report_error
from gipo_mc.run.jsonl import encode, printable
from gipo_mc.run.terminal.ending import ended
from gipo_mc.run.terminal.voice import is_first_rank
from gipo_mc.run.terminal.waiting import importing, waiting
from gipo_mc.tools.output import IMPORTED_FILES, MODEL_FILES, check_output

if TYPE_CHECKING:
    from gipo_mc.models.weights.parity import Check
    from gipo_mc.parallel.layout import Layout


def parsers() -> dict[str, Parser]:
    parser = Parser("convert", reports=True, description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--check", type=name, metavar="HF", help="prove this Hugging Face folder (or hub name) at this layout"
    )
    action.add_argument(
        "--to-hf", nargs=2, type=name, metavar=("RUN", "OUT"), help="run or checkpoint -> Hugging Face folder"
    )
    action.add_argument(
        "--from-hf", nargs=2, type=name, metavar=("HF", "OUT"), help="Hugging Face folder -> run folder, step 0"
    )
    parser.add_argument("--tensor", type=number(1, 2**20), default=1, help="tensor-parallel ranks [1]")
    parser.add_argument("--pipeline", type=number(1, 2**20), default=1, help="pipeline-parallel ranks [1]")
    parser.add_argument("--sequence", action="store_true", help="sequence parallelism [off]")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="[auto: CUDA if there is one]"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of --to-hf's weights [auto: the checkpoint's]",
    )
    parser.add_argument(
        "--reader",
        action="append",
        default=[],
        metavar="PYTHON",
        help="one with another transformers, for --check",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model that OUT holds [refused]")
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return ended(lambda: _checked(words))


def _checked(words: Sequence[str] | None) -> int:
    parser = parsers()[""]
    options = parser.parse_args(words)
    if options.reader and not options.check:
        parser.error("--reader belongs to --check")
    try:
        adopt_slurm()
        parallel = {"tensor": options.tensor, "pipeline": options.pipeline, "sequence": options.sequence}
        config = validate({"parallel": parallel, "device": options.device})
        check_layout(config, world_size())
        for given, files in ((options.to_hf, MODEL_FILES), (options.from_hf, IMPORTED_FILES)):
            if given:
                check_output(Path(given[1]), files, options.overwrite)
    except GipoError as error:
        return refuse(error)
    return _convert(options, config)


def _convert(options: argparse.Namespace, config: Config) -> int:
    # They take seconds, and all that can be refused without them has been.
    told = is_first_rank()
    with importing():
        import torch
        from transformers.utils import logging as transformers_logging

        from gipo_mc.parallel import runtime
        from gipo_mc.tools import conversion

    transformers_logging.disable_progress_bar()
    try:
        layout = runtime.initialize(config.parallel, config.device)
        checks: list[Check] = []
        with waiting("Checking" if options.check else "Converting", told=told) as progress:
            if options.check:
                checks = conversion.check(options.check, layout, options.reader, progress)
            elif options.to_hf:
                run, out = options.to_hf
                dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
                conversion.to_hf(run, Path(out), layout, dtype, overwrite=options.overwrite, progress=progress)
                said, made = f"{out} loads with transformers' from_pretrained.", {"model": out}
            else:
                folder, out = options.from_hf
                written = conversion.from_hf(folder, Path(out), layout, overwrite=options.overwrite, progress=progress)
                said, made = f"{written} is written; use {out} as model.policy.", {"run": out}
                made["checkpoint"] = str(written)
        if options.check:
            _report(options.check, checks, layout, options.json)
        elif layout.is_main:
            print(encode(made) if options.json else printable(said), flush=True)
    except GipoError as error:
        return report_error(error)
    finally:
        runtime.shutdown()
    return 0


def _report(folder: str, checks: list[Check], layout: Layout, as_json: bool) -> None:
    """The table, on one rank; CheckpointError where something failed."""
    failed = [line.what for line in checks if not line.passed]
    if layout.is_main and as_json:
        shown = [asdict(line) for line in checks]
        print(encode({"check": folder, "layout": layout.describe(), "passed": not failed, "checks": shown}), flush=True)
    elif layout.is_main:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            "check", "found", "", title=f"{escape(printable(folder))}: {layout.describe()}", title_justify="left"
        )
        for line in checks:
            table.add_row(
                escape(printable(line.what)),
                escape(printable(line.found)),
                "[green]ok[/green]" if line.passed else "[red]FAILED[/red]",
            )
        Console().print(table)
    if failed:
        raise CheckpointError(f"{folder} does not mean the same here as in transformers: {'; '.join(failed)}.")
