"""Between Hugging Face folders and checkpoints of this package, in any layout: for scripts/convert_checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import torch

from gipo_mc.data.tokenizer import load_tokenizer
from gipo_mc.errors import ConfigError, StorageError
from gipo_mc.models.families import hf_config
from gipo_mc.models.stage import HeadKind
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import SafetensorsFolder, stored_dtype
from gipo_mc.models.weights.parity import Check, check_checkpoint
from gipo_mc.models.weights.table import SCORE
from gipo_mc.parallel import sharded_files
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.run import checkpoint
from gipo_mc.run.model_sources import ModelSource, load_model, resolve

#: Role of the only model in a checkpoint, as SFT and reward-model runs call it.
_ROLE = "model"


def check(name: str, layout: Layout) -> list[Check]:
    """Prove a Hugging Face folder or hub name against transformers at this layout; the same answer on every rank."""
    source = resolve(name, "--check", together=True)
    if source.kind == "run":
        raise ConfigError(
            f"--check {name} is a run: convert it with --to-hf first, and check the folder that it writes."
        )
    return check_checkpoint(source.folder, layout)


def to_hf(name: str, out: Path, layout: Layout, dtype: torch.dtype | None = None) -> None:
    """The policy or model of a run (or of one of its checkpoints) as a Hugging Face folder with its tokenizer.

    dtype: of the written weights; None keeps that of the checkpoint. All ranks call.
    Raises ConfigError where `name` is no run, CheckpointError where it has no usable checkpoint, StorageError.
    """
    source: ModelSource = resolve(name, "--to-hf", together=True)
    if source.kind == "hf":
        raise ConfigError(f"--to-hf {name} is a Hugging Face folder already.")
    head: HeadKind = checkpoint.load_state(source.checkpoint)["heads"][source.role]
    model = load_model(source, layout, head=head, dtype=_run_dtype(source), trainable=False, seed=1)
    tokenizer = load_tokenizer(str(source.folder))
    export_hf_weights(model, out, dtype=dtype, config={"pad_token_id": tokenizer.pad_token_id})
    on_main(lambda: _save_tokenizer(tokenizer, out))


def from_hf(name: str, out: Path, layout: Layout) -> Path:
    """A Hugging Face folder or hub name as step 0 of a run folder; returns the checkpoint. All ranks call.

    Every command takes the result where it takes a run: `model.policy=OUT`, in any layout.
    """
    source: ModelSource = resolve(name, "--from-hf", together=True)
    if source.kind == "run":
        raise ConfigError(f"--from-hf {name} is a run already: commands take it as it is.")
    weights = SafetensorsFolder(source.folder)
    head: HeadKind = "reward" if SCORE in weights.shapes else "lm"
    model = load_model(source, layout, head=head, dtype=stored_dtype(weights), trainable=False, seed=1)
    tokenizer = load_tokenizer(str(source.folder))

    def extras(path: Path) -> None:
        hf_config(source.shape).save_pretrained(path / _ROLE)
        tokenizer.save_pretrained(path / _ROLE)

    state = {"heads": {_ROLE: head}}
    return checkpoint.save(out / "checkpoints", 0, Engine(model, layout).sharded_state(_ROLE), state, 2, extras)


def _run_dtype(source: ModelSource) -> torch.dtype:
    """The dtype of the model's weights in a verified checkpoint of a run."""
    dtypes = sharded_files.dtypes(source.checkpoint / checkpoint.SHARDS)
    return next(dtype for key, dtype in dtypes.items() if key.startswith(f"{source.role}.model."))


def _save_tokenizer(tokenizer: object, out: Path) -> None:
    try:
        tokenizer.save_pretrained(out)  # type: ignore[attr-defined]
    except OSError as error:
        raise StorageError(f"The tokenizer cannot be written to {out}: {error}") from error
