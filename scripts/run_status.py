"""Say how a run stands, and end with its exit code. torchrun reduces every code but 0 to 1; run_status.json keeps it.

    python scripts/run_status.py runs/gi_ppo
    python scripts/run_status.py runs/gi_ppo --since 1764300000    # of a start after that second (date +%s), in scripts

Exit codes: that of the run where it has ended (75: the same command continues it); 1 where it left none, because it
still runs, ended without a word, or never began.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from gipo_mc.run.arguments import Parser, name
from gipo_mc.run.folder import RunFolder, fell_silent
from gipo_mc.run.jsonl import printable


def main(argv: list[str] | None = None) -> int:
    """Read, say, and return the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=name, metavar="RUN", help="run folder (the one with run_status.json)")
    parser.add_argument(
        "--since", type=float, default=0.0, metavar="SECONDS", help="an earlier start has nothing to say [0]"
    )
    options = parser.parse_args(argv)
    text, code = _verdict(Path(options.run), options.since)
    print(printable(text))
    return code


def _verdict(run: Path, since: float) -> tuple[str, int]:
    status = RunFolder(run).read_status()
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


if __name__ == "__main__":
    sys.exit(main())
