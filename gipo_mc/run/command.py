"""The one shape of every training command: parse, validate, run, one clear message and an exit code at the end.

torch and Megatron take seconds to import: they come behind what `--help` and a refused configuration need.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gipo_mc import presets
from gipo_mc.config import Config, check_layout, help_lines, load_config, names_nothing, read_by, run_folder, verb_of
from gipo_mc.errors import EXIT_NO_READER, EXIT_REQUEUE, GipoError, Requeue
from gipo_mc.parallel.launcher import adopt_slurm, several_hosts, suit_cuda, world_size
from gipo_mc.run.arguments import Parser, say_error
from gipo_mc.run.folder import RunFolder, now
from gipo_mc.run.jsonl import printable_lines
from gipo_mc.run.outcome import exit_called, has_no_reader, memory_ran_out, note_end, refusal_noted
from gipo_mc.run.terminal.ending import interrupted
from gipo_mc.run.terminal.voice import is_first_rank
from gipo_mc.run.terminal.waiting import importing
from gipo_mc.run.trackers import check_trackers

#: Seconds that other ranks leave to the first of their host, to say why a start was refused, before they end: torchrun
#: ends all ranks with the first. On several hosts that one imports torch first, to tell the others.
_LAST_WORDS = {False: 2.0, True: 30.0}


@dataclass(frozen=True)
class BuiltinTask:
    """What a trainer does when nothing names a model or data.

    base: the configuration to put underneath the user's. prepare: makes and trains the models that it starts from.
    """

    base: Callable[[], dict[str, Any]]
    prepare: Callable[[Config], None]


def run_command(
    description: str,
    work: Callable[[Config], None],
    *,
    argv: Sequence[str] | None = None,
    builtin: BuiltinTask | None = None,
    command: str = "",
) -> int:
    """Parse `[--config FILE] [key.sub=value ...]`, check it against the ranks there are, and call `work`.

    work: what needs torch is imported in it, not before. builtin: used only where the configuration names neither a
    model nor data. command: whose options `--help` shows; "": none.
    Returns the exit code: 0, that of the `GipoError` that ended the run, 75 after a signal that asked it to stop, or
    130 after Ctrl-C.
    """
    arguments = command_parser(description, command).parse_intermixed_args(argv)
    return run_parsed(arguments, work, builtin=builtin, command=command)


def command_parser(description: str, command: str = "", *, reports: bool = False) -> Parser:
    """The parser of `run_command`, for a command that has options of its own besides. reports: as in `Parser`."""
    epilog = _options(command) if command else None
    parser = Parser(verb_of(command), reports=reports, description=description, epilog=epilog)
    parser.command = command
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file; the runnable ones are in configs/ of the repository"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override an option")
    return parser


def run_parsed(
    arguments: argparse.Namespace,
    work: Callable[[Config], None],
    *,
    builtin: BuiltinTask | None = None,
    command: str = "",
    check: Callable[[Config], None] = lambda config: None,
) -> int:
    """`run_command`, of arguments that `command_parser` has read. check: raises for what else can be refused without
    torch."""
    start = _Start(arguments, builtin, command)
    try:
        config = start.checked()
        check(config)
        return _run(lambda: work(start.prepared(config)), start.ended)
    except GipoError as error:
        return refuse(error)
    except KeyboardInterrupt as stop:
        return interrupted(stop)
    except BaseException as error:
        _tell_other_hosts(f"{type(error).__name__}: {error}", 1)
        raise


def _run(work: Callable[[], None], ended: Callable[[str], None]) -> int:
    """Call `work` and return the exit code. ended: told of a signal that ends the command before the run began."""
    with importing():
        from gipo_mc.parallel import runtime
        from gipo_mc.run.watch import listening

    try:
        with listening(ended):
            work()
    except Requeue as stop:
        _say(str(stop))
        return stop.exit_code
    except GipoError as error:
        return report_error(error)
    except SystemExit as stop:
        return EXIT_NO_READER if has_no_reader(stop) else report_error(exit_called(stop))
    except (RuntimeError, MemoryError) as error:
        lost = runtime.lost_peer(error) if isinstance(error, RuntimeError) else None
        found = lost or memory_ran_out(error)
        if found is None:
            raise
        return report_error(found)
    finally:
        runtime.shutdown()
    return 0


class _Start:
    """What comes before a run; if it ends here, its status lies in the run folder it was meant for."""

    def __init__(self, arguments: argparse.Namespace, builtin: BuiltinTask | None, command: str) -> None:
        self._path: str | None = arguments.config
        self._overrides: list[str] = arguments.overrides
        self._builtin = builtin
        self._command = command or Path(sys.argv[0]).stem
        self._task: BuiltinTask | None = None
        self._base: dict[str, Any] | None = None
        self._began = now()

    def checked(self) -> Config:
        """The configuration, as far as it can be checked without torch."""
        with refusal_noted(self._folder):
            adopt_slurm()
            self._task = self._builtin if self._builtin and names_nothing(self._path, self._overrides) else None
            self._base = self._task.base() if self._task else None
            config = load_config(self._path, self._overrides, self._base)
            check_layout(config, world_size(), self._command)
            check_trackers(config)
            suit_cuda(config)
        return config

    def prepared(self, config: Config) -> Config:
        """The configuration, checked against the devices there are, and what the built-in task needs made."""
        from gipo_mc.ops.native import check_cuda
        from gipo_mc.parallel import runtime

        with refusal_noted(self._folder):
            if runtime.resolve_device(config.device) == "cuda":
                check_cuda()
            runtime.let_models_choose_threads()
            if self._task:
                self._task.prepare(config)
        return config

    def ended(self, message: str) -> None:
        """A signal ends the command before the run began."""
        note_end(self._folder, "requeue", EXIT_REQUEUE, message)
        _say(message)

    def _folder(self) -> RunFolder:
        dir, name = run_folder(self._path, self._overrides, self._base)
        return RunFolder(Path(dir) / (name or self._command), started=self._began)


def _speaks() -> bool:
    """Does this rank say why a start was refused? Perhaps the ranks of one host alone know."""
    return os.environ.get("LOCAL_RANK" if several_hosts() else "RANK", "0") == "0"


def _say(text: str) -> None:
    """Once for the whole job, because every rank has something like it to say."""
    if is_first_rank():
        print(f"\n{printable_lines(text)}", file=sys.stderr, flush=True)


def refuse(error: GipoError) -> int:
    """Say what all ranks find before they are joined, once, and return the exit code."""
    if not _speaks():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            time.sleep(_LAST_WORDS[several_hosts()])
        return error.exit_code
    say_error(error)
    _tell_other_hosts(str(error), error.exit_code)
    return error.exit_code


def _tell_other_hosts(message: str, exit_code: int) -> None:
    """Ranks of other hosts may wait for this one, to begin the run together."""
    if several_hosts():
        from gipo_mc.parallel.nodes.greeting import tell_refusal

        tell_refusal(message, exit_code)


def report_error(error: GipoError) -> int:
    """Say what happened, once for the whole job, and return the exit code."""
    import torch.distributed as dist

    from gipo_mc.parallel.news import first_to_say

    if not dist.is_initialized():
        return refuse(error)
    return say_error(error) if first_to_say(str(error)) else error.exit_code


def _options(command: str) -> str:
    lines = list(help_lines(command))
    if "algorithm.name" in read_by(command):
        lines += ["", "algorithm.name:", *presets.lines()]
    return "\n".join(lines)
