"""A folder that a command writes: whole or not at all, and never over somebody's model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from gipo_mc.errors import ConfigError, StorageError

#: What the folder of a Hugging Face model holds, and --overwrite may replace.
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.jinja",
)  # fmt: skip
#: What --from-hf writes: step 0 and no run.
IMPORTED_FILES = ("checkpoints", "checkpoints/step_00000000")


def check_output(out: Path, replaceable: Sequence[str], overwrite: bool) -> None:
    """Is there nothing in `out`, or nothing but what may be replaced?

    replaceable: patterns of names, relative to `out`, of what the command itself writes. Raises ConfigError.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file: give a new folder.")
    held = sorted(path.name for path in out.iterdir())
    if not held:
        return
    listed = ", ".join(held[:4]) + (f" and {len(held) - 4} more" if len(held) > 4 else "")
    kept = [name for name in _names(out, replaceable) if not any(fnmatch(name, known) for known in replaceable)]
    if kept:
        raise ConfigError(
            f"{out} is not empty (it holds {listed}), and {kept[0]} is none of the files that would be replaced: give "
            "a new folder. Nothing was changed."
        )
    if not overwrite:
        raise ConfigError(
            f"{out} is not empty (it holds {listed}): give a new folder, or add --overwrite to replace what it holds. "
            "Nothing was changed."
        )


def _names(out: Path, replaceable: Sequence[str]) -> list[str]:
    """Names in `out`, and in those of its folders of which only a part may be replaced."""
    names = []
    for path in sorted(out.iterdir()):
        names.append(path.name)
        if path.is_dir() and any(known.startswith(f"{path.name}/") for known in replaceable):
            names += [f"{path.name}/{inner.name}" for inner in sorted(path.iterdir())]
    return names


@contextmanager
def new_folder(
    out: Path,
    replaceable: Sequence[str],
    overwrite: bool,
    on_main: Callable[[Callable[[], None]], None] = lambda f: f(),
) -> Iterator[Path]:
    """A folder beside `out` to write into; it takes the place of `out` once everything is there.

    on_main: runs a function on one rank, for all (`gipo_mc.parallel.collectives.on_main`); default: there is only one.
    After an error it is removed; after a kill it stays, as .tmp-NAME, until the next attempt. Raises ConfigError as
    `check_output`, StorageError.
    """
    out = out.expanduser().resolve()
    temporary, old = out.with_name(f".tmp-{out.name}"), out.with_name(f".old-{out.name}")

    def begin() -> None:
        with _storage(out):
            if old.exists() and not out.exists():
                old.rename(out)  # a kill between the two renames of `finish`
        check_output(out, replaceable, overwrite)
        with _storage(out):
            # What a kill left behind.
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
            temporary.mkdir(parents=True)

    def finish() -> None:
        with _storage(out):
            if out.exists():
                out.rename(old)
            temporary.rename(out)
            shutil.rmtree(old, ignore_errors=True)

    on_main(begin)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    on_main(finish)


@contextmanager
def _storage(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error}") from error
