"""Between Hugging Face folders and checkpoints of this package, in any layout: for `gipo-mc convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gipo_mc.data.encode import Encoder
from gipo_mc.data.special_tokens import end_ids, save_tokenizer
from gipo_mc.data.tokenizer import load_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.models.stage import HeadKind
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import SafetensorsFolder, check_weights, stored_dtype
from gipo_mc.models.weights.hf_reader import TOKENIZERS
from gipo_mc.models.weights.parity import Check, Texts, check_checkpoint
from gipo_mc.models.weights.table import SCORE
from gipo_mc.parallel import sharded_files
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.run import checkpoint
from gipo_mc.run.model_files import save_model_files, tokens_of
from gipo_mc.run.model_sources import ModelSource, load_model, resolve
from gipo_mc.run.terminal.waiting import Progress
from gipo_mc.tools.output import IMPORTED_FILES, MODEL_FILES, check_output, new_folder

#: Texts that --check tokenizes and scores.
_SAMPLES = (
    "The cat sat on the mat.",
    "Where is the station? Left, then right:  2 km.",
    "na\u00efve \u6f22\u5b57 \U0001f642\n\n\tx = 1",
    "yes",
)
#: Role of the only model in a checkpoint, as SFT and reward-model runs call it.
_ROLE = "model"


def check(name: str, layout: Layout, readers: Sequence[str] = (), progress: Progress | None = None) -> list[Check]:
    """Prove a Hugging Face folder or hub name against transformers at this layout; the same answer on every rank.

    readers: Python interpreters of environments with other versions of transformers, to compare with as well.
    progress: told of each phase.
    """
    progress = progress or Progress("")
    source = resolve(name, "--check", together=True)
    if source.kind == "run":
        raise ConfigError(
            f"--check {name} is a run: convert it with --to-hf first, and check the folder that it writes."
        )
    texts = _texts(source) if any((source.folder / name).is_file() for name in TOKENIZERS) else None
    return check_checkpoint(source.folder, layout, texts=texts, readers=readers, tell=progress.phase)


def _texts(source: ModelSource) -> Texts:
    """Some texts as this package reads them with the tokenizer of a source."""
    tokenizer = load_tokenizer(str(source.folder))
    kept, ids = [], []
    for text in _SAMPLES:
        try:
            ids.append(tuple(Encoder(tokenizer).prompts([text], special=True)[0]))
            kept.append(text)
        except DataError:
            continue  # a closed vocabulary without these words
    trained = tokenizer.eos_token_id
    return Texts(tuple(kept), tuple(ids), tuple(dict.fromkeys((trained, *end_ids(tokenizer, source.shape.end_ids)))))


def to_hf(
    name: str,
    out: Path,
    layout: Layout,
    dtype: torch.dtype | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """The policy or model of a run (or of one of its checkpoints) as a Hugging Face folder with its tokenizer.

    dtype: of the written weights; None keeps that of the checkpoint. overwrite: replace a model in `out`.
    progress: told of each phase, and of the tensors that are written. All ranks call. Raises ConfigError where `name`
    is no run or `out` holds something, CheckpointError where the run has no usable checkpoint, StorageError.
    """
    progress = progress or Progress("")
    progress.phase("verifying the checkpoint")
    source: ModelSource = resolve(name, "--to-hf", together=True)
    if source.kind == "hf":
        raise ConfigError(f"--to-hf {name} is a Hugging Face folder already.")
    on_main(lambda: check_output(out, MODEL_FILES, overwrite))
    progress.phase("reading weights")
    head: HeadKind = checkpoint.load_state(source.checkpoint)["heads"][source.role]
    model = load_model(source, layout, head=head, dtype=_run_dtype(source), trainable=False, seed=1)
    tokenizer = load_tokenizer(str(source.folder))
    tokens = tokens_of(model.shape, tokenizer, head)
    progress.phase("writing tensors")
    with new_folder(out, MODEL_FILES, overwrite, on_main) as temporary:
        export_hf_weights(model, temporary, dtype=dtype, tokens=tokens, tell=progress)
        on_main(lambda: save_tokenizer(tokenizer, temporary, tokens.pad_id))


def from_hf(name: str, out: Path, layout: Layout, *, overwrite: bool = False, progress: Progress | None = None) -> Path:
    """A Hugging Face folder or hub name as step 0 of a run folder; returns the checkpoint. All ranks call.

    Every command takes the result where it takes a run: `model.policy=OUT`, in any layout. overwrite: replace what an
    earlier import left in `out`. progress: told of each phase. Raises as `to_hf`.
    """
    progress = progress or Progress("")
    source: ModelSource = resolve(name, "--from-hf", together=True)
    if source.kind == "run":
        raise ConfigError(f"--from-hf {name} is a run already: commands take it as it is.")
    on_main(lambda: check_output(out, IMPORTED_FILES, overwrite))
    progress.phase("reading weights")
    weights = SafetensorsFolder(source.folder)
    head: HeadKind = "reward" if SCORE in weights.shapes else "lm"
    check_weights(weights, source.shape, head)
    model = load_model(source, layout, head=head, dtype=stored_dtype(weights), trainable=False, seed=1)
    tokenizer = load_tokenizer(str(source.folder))

    def extras(path: Path) -> None:
        save_model_files(model, tokenizer, path / _ROLE)

    progress.phase("writing the checkpoint")
    state, sharded = {"heads": {_ROLE: head}}, Engine(model, layout).sharded_state(_ROLE)
    with new_folder(out, IMPORTED_FILES, overwrite, on_main) as temporary:
        written = checkpoint.save(temporary / "checkpoints", 0, sharded, state, 2, extras)
    return out / "checkpoints" / written.name


def _run_dtype(source: ModelSource) -> torch.dtype:
    """The dtype of the model's weights in a verified checkpoint of a run."""
    dtypes = sharded_files.dtypes(source.checkpoint / checkpoint.SHARDS)
    return next(dtype for key, dtype in dtypes.items() if key.startswith(f"{source.role}.model."))
