"""The one shape of every training command: parse, validate, run, one clear message and an exit code at the end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from gipo_mc.config import Config, ModelConfig, check_layout, describe, load_config
from gipo_mc.errors import EXIT_INTERRUPTED, GipoError, PeerError
from gipo_mc.parallel import runtime


def run_command(
    description: str,
    work: Callable[[Config], None],
    *,
    argv: Sequence[str] | None = None,
    builtin: Callable[[], dict[str, Any]] | None = None,
) -> int:
    """Parse `[--config FILE] [key.sub=value ...]`, check it against the ranks there are, and call `work`.

    builtin: configuration of the built-in task, put underneath the user's where that names neither model nor data.
    Returns the exit code: 0, that of the `GipoError` that ended the run, or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; the runnable ones are in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override any option below")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if builtin and _names_nothing(config):
            config = load_config(arguments.config, arguments.overrides, builtin())
        check_layout(config, runtime.world_size())
        runtime.resolve_device(config.device)
        work(config)
    except GipoError as error:
        return report_error(error)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nInterrupted. The same command continues from the last checkpoint.", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except dist.DistBackendError as error:
        return report_error(_lost(error))
    except RuntimeError as error:
        # gloo reports a dead or silent peer as a plain RuntimeError; nothing else of ours says so.
        if not any(
            sign in str(error) for sign in ("Connection closed by peer", "Connection reset", "Timed out", "gloo")
        ):
            raise
        return report_error(_lost(error))
    finally:
        runtime.shutdown()
    return 0


def report_error(error: GipoError) -> int:
    """Say what happened, once for the whole job, and return the exit code."""
    # A lost peer is reported by whoever notices; every other error is known to all ranks and said by the first.
    if isinstance(error, PeerError) or os.environ.get("RANK", "0") == "0":
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _names_nothing(config: Config) -> bool:
    data = config.data
    return config.model == ModelConfig() and not (data.prompts or data.preferences or data.demonstrations)


def _lost(error: BaseException) -> PeerError:
    rank = dist.get_rank() if dist.is_initialized() else 0
    return PeerError(
        f"Rank {rank} lost another rank or waited longer than parallel.timeout_minutes for it ({error}). The first "
        "error printed by another rank is the cause; start the same command again to continue from the last checkpoint."
    )


def _options() -> str:
    rows = describe()
    width = max(len(key) for key, _, _ in rows)
    lines = [f"  {key:<{width}}  {meaning} [{default}]" for key, default, meaning in rows]
    return "options (key, meaning, [default]):\n" + "\n".join(lines)
