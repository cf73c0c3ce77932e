"""Proof that a Hugging Face checkpoint means the same here: logits against transformers, and weights there and back.

Both run at the layout of the ranks that call, in float32, so what is proven is what a run at that layout will use.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from gipo_mc.models.build import build_model
from gipo_mc.models.families import family_of, read_shape
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import HeadKind, StageModel
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import SafetensorsFolder, load_hf_weights, stored_dtype
from gipo_mc.models.weights.table import OUTPUT, SCORE
from gipo_mc.parallel.collectives import gather_in_rank_order, on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.streams import generator

#: Largest absolute difference of a float32 logit. Layouts differ in the order of sums, no more.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One line of the proof: what was compared, what was found, and whether it is good enough."""

    what: str
    found: str
    passed: bool


@dataclass(frozen=True)
class _Tokens:
    tokens_BL: Tensor


def check_checkpoint(folder: str | Path, layout: Layout, *, rows: int = 2, length: int = 64) -> list[Check]:
    """Compare this checkpoint with transformers at this layout; the same list on every rank, all ranks call.

    Random tokens [rows, length] (shorter where the model is) give logits, or rewards for a model with one label. The
    main rank loads the whole model in transformers: it needs the memory for it. The round trip writes a copy of the
    checkpoint into the system's temporary folder, which all ranks must share.
    Raises ConfigError or CheckpointError where the checkpoint cannot be loaded at all.
    """
    folder = Path(folder)
    shape = read_shape(folder)
    source = SafetensorsFolder(folder)
    head: HeadKind = "reward" if SCORE in source.shapes else "lm"
    model = build_model(shape, layout, head=head, dtype=torch.float32, trainable=False, initialize=False)
    load_hf_weights(model, folder)
    length = min(length, shape.max_positions)
    tokens_BL = torch.from_numpy(generator(0, "parity").integers(0, shape.vocab_size, (rows, length)))
    checks = [_compare_outputs(model, layout, folder, tokens_BL)]
    with _shared_temporary_folder() as copy:
        # float32 holds every bfloat16 and float16 value, so writing in the stored dtype must give back every bit.
        export_hf_weights(model, copy, dtype=stored_dtype(source))
        checks += on_main(lambda: _compare_folders(source, SafetensorsFolder(copy), shape))
    return checks


def _compare_outputs(model: StageModel, layout: Layout, folder: Path, tokens_BL: Tensor) -> Check:
    def last_stage(model: StageModel, hidden_LBH: Tensor, batch: _Tokens) -> dict[str, Tensor]:
        return {"output": _outputs(model, hidden_LBH, layout)}

    outputs = Engine(model, layout).forward([_Tokens(tokens_BL.to(layout.device))], last_stage)
    what = "logits" if model.head == "lm" else "rewards"

    reference: Tensor = on_main(partial(_transformers_outputs, folder, model.head, tokens_BL))
    difference = torch.zeros(2)
    if layout.is_last_stage:
        output = outputs[0]["output"].float().cpu()
        difference[0] = (output - reference).abs().max()
        difference[1] = float(not bool(torch.isfinite(output).all()))
    worst = gather_in_rank_order(difference.to(layout.device)).amax(0).tolist()
    passed = worst[0] <= TOLERANCE and not worst[1]
    scale = float(reference.abs().max())
    return Check(f"{what} against transformers", f"max |difference| {worst[0]:.2e} of max |{what}| {scale:.3g}", passed)


def _outputs(model: StageModel, hidden_LBH: Tensor, layout: Layout) -> Tensor:
    """[B, L, V] logits, or [B, L] rewards of every prefix, on every tensor rank."""
    length, batch, hidden = hidden_LBH.shape
    hidden_NH = hidden_LBH.transpose(0, 1).reshape(-1, hidden)
    if model.head == "reward":
        return model.reward(hidden_NH).view(batch, length)
    logits = model.lm_logits(hidden_NH)
    if layout.tensor > 1:
        logits = torch.cat(list(gather_in_rank_order(logits, parallel_state.get_tensor_model_parallel_group())), dim=1)
    return logits[:, : model.vocab_size].reshape(batch, length, -1)


def _transformers_outputs(folder: Path, head: str, tokens_BL: Tensor) -> Tensor:
    family = family_of(read_shape(folder))
    kind: Any = family.hf_class(family.causal_lm if head == "lm" else family.sequence_classifier)
    reference = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True).eval()
    with torch.no_grad():
        if head == "lm":
            return reference(tokens_BL).logits
        hidden = reference.model(tokens_BL).last_hidden_state
        return reference.score(hidden).squeeze(-1)


def _compare_folders(source: SafetensorsFolder, copy: SafetensorsFolder, shape: ModelShape) -> list[Check]:
    # Not compared, because not loaded: rotary constants of old checkpoints, and a projection that a tied model ignores.
    ignored = {OUTPUT} if shape.tied else set()
    names = {name for name in source.shapes if not name.endswith("rotary_emb.inv_freq")} - ignored
    different = sorted(names ^ set(copy.shapes))
    for name in sorted(names & set(copy.shapes)):
        written = copy.read(name, slice(None))
        if not torch.equal(_bits(written), _bits(source.read(name, slice(None)).to(written.dtype))):
            different.append(name)
    found = f"{len(names)} tensors" if not different else f"{len(different)} differ: {', '.join(different[:3])}"
    config = json.loads((copy.folder / "config.json").read_text(encoding="utf-8"))
    same = read_shape(copy.folder) == shape
    return [
        Check("weights there and back, bit for bit", found, not different),
        Check("config.json there and back", ", ".join(config.get("architectures", [])), same),
    ]


def _bits(tensor: Tensor) -> Tensor:
    """As bytes: equal bits are equal, NaN and -0.0 included."""
    return tensor.contiguous().view(torch.uint8)


@contextmanager
def _shared_temporary_folder() -> Iterator[Path]:
    folder = Path(on_main(partial(tempfile.mkdtemp, prefix="gipo_mc-check-")))
    try:
        yield folder
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
