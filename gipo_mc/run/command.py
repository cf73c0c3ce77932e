"""The one shape of every training command: parse, validate, run, one clear message and an exit code at the end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gipo_mc import presets
from gipo_mc.config import MARKS_MEAN, Config, check_layout, describe, load_config, names_nothing, run_folder
from gipo_mc.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, ConfigError, GipoError, Requeue
from gipo_mc.parallel import runtime
from gipo_mc.parallel.launcher import adopt_slurm
from gipo_mc.parallel.news import first_to_say
from gipo_mc.parallel.runtime import lost_peer
from gipo_mc.run.arguments import Parser, say_error
from gipo_mc.run.folder import RunFolder, now
from gipo_mc.run.jsonl import printable_lines
from gipo_mc.run.outcome import note_end, refusal_noted
from gipo_mc.run.watch import listening


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
) -> int:
    """Parse `[--config FILE] [key.sub=value ...]`, check it against the ranks there are, and call `work`.

    builtin: used only where the configuration names neither a model nor data.
    Returns the exit code: 0, that of the `GipoError` that ended the run, 75 after a signal that asked it to stop, or
    130 after Ctrl-C.
    """
    parser = Parser(description=description, epilog=_options())
    parser.add_argument("--config", metavar="FILE", help="YAML file; the runnable ones are in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override any option below")
    arguments = parser.parse_intermixed_args(argv)
    start = _Start(arguments, builtin)
    try:
        with listening(start.ended):
            work(start.prepared())
    except Requeue as stop:
        _say(str(stop))
        return stop.exit_code
    except GipoError as error:
        return report_error(error)
    except KeyboardInterrupt as stop:
        _say(f"Interrupted. {stop}".strip())
        return EXIT_INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        lost = lost_peer(error) if isinstance(error, RuntimeError) else None
        found = lost or _no_memory(error)
        if found is None:
            raise
        return report_error(found)
    finally:
        runtime.shutdown()
    return 0


class _Start:
    """What comes before a run; if it ends here, its status lies in the run folder it was meant for."""

    def __init__(self, arguments: argparse.Namespace, builtin: BuiltinTask | None) -> None:
        self._path: str | None = arguments.config
        self._overrides: list[str] = arguments.overrides
        self._builtin = builtin
        self._base: dict[str, Any] | None = None
        self._began = now()

    def prepared(self) -> Config:
        """The configuration, checked, and what the built-in task needs made."""
        with refusal_noted(self._folder):
            adopt_slurm()
            task = self._builtin if self._builtin and names_nothing(self._path, self._overrides) else None
            self._base = task.base() if task else None
            config = load_config(self._path, self._overrides, self._base)
            check_layout(config, runtime.world_size())
            runtime.resolve_device(config.device)
            if task:
                task.prepare(config)
        return config

    def ended(self, message: str) -> None:
        """A signal ends the command before the run began."""
        _say(message)
        note_end(self._folder, "requeue", EXIT_REQUEUE, message)

    def _folder(self) -> RunFolder:
        dir, name = run_folder(self._path, self._overrides, self._base)
        return RunFolder(Path(dir) / (name or Path(sys.argv[0]).stem), started=self._began)


def _say(text: str) -> None:
    """Once for the whole job, because every rank has something like it to say."""
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{printable_lines(text)}", file=sys.stderr, flush=True)


def _no_memory(error: RuntimeError | MemoryError) -> ConfigError | None:
    """What torch says where an allocation fails, on either device, as an error of the configuration."""
    signs = ("can't allocate memory", "not enough memory", "out of memory")
    if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
        return None
    said = str(error).split("\n")[0] or "an allocation failed"
    return ConfigError(
        f"Memory is too small for this configuration ({said}): lower parallel.micro_batch_size, "
        "parallel.tokens_per_micro_batch or parallel.logit_rows, or spread the model with parallel.tensor and "
        "parallel.pipeline."
    )


def report_error(error: GipoError) -> int:
    """Say what happened, once for the whole job, and return the exit code."""
    if dist.is_initialized():
        first = first_to_say(str(error))
    else:
        # Before the ranks are joined, all of them find the same.
        first = os.environ.get("RANK", "0") == "0"
    return say_error(error) if first else error.exit_code


def _options() -> str:
    rows = describe()
    width = max(len(key) for key, _, _ in rows)
    lines = [f"  {key:<{width}}  {meaning} [{default}]" for key, default, meaning in rows]
    return "\n".join(
        [f"options (key, meaning, [default]; {MARKS_MEAN}):", *lines, "", "algorithm.name:", *presets.lines()]
    )
