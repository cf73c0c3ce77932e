"""Follow runs while they go on, in this terminal or as a page of this machine. Only their folders are read.

    gipo-mc monitor runs/gi_ppo
    gipo-mc monitor runs/ppo runs/gi_ppo --serve

q or Ctrl-C ends the monitor, never the run. Without a terminal, or with --once, it prints one snapshot.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gipo_mc.errors import DataError, GipoError
from gipo_mc.run.arguments import Parser, name, number, real, say_error
from gipo_mc.run.jsonl import printable

_PORT = 8899
#: Runs that a screen has room for.
_MOST = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.host or options.port is not None) and not options.serve:
        parser.error("--host and --port go with --serve")
    if len(options.runs) > _MOST:
        parser.error(f"at most {_MOST} runs are followed at once")
    try:
        if options.serve:
            port = _PORT if options.port is None else options.port
            return _serve(options.runs, options.host or "127.0.0.1", port, options.every)
        return _show(options.runs, options.once, options.every)
    except GipoError as error:
        return say_error(error)
    except KeyboardInterrupt:
        return 0


def _parser() -> Parser:
    parser = Parser(prog="gipo-mc monitor", description=__doc__)
    parser.add_argument("runs", nargs="+", type=name, metavar="RUN", help="run folder; it may begin later")
    parser.add_argument("--once", action="store_true", help="print how the runs stand, and end")
    seconds = real(lambda value: 0.2 <= value <= 3600, "number of seconds from 0.2 to 3600")
    parser.add_argument("--every", type=seconds, default=2.0, metavar="SECONDS", help="between two looks [2]")
    parser.add_argument("--serve", action="store_true", help="serve a page instead, and print its address")
    parser.add_argument("--port", type=number(0, 65535), help="of the page; 0 takes any that is free [8899]")
    parser.add_argument(
        "--host", type=name, help="address that the page is served on [127.0.0.1]; beyond loopback a token is needed"
    )
    return parser


def _show(runs: Sequence[str], once: bool, every: float) -> int:
    from gipo_mc.monitor.terminal import can_follow, snapshot, watch  # not for --help

    followed = _followers(runs)
    if once or not can_follow():
        missing = [path for path in map(Path, runs) if not path.is_dir()]
        snapshot(followed)
        return DataError.exit_code if len(missing) == len(runs) else 0
    watch(followed, every)
    return 0


def _serve(runs: Sequence[str], host: str, port: int, every: float) -> int:
    from gipo_mc.monitor.server import MonitorServer
    from gipo_mc.monitor.terminal import ending_by_signal

    with MonitorServer(_followers(runs), host, port, every) as server, ending_by_signal():
        print(f"{server.url}\nCtrl-C ends the page; the runs go on.", flush=True)
        if server.token:
            print("Whoever has this address can read the runs; it is not encrypted.", file=sys.stderr, flush=True)
        server.serve_forever()
    return 0


def _followers(runs: Sequence[str]):  # type: ignore[no-untyped-def]  # the type is imported with what is slow
    from gipo_mc.monitor.follow import followers, holds_runs

    paths = list(map(Path, runs))
    for path in paths:
        if inside := holds_runs(path):
            shown = ", ".join(printable(str(each)) for each in inside[:6]) + (", ..." if len(inside) > 6 else "")
            raise DataError(f"{path} is no run, it holds runs: name one, or several of {shown}.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise DataError("A run was named twice: name each once.")
    return followers(paths)
