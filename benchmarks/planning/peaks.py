"""The plan's peaks of memory beside those of a real run on the CPU, by phase, for five layouts and for bfloat16.

    python benchmarks/planning/peaks.py [--layouts 1,bf16,TP2,PP2,TP2xPP2,DP2] [--record]
    python benchmarks/planning/peaks.py --layouts selective,full,logits

A Llama of ten million parameters is made, and two iterations of GI-PPO run with it (policy, critic with a group
head, reference; a function as reward). A dispatch mode sees every tensor that an operator returns, in backward passes
too, and when its storage is freed, so the base of the process counts for nothing. The peak of a phase is the largest
sum while it ran, on any rank of the stage. Memory that an operator takes and gives back within itself is not seen.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from benchmarks.common.documents import insert  # noqa: E402
from benchmarks.common.machine import describe_machine  # noqa: E402
from benchmarks.common.processes import run_again  # noqa: E402
from benchmarks.common.record import write  # noqa: E402
from gipo_mc.config import Config, load_config  # noqa: E402
from gipo_mc.ops import native  # noqa: E402
from gipo_mc.plan.hardware import hardware  # noqa: E402
from gipo_mc.plan.plan import Plan, make_plan  # noqa: E402
from gipo_mc.plan.run import read_run  # noqa: E402

#: Layout -> its options and its ranks.
LAYOUTS: dict[str, tuple[list[str], int]] = {
    "1": ([], 1),
    "bf16": (["dtype=bfloat16"], 1),
    "TP2": (["parallel.tensor=2", "parallel.sequence=true"], 2),
    "PP2": (["parallel.pipeline=2"], 2),
    "TP2xPP2": (["parallel.tensor=2", "parallel.pipeline=2"], 4),
    "DP2": (["parallel.distributed_optimizer=on"], 2),
}
#: As `LAYOUTS`: what trades time for memory, or memory for precision. Shown, and not recorded.
TRADES: dict[str, tuple[list[str], int]] = {
    "selective": (["memory.recompute=selective"], 1),
    "full": (["memory.recompute=full"], 1),
    "logits": (["dtype=bfloat16", "precision.fp32_logits=true"], 1),
}
TITLES = {
    "1": "one rank", "bf16": "one rank, bfloat16", "TP2": "TP2, sequence parallel", "PP2": "PP2",
    "TP2xPP2": "TP2 x PP2", "DP2": "DP2, sharded optimizer",
}  # fmt: skip
#: The record and the page that shows it.
RECORD, PAGE = ROOT / "benchmarks/results/plan_peaks.json", ROOT / "docs/planning.md"
#: Phases of the plan, and the names under which a run times them.
PHASES = {
    "rollout": ("rollout",),
    "scoring": ("behaviour_logprob", "reference_logprob", "values"),
    "critic update": ("update_critic",),
    "policy update": ("update_policy",),
    "save": ("save",),
}
PROMPT, RESPONSE = 96, 32
SIZES = {
    "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip


def config_of(folder: Path, layout: str) -> Config:
    """The run's configuration."""
    return load_config(
        None,
        [
            f"run.dir={folder}", f"run.name=layout_{layout}", "run.iterations=2", "device=cpu", "dtype=float32",
            f"model.policy={folder / 'model'}", "model.reward=python:tests.reward_functions:length",
            f"data.prompts={folder / 'prompts.jsonl'}", f"data.prompt_length={PROMPT}",
            "rollout.batch_size=16", f"rollout.max_new_tokens={RESPONSE}", "algorithm.mini_batch_size=8",
            "parallel.micro_batch_size=4", "parallel.logit_rows=64", "eval.prompts=0", "checkpoint.every=0",
            *(LAYOUTS | TRADES)[layout][0],
        ],
    )  # fmt: skip


