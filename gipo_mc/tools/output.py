"""What a command writes: whole or not at all, and never over somebody's model or another file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from gipo_mc.errors import ConfigError
from gipo_mc.parallel.disk import sync
from gipo_mc.run.jsonl import storage_errors
from gipo_mc.run.saves.places import checkpoint_around

#: What a killed job left behind is removed after this many seconds.
_STALE_SECONDS = 3600.0
#: What the folder of a Hugging Face model holds, and --overwrite may replace.
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.jinja",
)  # fmt: skip
#: Characters of a line that are looked at.
_LONGEST_LINE = 2**20
#: What --from-hf writes: step 0 and no run.
IMPORTED_FILES = ("checkpoints", "checkpoints/step_00000000")


def check_output(out: Path, replaceable: Sequence[str], overwrite: bool) -> None:
    """Is there nothing in `out`, or nothing but what may be replaced?

    replaceable: patterns of names, relative to `out`, of what the command itself writes. Raises ConfigError.
    """
    out = _place(out)
    if around := checkpoint_around(out):
        raise ConfigError(
            f"{out} is or lies in the checkpoints {around} of a run, which would no longer be what their manifests "
            "say: give another folder. Nothing was changed."
        )
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


def _place(out: Path) -> Path:
    """`out` without links. Raises ConfigError for the home of nobody, and for links in a circle."""
    try:
        return out.expanduser().resolve()
    except RuntimeError as error:
        raise ConfigError(f"{out} cannot be written: {error} Give another folder.") from error


def check_file(out: Path, is_ours: Callable[[str], bool]) -> None:
    """May `out` be written over: is it no file, an empty one, or one whose first line tells that a command wrote it?

    Raises ConfigError for another: one slip of the hand, and prompts or metrics would be gone.
    """
    if not out.is_file():
        return  # what cannot be written to is found when it is written
    with storage_errors(out), out.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(_LONGEST_LINE)
    if first and not is_ours(first):
        raise ConfigError(f"--out={out} is a file of another kind, which would be lost: give a new name.")


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
    on_main: Callable[[Callable[[], Path]], Path] = lambda work: work(),
) -> Iterator[Path]:
    """A folder beside `out` to write into; it takes the place of `out` once everything is there and on the disk.

    on_main: runs a function on one rank, for all (`gipo_mc.parallel.collectives.on_main`); default: there is only one.
    After an error it is removed; what a killed job left goes away an hour later. Raises ConfigError as `check_output`,
    StorageError.
    """
    out = _place(out)
    old = out.with_name(f".old-{out.name}")

    def begin() -> Path:
        temporary = out.with_name(f".tmp-{os.getpid()}-{out.name}")
        with storage_errors(out):
            if old.exists() and not out.exists():
                old.rename(out)  # a kill between the two renames of `finish`
        check_output(out, replaceable, overwrite)
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            for left in out.parent.glob(f".tmp-*-{out.name}"):
                # Another job may be at work in a younger one.
                if left == temporary or time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(left)
            temporary.mkdir()
        return temporary

    def finish() -> Path:
        with storage_errors(out):
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)
                out.rename(old)
            temporary.rename(out)
            sync(out.parent)
            shutil.rmtree(old, ignore_errors=True)
        return out

    temporary = on_main(begin)
    try:
        with storage_errors(out):
            yield temporary
        on_main(finish)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
