"""Responses of models that `judge` is given in place of files: generated into DIR/responses/, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gipo_mc.config import Config, check_layout, load_config, values
from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.responses import write_responses
from gipo_mc.evaluation.tables.build import OURS
from gipo_mc.parallel.launcher import world_size
from gipo_mc.run.jsonl import read_file, storage_errors, write_atomically
from gipo_mc.run.terminal.waiting import importing, waiting
from gipo_mc.tools.asked import check_asked

FOLDER = "responses"
#: Whatever ranks a configuration is for, this is one process.
_ALONE = [f"parallel.{size}=1" for size in ("tensor", "pipeline", "virtual_pipeline")]
_ALONE += [f"parallel.frozen_{size}=0" for size in ("tensor", "pipeline")]
#: Sections of the configuration that a response depends on.
_SECTIONS = ("data.", "rollout.", "model.tokenizer", "run.seed", "eval.prompts", "dtype", "device")


def generate(
    models: Mapping[str, str],
    out: Path,
    config_file: str | None,
    overrides: Sequence[str],
    *,
    dry: bool,
    tell: Callable[[str], None],
) -> dict[str, Path]:
    """The file of each model's responses, by label; generated where it is missing, or was made of other weights, rows
    or settings. Raises GipoError."""
    if world_size() > 1:
        raise ConfigError(
            "judge runs as one process: generate the responses with torchrun -m gipo_mc generate --out first, and give "
            "the files."
        )
    files = {label: out / FOLDER / f"{label}.jsonl" for label in models}
    if dry:
        if missing := [label for label, file in files.items() if not file.is_file()]:
            raise ConfigError(
                f"--dry-run generates nothing, and there are no responses of {', '.join(missing)} yet: give files of "
                "gipo-mc generate --out."
            )
        return files
    configs = {
        label: load_config(config_file, [*overrides, *_ALONE, f"model.policy={json.dumps(place)}"])
        for label, place in models.items()
    }
    for label, config in configs.items():
        check_layout(config, 1, "generate")
        check_asked(
            config,
            remedy=f"{option_of(label)} is a model, and no prompts are named for it. Add --set data.evaluation=[FILE], "
            "or --config FILE with data.evaluation or data.prompts; or give files of gipo-mc generate --out",
        )
    for label, config in configs.items():
        _generate(label, config, files[label], tell)
    return files


def option_of(label: str) -> str:
    """The option that names the side with this label."""
    return "--ours" if label == OURS else f"--against {label}"


def _generate(label: str, config: Config, file: Path, tell: Callable[[str], None]) -> None:
    with importing():  # which a dry run and a refused command need not wait for
        from gipo_mc.run.console import on_stderr
        from gipo_mc.run.model_sources import resolve
        from gipo_mc.tools.respond import respond

    with waiting(f"{option_of(label)}: reading its weights"):  # of a large model a minute or two
        mark = _mark(config, resolve(config.model.policy, option_of(label)).fingerprint())
    stamp = file.with_suffix(".json")
    if file.is_file() and stamp.is_file() and _read(stamp) == mark:
        return
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
    with on_stderr().share(f"generate {label}") as advance:
        responses = respond(config, on_step=advance, tell=tell)
    write_responses(file, responses)
    write_atomically(stamp, json.dumps(mark, indent=1) + "\n")


def _mark(config: Config, weights: str) -> dict[str, str]:
    """What the responses depend on, hashed: weights, settings, and the content of local data files."""
    from gipo_mc.run.hashes import content_of

    settings: dict[str, Any] = {key: value for key, value in values(config).items() if key.startswith(_SECTIONS)}
    rows = [Path(name) for name in (*config.data.evaluation, *config.data.prompts) if Path(name).is_file()]
    return {
        "model": config.model.policy,
        "weights": weights,
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "rows": content_of(rows),
    }


def _read(stamp: Path) -> object:
    try:
        return json.loads(read_file(stamp))
    except (OSError, ValueError, RecursionError):
        return None  # not what was written: generate again
