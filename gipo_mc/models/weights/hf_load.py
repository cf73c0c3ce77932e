"""Weights from a Hugging Face folder, streamed: a rank reads its own slices of its own tensors and nothing else.

Only safetensors are read (a .bin is a pickle, which runs code). Names and shapes of the whole checkpoint are checked on
every rank before the first weight is copied, from the files' headers, so all ranks agree on what is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gipo_mc.errors import CheckpointError
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import HeadKind, StageModel
from gipo_mc.models.weights.table import EMBEDDING, HEADS, OUTPUT, SCORE, load_parameters, trunk_tensors

INDEX = "model.safetensors.index.json"
#: What to do about an adapter.
MERGE = (
    "Merge it into its model first, with peft: AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
    ".save_pretrained(new_folder)."
)
#: What wrappers put in front of the names of tensors -> what they are.
_WRAPPERS = {
    "module.": "a model inside DistributedDataParallel or DeepSpeed: save model.module",
    "_orig_mod.": "a model compiled by torch.compile: save model._orig_mod",
    "base_model.model.": f"a model inside a peft adapter. {MERGE}",
    "pretrained_model.": "a model inside TRL's value-head model: save model.pretrained_model",
}
#: The same within names, where parts of a model were wrapped.
_INNER_WRAPPERS = {
    "._fsdp_wrapped_module.": "a model inside FullyShardedDataParallel: gather its full state dict",
    "._checkpoint_wrapped_module.": "a model whose layers are inside a checkpoint wrapper: save the layers",
    "._orig_mod.": "a model whose layers were compiled by torch.compile: save the layers' _orig_mod",
    ".lora_A.": f"a model with an adapter in it. {MERGE}",
    ".base_layer.": f"a model with an adapter in it. {MERGE}",
}
#: Rows of the embedding that are compared at a time.
_TIED_ROWS = 4096
#: The embedding in a model that was saved without its head.
_BARE = EMBEDDING.removeprefix("model.")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class SafetensorsFolder:
    """The tensors of a folder with `model.safetensors`, or with shards and their index. Files are opened lazily."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self.files = self._find()
        self._check_index()
        self.shapes = {name: tuple(self._slice(name).get_shape()) for name in self.files}

    def read(self, name: str, rows: slice, columns: slice = slice(None)) -> Tensor:
        """The slice of the named tensor; only its bytes are read."""
        tensor = self._slice(name)
        try:
            return tensor[rows] if len(self.shapes[name]) == 1 else tensor[rows, columns]
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / self.files[name]}: {name} cannot be read: {error}") from error

    def dtype(self, name: str) -> str:
        """The safetensors name of the tensor's dtype, for example "BF16"."""
        return str(self._slice(name).get_dtype())

    def _slice(self, name: str) -> Any:
        try:
            return self._file(self.files[name]).get_slice(name)
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.folder / self.files[name]} has no readable tensor {name}, although {INDEX} places it there "
                f"({error}): copy the whole checkpoint again."
            ) from error

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                self._open[name] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise CheckpointError(
                    f"{path} is missing, although {INDEX} lists it: copy the whole checkpoint again."
                ) from None
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a readable safetensors file ({error}): copy the checkpoint again."
                ) from error
        return self._open[name]

    def _check_index(self) -> None:
        """Files hold what the index places in them and nothing more: transformers reads all that is in a file, and of
        two tensors of one name it may take the other."""
        for file in dict.fromkeys(self.files.values()):
            if strange := sorted(name for name in self._file(file).keys() if self.files.get(name) != file):  # noqa: SIM118
                place = self.files.get(strange[0], "no file")
                raise CheckpointError(
                    f"{self.folder / file} holds {strange[0]}, which {INDEX} places in {place}: they are of two "
                    "checkpoints, or one was changed. Copy the whole checkpoint again, or save the model anew."
                )

    def _find(self) -> dict[str, str]:
        """Tensor name -> file name."""
        if not self.folder.is_dir():
            raise CheckpointError(f"There is no folder {self.folder}: give a Hugging Face checkpoint.")
        if (self.folder / "model.safetensors").is_file():
            return dict.fromkeys(self._file("model.safetensors").keys(), "model.safetensors")
        index = self.folder / INDEX
        if index.is_file():
            return _read_index(index)
        if any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt*")):
            raise CheckpointError(
                f"{self.folder} has weights in PyTorch's pickle format only, which is not read because a pickle can "
                "run code. If you trust it, convert it once: AutoModelForCausalLM.from_pretrained(folder)"
                ".save_pretrained(new_folder, safe_serialization=True)."
            )
        if (self.folder / "adapter_model.safetensors").is_file():
            raise CheckpointError(f"{self.folder} holds an adapter and no weights of a model. {MERGE}")
        raise CheckpointError(f"{self.folder} has neither model.safetensors nor {INDEX}: the weights are missing.")


