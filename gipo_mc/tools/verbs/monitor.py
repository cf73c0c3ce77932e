"""Follow runs while they go on, in this terminal or as a page of this machine. Only their folders are read.

    gipo-mc monitor runs/gi_ppo
    gipo-mc monitor runs/ppo runs/gi_ppo --serve

q or Ctrl-C ends the monitor, never the run. Without a terminal, or with --once, it prints one snapshot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gipo_mc.errors import DataError
from gipo_mc.run.arguments import Parser, name, number, real
from gipo_mc.run.terminal.ending import ended

if TYPE_CHECKING:
    from gipo_mc.monitor.follow import Follower

_HOST, _PORT = "127.0.0.1", 8899
#: Runs that a screen has room for, and colours.
_MOST = 7


def parsers() -> dict[str, Parser]:
    parser = Parser("monitor", reports=True, description=__doc__)
    parser.add_argument("runs", nargs="+", type=name, metavar="RUN", help="run folder; it may begin later")
    parser.add_argument("--once", action="store_true", help="print how the runs stand, and end")
    seconds = real(lambda value: 0.2 <= value <= 3600, "number of seconds from 0.2 to 3600")
    parser.add_argument("--every", type=seconds, default=2.0, metavar="SECONDS", help="between two looks [2]")
    parser.add_argument("--serve", action="store_true", help="serve a page instead, and print its address")
    parser.add_argument(
        "--port", type=number(0, 65535), metavar="PORT", help=f"of the page; 0 takes any that is free [{_PORT}]"
    )
    parser.add_argument(
        "--host", type=name, help=f"address that the page is served on; beyond loopback a token is needed [{_HOST}]"
    )
    return {"": parser}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = parsers()[""]
    return ended(lambda: _monitor(parser, parser.parse_args(words)))


def _monitor(parser: Parser, options: argparse.Namespace) -> int:
    if (options.host or options.port is not None) and not options.serve:
        parser.error("--host and --port go with --serve")
    if options.serve and (options.once or options.json):
        parser.error("--serve shows a page, --once and --json print: choose one")
    if len(options.runs) > _MOST:
        parser.error(f"at most {_MOST} runs are followed at once")
    followed = _followers(options.runs)
    try:
        if options.serve:
            _serve(followed, options.host or _HOST, _PORT if options.port is None else options.port, options.every)
            return 0
        return _show(followed, options)
    except KeyboardInterrupt:  # how one ends it
        return 0


def _show(followed: Sequence[Follower], options: argparse.Namespace) -> int:
    from gipo_mc.monitor.terminal import can_follow, snapshot, watch  # not for --help

    if options.json:
        from gipo_mc.monitor.follow import told
        from gipo_mc.run.jsonl import encode

        print(encode({"runs": [told(each.refresh()) for each in followed]}))
    elif options.once or not can_follow():
        snapshot(followed)
    else:
        watch(followed, options.every)
        return 0
    return 0 if any(each.path.is_dir() for each in followed) else DataError.exit_code


def _serve(followed: Sequence[Follower], host: str, port: int, every: float) -> None:
    from gipo_mc.monitor.server import MonitorServer
    from gipo_mc.monitor.terminal import ending_by_signal

    with MonitorServer(followed, host, port, every) as server, ending_by_signal():
        print(f"{server.url}\nCtrl-C ends the page; the runs go on.", flush=True)
        if server.token:
            print("Whoever has this address can read the runs; it is not encrypted.", file=sys.stderr, flush=True)
        server.serve_forever()


def _followers(runs: Sequence[str]) -> list[Follower]:
    from gipo_mc.monitor.follow import followers, holds_runs

    paths = list(map(Path, runs))
    for path in paths:
        if inside := holds_runs(path):
            shown = ", ".join(map(str, inside[:6])) + (", ..." if len(inside) > 6 else "")
            raise DataError(f"{path} is no run, it holds runs: name one, or several of {shown}.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise DataError("A run was named twice: name each once.")
    return followers(paths)
