"""Proof that a Hugging Face checkpoint means the same here: logits or scores against transformers, and weights there
and back.

Both run at the layout of the ranks that call, in float32, so what is proven is what a run at that layout will use.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors import safe_open
from torch import Tensor

from gipo_mc.config import ParallelConfig
from gipo_mc.errors import ConfigError
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import sequence_rewards
from gipo_mc.models.shape import ModelShape
from gipo_mc.models.stage import HeadKind, StageModel
from gipo_mc.models.weights import hf_reader
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import SafetensorsFolder, load_hf_weights, stored_dtype
from gipo_mc.models.weights.table import OUTPUT, SCORE
from gipo_mc.parallel.collectives import gather_in_rank_order, on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.streams import generator
from gipo_mc.types import Sequences

#: Largest absolute difference of a float32 logit. Layouts differ in the order of sums, no more.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One line of the proof: what was compared, what was found, and whether it is good enough."""

    what: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Texts:
    """What the folder's tokenizer makes of some texts here.

    texts, ids: side by side, without special tokens. end_ids: what ends a response here; the first is what SFT trains.
    """

    texts: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Tokens:
    tokens_BL: Tensor


@dataclass(frozen=True)
class _Answers:
    """What a reader said. failure: why it could not read the folder."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


def check_checkpoint(
    folder: str | Path,
    layout: Layout,
    *,
    rows: int = 2,
    length: int = 64,
    texts: Texts | None = None,
    readers: Sequence[str] = (),
    tell: Callable[[str], None] = lambda phase: None,
) -> list[Check]:
    """Compare this checkpoint with transformers at this layout; the same list on every rank, all ranks call.

    Random tokens [rows, length] (shorter where the model is) give logits, or for a model with one label the rewards of
    all prefixes. Rows of several lengths, some of which end with an end id, are scored by a reward model alone and in a
    padded batch. readers: Python interpreters whose transformers are compared with as well. The main rank loads the
    whole model in each transformers: it needs the memory for it. The round trip writes a copy of the checkpoint into
    the system's temporary folder, which all ranks must share. tell: called with what is done next, in words.
    Raises ConfigError or CheckpointError where the checkpoint cannot be loaded at all, ConfigError for a reader that
    does not run.
    """
    folder = Path(folder)
    shape = read_shape(folder)
    source = SafetensorsFolder(folder)
    head: HeadKind = "reward" if SCORE in source.shapes else "lm"
    tell("reading weights")
    model = build_model(shape, layout, head=head, dtype=torch.float32, trainable=False, initialize=False)
    load_hf_weights(model, folder)
    texts = texts or Texts(end_ids=shape.end_ids)
    length = min(length, shape.max_positions)
    tokens_BL = torch.from_numpy(generator(0, "parity").integers(0, shape.vocab_size, (rows, length)))
    scored = _rows_to_score(shape, texts, tokens_BL) if head == "reward" else []
    questions = {"head": head, "tokens": tokens_BL.tolist(), "rows": scored, "texts": list(texts.texts)}
    tell("asking the model here")
    outputs = _outputs(model, layout, tokens_BL)
    rewards_n = _rewards(model, layout, scored)
    checks = []
    for reader in ("", *readers):
        tell(f"asking {reader or 'transformers'}")
        answers: _Answers = on_main(partial(_ask, reader, folder, questions))
        if answers.failure:
            checks.append(Check(f"read by {reader or 'transformers'}", answers.failure, False))
            continue
        version = answers.facts["version"]
        checks.append(_compare_outputs(outputs, answers.tensors["outputs"], layout, head, version))
        checks += (
            _compare_scores(rewards_n, answers) if head == "reward" else _compare_ends(texts, answers, shape.vocab_size)
        )
        checks += _compare_ids(texts, answers)
    tell("writing the weights back, and comparing every bit")
    with _shared_temporary_folder() as copy:
        # float32 holds every bfloat16 and float16 value, so writing in the stored dtype must give back every bit.
        export_hf_weights(model, copy, dtype=stored_dtype(source))
        checks += on_main(lambda: _compare_folders(source, SafetensorsFolder(copy), shape))
    return checks


def _rows_to_score(shape: ModelShape, texts: Texts, tokens_BL: Tensor) -> list[list[int]]:
    """Rows of several lengths, each as it is and with an end id behind it, in turn."""
    rows = [list(ids) for ids in texts.ids if ids] or [tokens_BL[0, : 3 + 2 * n].tolist() for n in range(4)]
    rows = [row[: shape.max_positions - 1] for row in rows]
    ends = texts.end_ids or (0,)
    return [ended for n, row in enumerate(rows) for ended in (row, [*row, ends[n % len(ends)]])]


# ----------------------------------------------------------------------------------------------------------------- here
def _outputs(model: StageModel, layout: Layout, tokens_BL: Tensor) -> Tensor | None:
    """[B, L, V] logits, or [B, L] rewards of every prefix, on every tensor rank of the last stage."""

    def last_stage(model: StageModel, hidden_LBH: Tensor, batch: _Tokens) -> dict[str, Tensor]:
        length, rows, hidden = hidden_LBH.shape
        hidden_NH = hidden_LBH.transpose(0, 1).reshape(-1, hidden)
        if model.head == "reward":
            return {"output": model.reward(hidden_NH).view(rows, length)}
        logits = model.lm_logits(hidden_NH)
        if layout.tensor > 1:
            shards = gather_in_rank_order(logits, parallel_state.get_tensor_model_parallel_group())
            logits = torch.cat(list(shards), dim=1)
        return {"output": logits[:, : model.vocab_size].reshape(rows, length, -1)}

    found = Engine(model, layout).forward([_Tokens(tokens_BL.to(layout.device))], last_stage)
    return found[0]["output"].float().cpu() if layout.is_last_stage else None


def _rewards(model: StageModel, layout: Layout, rows: list[list[int]]) -> Tensor:
    """The reward of each row, float32 [n], as a run reads it, on every rank."""
    if not rows:
        return torch.zeros(0)
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in zip(tokens, rows):
        place[: len(row)] = torch.tensor(row)
    length_n = torch.tensor([len(row) for row in rows])
    sequences = Sequences(tokens, torch.ones_like(length_n), length_n - 1)
    batches = micro_batches(sequences, ParallelConfig(), layout)
    return run_forward(Engine(model, layout), batches, sequence_rewards(), {"reward": 0})["reward"].cpu()


# ---------------------------------------------------------------------------------------------------------------- there
def _ask(reader: str, folder: Path, questions: dict[str, Any]) -> _Answers:
    """What transformers says: that of this process, or that of another interpreter."""
    if not reader:
        try:
            return _Answers(*hf_reader.answer(folder, questions))
        except Exception as error:  # transformers raises what it pleases, torch's assertions included
            return _Answers(failure=f"{type(error).__name__}: {error}"[:300])
    with tempfile.TemporaryDirectory(prefix="gipo_mc-check-") as scratch:
        asked, answered = Path(scratch, "questions.json"), Path(scratch, "answers.safetensors")
        asked.write_text(json.dumps(questions), encoding="utf-8")
        command = [reader, "-I", hf_reader.__file__, str(folder.resolve()), str(asked), str(answered)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
        except OSError as error:
            raise ConfigError(f"--reader {reader} cannot be run: {error}") from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            return _Answers(failure=lines[-1][:300])
        with safe_open(answered, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
            return _Answers(tensors, json.loads(file.metadata()["facts"]))


# ---------------------------------------------------------------------------------------------------------- comparisons
def _compare_outputs(output: Tensor | None, reference: Tensor, layout: Layout, head: str, version: str) -> Check:
    what = "logits" if head == "lm" else "rewards"
    difference = torch.zeros(2)
    if output is not None:
        difference[0] = (output - reference).abs().max()
        difference[1] = float(not bool(torch.isfinite(output).all()))
    worst = gather_in_rank_order(difference.to(layout.device)).amax(0).tolist()
    passed = worst[0] <= TOLERANCE and not worst[1]
    scale = float(reference.abs().max())
    found = f"max |difference| {worst[0]:.2e} of max |{what}| {scale:.3g}"
    return Check(f"{what} against transformers {version}", found, passed)


def _compare_scores(rewards_n: Tensor, answers: _Answers) -> list[Check]:
    """Where the reward is read, with and without an end id as the last token."""
    checks = []
    for how, where in (("alone", "alone"), ("padded", "padded in a batch")):
        what = f"scores {where} against transformers {answers.facts['version']}"
        if how not in answers.tensors:
            checks.append(Check(what, "not possible there: no pad_token_id", True))
            continue
        difference = (rewards_n - answers.tensors[how]).abs()
        wrong = int((~(difference <= TOLERANCE)).sum())
        found = f"max |difference| {float(difference.max()):.2e} over {len(rewards_n)} rows, half with an end"
        if wrong:
            found += f", {wrong} of them differ"
            padding, pad_id = answers.facts["padding"], answers.facts["pad_id"]
            if how == "padded" and padding != pad_id:
                found += f": the tokenizer pads with {padding}, config.json has pad_token_id {pad_id}"
        checks.append(Check(what, found, not wrong))
    return checks


def _compare_ends(texts: Texts, answers: _Answers, vocab_size: int) -> list[Check]:
    """transformers may stop at fewer ids than we do (the tokenizer's are not known to it), but at some, and at no
    others. Ids that the model cannot say end nothing."""
    there = answers.facts["end_ids"]
    listed = [] if there is None else there if isinstance(there, list) else [there]
    listed = [one for one in listed if 0 <= one < vocab_size]
    found = f"here {_list(texts.end_ids)}; there {_list(listed)}"
    passed = set(listed) <= set(texts.end_ids) and (bool(listed) or not texts.end_ids)
    return [Check(f"end ids against transformers {answers.facts['version']}", found, passed)]


def _compare_ids(texts: Texts, answers: _Answers) -> list[Check]:
    if not texts.texts or "ids" not in answers.facts:
        return []
    there = [tuple(ids) for ids in answers.facts["ids"]]
    wrong = [text for text, own, other in zip(texts.texts, texts.ids, there, strict=True) if own != other]
    found = f"{len(wrong)} of {len(there)} texts differ, {wrong[0]!r} first" if wrong else f"{len(there)} texts"
    return [Check(f"ids of texts against transformers {answers.facts['version']}", found, not wrong)]


def _list(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "none"


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