def _read_index(path: Path) -> dict[str, str]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a valid index: {error!r}") from error
    if not isinstance(files, dict):
        raise CheckpointError(f"{path} is not a valid index: weight_map must map tensor names to file names.")
    for tensor, file in files.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} places {tensor} in {file!r}: only *.safetensors files of the same folder are read."
            )
    return files


def stored_dtype(source: SafetensorsFolder) -> torch.dtype:
    """The dtype of the checkpoint's tensors; float32, which holds them all, if there are several.

    Raises CheckpointError for one that holds no plain numbers.
    """
    stored: dict[str, list[str]] = {}
    for name in source.shapes:
        stored.setdefault(source.dtype(name), []).append(name)
    if unknown := [
        f"{kind} ({len(names)} tensors, {names[0]} first)" for kind, names in stored.items() if kind not in _DTYPES
    ]:
        what = (
            "which is not read"
            if set(stored) <= {*_DTYPES, "F64"}
            else ("codes of a quantised model or whole numbers, which would be trained as if they were weights")
        )
        raise CheckpointError(
            f"{source.folder} stores {', '.join(unknown)}: {what}. Give a checkpoint in F32, BF16 or F16."
        )
    return _DTYPES[next(iter(stored))] if len(stored) == 1 else torch.float32


def load_hf_weights(model: StageModel, folder: str | Path, *, fresh_head: bool | None = None) -> None:
    """Fill this stage of the model from a Hugging Face folder (a language model or a sequence classifier).

    A language model needs the output projection (or tied embeddings). The head of a reward model, and the value head of
    a critic, come from `score.weight` with one label. Where the checkpoint has none, the head stays as it was built if
    `fresh_head` allows it (default: if the model is trainable; a frozen model with an untrained head is a mistake). The
    group head is never in a checkpoint of this kind and stays as built.
    Values are converted to the model's dtype. Not collective: each rank reads its own slices.
    Raises CheckpointError naming every missing, unexpected and mis-shaped tensor, and what else `check_weights` finds.
    """
    if fresh_head is None:
        fresh_head = any(parameter.requires_grad for parameter in model.parameters())
    source = SafetensorsFolder(folder)
    skip = check_weights(source, model.shape, model.head, fresh_head=fresh_head)
    load_parameters(model, source, skip=skip)


def check_weights(
    source: SafetensorsFolder, shape: ModelShape, head: HeadKind, *, fresh_head: bool = False
) -> frozenset[str]:
    """Do the weights of a folder mean, for a model of this shape and head, what transformers takes them for?

    The one set of checks of training, of --from-hf and of --check. Returns the parameters to leave alone.
    Raises CheckpointError for an adapter, wrapped names, dtypes that are no plain numbers, an output projection beside
    tied embeddings, and names and shapes that do not fit.
    """
    if (source.folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{source.folder} holds an adapter (adapter_config.json) beside a model: transformers would apply it, this "
            f"package would not. {MERGE} Or take the adapter's files out of the folder."
        )
    _check_wrappers(source)
    stored_dtype(source)
    skip = _check_names(source, shape, head, fresh_head)
    if head == "lm" and shape.tied and OUTPUT in source.shapes:
        _check_tied(source)
    return skip


