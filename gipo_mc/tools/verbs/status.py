"""Say how a run stands, and end with its exit code. torchrun reduces every code but 0 to 1; run_status.json keeps it.

    gipo-mc status runs/gi_ppo
    gipo-mc status runs/gi_ppo --since 1764300000    # of a start after that second (date +%s), in scripts

Exit codes: that of the run where it has ended (75: the same command continues it); 1 where it left none, because it
still runs, ended without a word, or never began; 3 where there is no such folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gipo_mc.errors import DataError
from gipo_mc.run.arguments import Parser, name
from gipo_mc.run.folder import RunFolder, fell_silent
from gipo_mc.run.jsonl import encode, printable_lines
from gipo_mc.run.terminal.ending import ended


def parsers() -> dict[str, Parser]:
    parser = Parser("status", reports=True, description=__doc__)
    parser.add_argument("run", type=name, metavar="RUN", help="run folder (the one with run_status.json)")
    parser.add_argument(
        "--since", type=float, default=0.0, metavar="SECONDS", help="an earlier start has nothing to say [0]"
    )
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code, which is the run's."""
    return ended(lambda: _status(parsers()[""].parse_args(words)))


def _status(options: argparse.Namespace) -> int:
    run = Path(options.run)
    status = RunFolder(run).read_status()
    text, code = _verdict(run, status, options.since)
    told = {"run": str(run), "code": code, "says": text, "status": status}
    print(encode(told) if options.json else printable_lines(text))
    return code


def _verdict(run: Path, status: dict[str, Any], since: float) -> tuple[str, int]:
    if not run.is_dir():
        from gipo_mc.monitor.follow import absent  # which imports numpy

        return absent(run), DataError.exit_code
    if not status:
        return f"{run}: no status was left there.", 1
    try:
        started = datetime.fromisoformat(str(status.get("started"))).timestamp()
    except ValueError:
        return f"{run}: run_status.json has no time of a start, so it is not of this program.", 1
    if started < int(since):
        return f"{run}: its status is of an earlier start, of {status.get('started')}; the latest left none.", 1
    code = status.get("exit_code")
    if not isinstance(code, int):
        running = f"It runs: step {status.get('step')} at {status.get('updated')}."
        return f"{run}: {fell_silent(status) or running}", 1
    message = f" {status.get('message')}" if status.get("message") else ""
    return f"{run}: {status.get('state')}, exit code {code}, step {status.get('step')}.{message}", code
