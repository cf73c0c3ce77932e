"""Memory and time of a training step with memory.recompute none, selective and full, side by side on the CPU.

    python benchmarks/memory/recompute.py [--layers 16] [--repeats 7] [--record]

One Llama, one batch, forward and backward pass of an SFT loss and the optimizer step; the three take turns in one
process, and the fastest step of each counts. Memory is the most bytes of tensors that lie together in the two passes
beside weights, gradients and optimizer, counted from every tensor that an operator returns until its storage is freed;
what the operating system saw of it, in a process for each, stands beside it (peak RSS of a step less RSS before it).
The gradients are compared to the bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.common.documents import insert  # noqa: E402
from benchmarks.common.host_memory import resident_bytes  # noqa: E402
from benchmarks.common.machine import describe_machine, show_machine  # noqa: E402
from benchmarks.common.processes import run_again  # noqa: E402
from benchmarks.common.record import write  # noqa: E402
from benchmarks.planning.peaks import Held  # noqa: E402
from gipo_mc.config import OptimizerConfig, ParallelConfig  # noqa: E402
from gipo_mc.models.build import build_model  # noqa: E402
from gipo_mc.models.execution import Execution  # noqa: E402
from gipo_mc.models.micro_batch import MicroBatch, micro_batches  # noqa: E402
from gipo_mc.models.shape import ModelShape  # noqa: E402
from gipo_mc.parallel import runtime  # noqa: E402
from gipo_mc.parallel.engine import Engine  # noqa: E402
from gipo_mc.supervised.sft import response_loss  # noqa: E402
from gipo_mc.types import Sequences  # noqa: E402

WAYS = ("none", "selective", "full")
RECORD, PAGE = ROOT / "benchmarks/results/recompute.json", ROOT / "docs/memory.md"
ROWS, PROMPT, RESPONSE, VOCABULARY, LOGIT_ROWS = 4, 128, 128, 4096, 128
#: What issue and documents ask of full recomputation, as shares of `none`.
MEMORY_LIMIT, TIME_LIMIT = 0.35, 1.4


class Step:
    """One engine and its batch."""

    def __init__(self, way: Any, options: argparse.Namespace, layout: Any) -> None:
        shape = ModelShape(
            vocab_size=VOCABULARY, hidden_size=options.hidden, intermediate_size=options.hidden * 11 // 4,
            layers=options.layers, heads=options.hidden // 64, kv_heads=options.hidden // 64, head_dim=64,
        )  # fmt: skip
        model = build_model(
            shape, layout, head="lm", dtype=torch.float32, trainable=True, seed=1, execution=Execution(way)
        )
        self.engine = Engine(model, layout, OptimizerConfig(lr=1e-4))
        tokens_BL = torch.randint(VOCABULARY, (ROWS, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(1))
        sequences = Sequences(tokens_BL, torch.full((ROWS,), PROMPT), torch.full((ROWS,), RESPONSE))
        self.parts = micro_batches(sequences, ParallelConfig(micro_batch_size=ROWS), layout).parts

    def passes(self) -> None:
        def loss(model: Any, hidden_LBH: torch.Tensor, part: MicroBatch) -> dict[str, torch.Tensor]:
            outputs = response_loss(model, hidden_LBH, part, LOGIT_ROWS)
            return outputs | {"loss": outputs["loss_sum"] / (ROWS * RESPONSE)}

        self.engine.forward_backward(self.parts, loss)

    def gradients(self) -> list[torch.Tensor]:
        return [parameter.main_grad.clone() for parameter in self.engine.model.parameters()]  # type: ignore[attr-defined]

    def memory(self) -> int:
        """Bytes at the peak of the passes beside what lay there before."""
        held = Held()
        parameters = list(self.engine.model.parameters())
        held.leave_out([*parameters, *(parameter.main_grad for parameter in parameters)])  # type: ignore[attr-defined]
        with held, held.span("passes"):
            self.passes()
        return held.most["passes"]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Way -> bytes, seconds of each step, and whether the gradients are those of "none"."""
    layout = runtime.initialize(ParallelConfig(), "cpu")
    steps = {way: Step(way, options, layout) for way in WAYS}
    found: dict[str, Any] = {way: {"memory": step.memory(), "wall": [], "processor": []} for way, step in steps.items()}
    expected = steps["none"].gradients()
    for way, step in steps.items():
        found[way]["same_gradients"] = all(map(torch.equal, step.gradients(), expected))
    for repeat in range(options.repeats):
        for way in WAYS[repeat % 3 :] + WAYS[: repeat % 3]:
            wall, processor = time.perf_counter(), time.process_time()
            steps[way].passes()
            steps[way].engine.step()
            found[way]["wall"].append(time.perf_counter() - wall)
            found[way]["processor"].append(time.process_time() - processor)
    return found


def grown(options: argparse.Namespace) -> int:
    """Bytes by which this process grows at the peak of the passes."""
    step = Step(options.worker, options, runtime.initialize(ParallelConfig(), "cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS")
    step.passes()
    return resident_bytes("VmHWM") - before


def resident(options: argparse.Namespace, way: str) -> int:
    """`grown` in a process of its own."""
    arguments = ["--worker", way, "--layers", str(options.layers), "--hidden", str(options.hidden)]
    # Else glibc keeps what is freed, and the peak is that of an arena.
    output = run_again(
        __file__, arguments, OMP_NUM_THREADS=str(options.threads),
        MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536",
    )  # fmt: skip
    return int(json.loads(output.splitlines()[-1]))


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    base = found["none"]
    return [
        {
            "recompute": way,
            **own,
            "memory_share": own["memory"] / base["memory"],
            "resident_share": own["resident"] / base["resident"],
            "time_share": min(own["wall"]) / min(base["wall"]),
            "processor_share": min(own["processor"]) / min(base["processor"]),
        }
        for way, own in found.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| memory.recompute | memory of the passes, MB | by the system, MB | a step, s | memory | time | processor |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seen = f"{row['memory'] / 1e6:.0f} | {row['resident'] / 1e6:.0f} | {min(row['wall']):.2f}"
        shares = " | ".join(f"{row[f'{kind}_share']:.2f}x" for kind in ("memory", "time", "processor"))
        lines.append(f"| {row['recompute']} | {seen} | {shares} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="of the model [16]")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size, a multiple of 64 [512]")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each way [7]")
    parser.add_argument("--threads", type=int, default=1, help="[1]")
    parser.add_argument("--record", action="store_true", help="write the record, and its table into docs/memory.md")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/one", rank=0, world_size=1)
        if options.worker:
            print(grown(options))
            return 0
        found = measure(options)
    for way in WAYS:
        found[way]["resident"] = resident(options, way)
    rows, machine = rows_of(found), describe_machine()
    print(show_machine(machine), table(rows), sep="\n")
    full = rows[-1]
    reached = full["memory_share"] <= MEMORY_LIMIT and full["time_share"] <= TIME_LIMIT
    same = all(row["same_gradients"] for row in rows)
    print(f"full: memory <= {MEMORY_LIMIT}x and time <= {TIME_LIMIT}x: {'reached' if reached else 'not reached'}")
    print(f"gradients: {'the same bits' if same else 'they differ'}")
    if options.record:
        sizes = {"layers": options.layers, "hidden": options.hidden, "rows": ROWS, "length": PROMPT + RESPONSE}
        write(RECORD, {"machine": machine, "sizes": sizes, "rows": rows})
        insert(PAGE, RECORD.name, table(rows))
    return 0 if reached and same else 1


if __name__ == "__main__":
    sys.exit(main())