def _check_wrappers(source: SafetensorsFolder) -> None:
    for where, wrappers in (("begin with", _WRAPPERS), ("hold", _INNER_WRAPPERS)):
        for part, what in wrappers.items():
            at_start = wrappers is _WRAPPERS
            wrapped = [name for name in source.shapes if (name.startswith(part) if at_start else part in name)]
            if wrapped:
                raise CheckpointError(
                    f"The names of {len(wrapped)} of {len(source.shapes)} tensors in {source.folder} {where} "
                    f"{part!r} ({wrapped[0]}), which transformers does not look for: this is {what}"
                )
    if source.shapes and not any(name.startswith("model.") for name in source.shapes) and _BARE in source.shapes:
        raise CheckpointError(
            f"The names of the tensors in {source.folder} lack 'model.' ({_BARE}): this is the trunk alone, as "
            "AutoModel saves it, without the projection of a language model or the head of a reward model. Save the "
            "whole model."
        )


def _check_tied(source: SafetensorsFolder) -> None:
    """transformers 5 uses a stored projection that differs from the embedding, 4.57 the embedding."""
    rows = source.shapes[OUTPUT][0]
    for start in range(0, rows, _TIED_ROWS):
        block = slice(start, min(start + _TIED_ROWS, rows))
        if not torch.equal(source.read(OUTPUT, block), source.read(EMBEDDING, block)):
            raise CheckpointError(
                f"{source.folder} says tie_word_embeddings=true, but its {OUTPUT} is not its {EMBEDDING}: versions of "
                "transformers differ in which of them they use. Set tie_word_embeddings to false in config.json if the "
                f"projection was trained, or save the model without {OUTPUT}."
            )


def _check_names(source: SafetensorsFolder, shape: ModelShape, head: HeadKind, fresh_head: bool) -> frozenset[str]:
    """Compare names and shapes of the whole checkpoint; the parameters to leave alone."""
    skip, notes = frozenset[str](), []
    expected, optional = trunk_tensors(shape), {OUTPUT: (shape.vocab_size, shape.hidden_size)}
    if head == "lm":
        if not shape.tied:
            expected |= optional
            notes = ["the checkpoint has no output projection: it is not a language model"]
        optional[SCORE] = source.shapes.get(SCORE, ())
    elif SCORE in source.shapes or not fresh_head:
        expected[SCORE] = (1, shape.hidden_size)
        notes = ["the checkpoint has no trained head: give a reward model, for example from gipo-mc train reward"]
    else:
        skip = HEADS
    found = {name: size for name, size in source.shapes.items() if not name.endswith("rotary_emb.inv_freq")}
    missing = [name for name in expected if name not in found]
    problems = [f"missing: {name} {list(expected[name])}" for name in missing]
    if missing and set(missing) <= {OUTPUT, SCORE}:
        problems += notes
    for name, size in found.items():
        wanted = expected.get(name, optional.get(name))
        if wanted is None:
            problems.append(f"unexpected: {name} {list(size)}")
        elif wanted != size:
            problems.append(f"{name} is {list(size)}, but {_reason(name)} {list(wanted)}")
    if problems:
        listed = "\n".join(f"  - {line}" for line in problems[:20])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(f"The weights in {source.folder} do not fit the model:\n{listed}{more}")
    return skip


def _reason(name: str) -> str:
    """What asks for another size of a tensor."""
    if name == SCORE:
        return "the head of a reward model has exactly one label (num_labels=1):"
    if name in (EMBEDDING, OUTPUT):
        return "the vocabulary of config.json (vocab_size) makes it"
    return "config.json makes it"