def make_material(folder: Path, *, prompt: int = PROMPT, rows: int = 32, **sizes: int) -> None:
    """The model and `rows` prompts of about `prompt` tokens. sizes: those of the model that are not `SIZES`."""
    from transformers.utils import logging

    from gipo_mc.data.tokenizer import train_bpe_tokenizer
    from gipo_mc.tools.new_model import create_model

    logging.disable_progress_bar()
    words = [f"{first}{second}" for first in "bdfgklmnprst" for second in "aeiou"]
    tokenizer = train_bpe_tokenizer([" ".join(words)] * 4, 400, str(folder))
    create_model(folder / "model", tokenizer, 1, **SIZES | sizes)
    lines = []
    for number in range(rows):
        text = ""
        while len(tokenizer(text)["input_ids"]) < prompt - 2:
            text = f"{text} {words[(number * 7 + len(text)) % len(words)]}".strip()
        lines.append(json.dumps({"prompt": text}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


class Held(TorchDispatchMode):
    """Bytes of all tensors that were made under it and live still; their most within each named span."""

    def __init__(self) -> None:
        super().__init__()
        self._looked_at = native._looked_at
        self.bytes = 0
        self.most: dict[str, int] = {}
        self._known: set[int] = set()
        self._spans: list[str] = []

    def __enter__(self) -> Held:
        # Under a mode the ops of a layer are computed by their eager definitions, which keep more than the kernels do.
        native._looked_at = lambda: False
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        native._looked_at = self._looked_at

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Tensors that were there before: an operator may return a view of them, or what it changed in place."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            weakref.finalize(storage, self._forget, key, size)
            for name in self._spans:
                self.most[name] = max(self.most.get(name, 0), self.bytes)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Within it the most counts for `name`."""
        self._spans.append(name)
        self.most[name] = max(self.most.get(name, 0), self.bytes)
        yield
        self._spans.remove(name)


def peaks_of(config: Config) -> dict[str, int]:
    """Bytes at the peak of each timed phase of a run, and of "save", on this rank."""
    from gipo_mc.parallel.timing import Phases, Tell
    from gipo_mc.rl import gi_ppo
    from gipo_mc.run.session import Session

    timed, save, held = Phases.__call__, Session.save, Held()

    @contextmanager
    def marked(self: Phases, name: str, total: int | None = None) -> Iterator[Tell]:
        with held.span(name), timed(self, name, total) as tell:
            yield tell

    def marked_save(self: Session, *arguments: Any) -> None:
        with held.span("save"):
            save(self, *arguments)

    Phases.__call__, Session.save = marked, marked_save  # type: ignore[method-assign]
    try:
        with held:
            gi_ppo.train(config)
    finally:
        Phases.__call__, Session.save = timed, save  # type: ignore[method-assign]
    return held.most


def measure(folder: Path, layout: str) -> list[dict[str, int]]:
    """The ranks' peaks of a real run."""
    ranks = (LAYOUTS | TRADES)[layout][1]
    run_again(__file__, ["--worker", layout, "--folder", str(folder)], ranks=ranks)
    return [json.loads((folder / f"peaks-{layout}-{rank}.json").read_text()) for rank in range(ranks)]


def compare(folder: Path, layout: str) -> list[dict[str, Any]]:
    """Phase and stage: planned and measured bytes."""
    config, ranks = config_of(folder, layout), (LAYOUTS | TRADES)[layout][1]
    return rows_of(make_plan(read_run(config), ranks, hardware("cpu")), measure(folder, layout), layout)


def rows_of(plan: Plan, measured: list[dict[str, int]], layout: str) -> list[dict[str, Any]]:
    """measured: of each rank. A stage's ranks follow each other; the largest of them counts."""
    each = len(measured) // plan.grid.pipeline
    rows = []
    for peak in plan.memory.peaks:
        ranks = measured[peak.stage * each : (peak.stage + 1) * each]
        real = max(rank.get(name, 0) for rank in ranks for name in PHASES[peak.phase])
        rows.append(
            {"layout": layout, "phase": peak.phase, "stage": peak.stage, "planned": peak.total, "measured": real}
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """A table on the screen."""
    print(f"{'layout':<10}{'phase':<16}{'stage':>6}{'planned MB':>12}{'measured MB':>13}{'error':>8}")
    for row in rows:
        planned, real = row["planned"], row["measured"]
        print(
            f"{row['layout']:<10}{row['phase']:<16}{row['stage']:>6}{planned / 1e6:>12.1f}{real / 1e6:>13.1f}"
            f"{planned / real - 1:>+8.1%}"
        )


def table(rows: list[dict[str, Any]]) -> str:
    """A line of Markdown for each layout: planned / measured MB of the largest stage, and the largest error."""
    shown = [phase for phase in PHASES if phase != "rollout"]
    lines = [f"| layout | {' | '.join(shown)} | largest error of a phase |", "| --- " * (len(shown) + 2) + "|"]
    for layout in dict.fromkeys(row["layout"] for row in rows):
        own = [row for row in rows if row["layout"] == layout]
        cells = []
        for phase in shown:
            largest = max((row for row in own if row["phase"] == phase), key=lambda row: row["measured"])
            cells.append(f"{largest['planned'] / 1e6:.0f} / {largest['measured'] / 1e6:.0f}")
        worst = max(abs(row["planned"] / row["measured"] - 1) for row in own)
        lines.append(f"| {TITLES[layout]} | {' | '.join(cells)} | {worst:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="which of them [all]")
    parser.add_argument("--record", action="store_true", help="write the record, and its table into docs/planning.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch.set_num_threads(1)
        found, rank = peaks_of(config_of(options.folder, options.worker)), os.environ.get("RANK", "0")
        (options.folder / f"peaks-{options.worker}-{rank}.json").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_material(Path(folder))
        rows = [row for layout in options.layouts.split(",") for row in compare(Path(folder), layout)]
    show(rows)
    if options.record:
        write(RECORD, {"machine": describe_machine(), "rows": rows})
        insert(PAGE, RECORD.name, table(rows))


if __name__ == "__main__":
    main()
