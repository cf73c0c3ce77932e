"""The native ops against eager torch, torch.compile, Megatron-core, Liger and flash-attention, here, in one process.

    python benchmarks/kernels/kernels.py [--quick] [--device cuda] [--out FILE.json] [--picture FILE.png]
    python benchmarks/kernels/kernels.py --table FILE.json [--into docs/kernels.md]

Prints, for every op, shape and type: forward and backward time, their ratio to ours, the fewest possible bytes over
that time as a fraction of the copy bandwidth measured in the same rounds, extra memory, and the error against float64.
An implementation that cannot run here is listed with the reason. Nothing is written but what --out, --picture and
--into name. docs/kernels.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

import torch

from benchmarks.common import documents, timing
from benchmarks.common.machine import describe_machine, show_machine
from benchmarks.common.record import write
from benchmarks.kernels import attention, cases, layers, roofline
from benchmarks.kernels.measure import Case, measure
from benchmarks.kernels.sampling import CHOICES, sampling_case

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
OPS = (
    *("token_statistics", "paged_attention", "token_objective", "group_objective", "shape_and_gae", "sample"),
    *layers.OPS,
)
GROUPS = 4
HEADS = ((32, 8, 64), (32, 32, 128))  # H, G, D: a Llama of 1B, and of 7B


def main() -> int:
    options = arguments()
    if options.table:
        return show_table(options.table, options.into)
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="(megatron|torch)\\..*")
    record = run(options, device)
    print(roofline.notes(record))
    if torch.distributed.is_initialized():  # Megatron's rivals needed a group
        torch.distributed.destroy_process_group()
    if options.picture:
        roofline.picture(record, options.picture)
    bitwise = [run.get("bitwise", {"equal": True})["equal"] for case in record["cases"] for run in case["runs"]]
    if not all(bitwise):
        print("Two runs of a kernel of this project did not give the same bits: see the table.", file=sys.stderr)
    return 0 if all(bitwise) else 1


def run(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measures, prints, and writes the record after every case, so that what is there survives an interruption."""
    begin = time.monotonic()
    record: dict[str, Any] = {
        "benchmark": "kernels",
        "machine": describe_machine(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "cases": [],
        "not_run": [],
    }
    print(show_machine(record["machine"]) + "\n", flush=True)
    bandwidth = timing.Bandwidth(device, options.bandwidth_mib << 20)
    bandwidth.measure()  # warm-up: the first touch of the pages
    for name, make in planned(options, device):
        spent = time.monotonic() - begin
        if options.budget and spent > options.budget:
            record["not_run"].append({"case": name, "reason": f"{spent:.0f} s of --budget {options.budget} s are over"})
            print(f"{name}: not run, the budget is used up\n", flush=True)
        else:
            record["cases"].append(measure(make(), options.rounds, options.repeats, bandwidth))
            print(roofline.case_table(record["cases"][-1]) + "\n", flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        record["seconds"] = time.monotonic() - begin
        if options.out:
            write(options.out, record)
    return record


def planned(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(name, maker) of each case, what matters most first."""
    dtypes = [DTYPES[name] for name in options.dtypes]
    rows, columns = options.rows, options.columns
    batch, time = options.sequences
    tokens = [
        (f"token_statistics {dtype} {wide}", lambda w=wide, d=dtype: cases.token_case(rows, w, d, device))
        for dtype in dtypes
        for wide in columns
    ] * ("token_statistics" in options.ops)
    yield from tokens[:1]
    if "paged_attention" in options.ops:
        slots, length = options.slots
        for heads in HEADS[:1] if options.quick else HEADS:
            name = f"paged_attention {dtypes[0]} {heads}"
            yield name, lambda h=heads: attention.attention_case(slots, length, *h, dtypes[0], device)
    if "token_objective" in options.ops:
        sequences = max(1, rows // min(time, rows))
        length, wide = rows // sequences, columns[0]
        yield (
            f"token_objective {dtypes[0]} {wide}",
            lambda: cases.joint_case(sequences, length, wide, GROUPS, dtypes[0], device),
        )
    if "group_objective" in options.ops:
        for ragged in (False, True):
            name = "group_objective" + " ragged" * ragged
            yield name, lambda r=ragged: cases.objective_case(batch, time, GROUPS, device, ragged=r)
    if "shape_and_gae" in options.ops:
        yield "shape_and_gae", lambda: cases.shaping_case(batch, time, device)
    if "sample" in options.ops:
        for wide in columns if options.quick else (8192, *columns):
            for top_k, top_p in CHOICES:
                name = f"sample {wide} top-k {top_k} top-p {top_p}"
                yield name, lambda w=wide, k=top_k, p=top_p: sampling_case(min(rows, 64), w, k, p, device)
    if device.type == "cpu":
        yield from layers.planned(options.ops, options.quick)
    yield from tokens[1:]


def show_table(source: Path, into: Path | None) -> int:
    """Print the table of a record, or put it between its markers in a document."""
    table = roofline.document_table(json.loads(source.read_text()))
    if into is None:
        print(table)
        return 0
    documents.insert(into, source.as_posix(), table)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds: does it run, not how fast")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS, metavar="OP", help=", ".join(OPS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="types of the logits")
    parser.add_argument("--rows", type=int, help="tokens N of the logits [4096; CUDA: 8192; quick: 512]")
    parser.add_argument("--columns", type=int, nargs="+", help="vocabularies V [32000; CUDA: 32000 and 128256]")
    parser.add_argument("--sequences", type=int, nargs=2, metavar=("B", "T"), default=(512, 1024))
    parser.add_argument(
        "--slots",
        type=int,
        nargs=2,
        metavar=("N", "L"),
        help="rows of decode attention and positions each [64 2048; CPU: 16 2048; quick: 4 100]",
    )
    parser.add_argument("--rounds", type=int, help="timed passes of each implementation [7; CUDA: 20; quick: 3]")
    parser.add_argument("--repeats", type=int, help="passes that must give the same bits [5; CUDA: 100; quick: 2]")
    parser.add_argument("--threads", type=int, help="CPU threads [torch's choice]")
    parser.add_argument("--budget", type=float, default=0, help="seconds after which no further case is begun [none]")
    parser.add_argument("--out", type=Path, help="write every sample, as JSON, to this file")
    parser.add_argument("--picture", type=Path, help="draw time over floor to this file")
    parser.add_argument("--table", type=Path, help="measure nothing: the table of this record, in Markdown")
    parser.add_argument(
        "--into", type=Path, help="with --table: replace the table between its markers in this document"
    )
    options = parser.parse_args()
    cuda, quick = options.device == "cuda", options.quick
    options.rows = options.rows or (512 if quick else 8192 if cuda else 4096)
    options.columns = options.columns or ([32000, 128256] if cuda and not quick else [32000])
    options.slots = options.slots or ((4, 100) if quick else (64, 2048) if cuda else (16, 2048))
    options.rounds = options.rounds or (3 if quick else 20 if cuda else 7)
    options.repeats = options.repeats or (2 if quick else 100 if cuda else 5)
    options.bandwidth_mib = 1024 if cuda else 64 if quick else 512
    if options.into and not options.table:
        parser.error("--into needs --table FILE.json")
    if cuda and not options.table and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU (python scripts/doctor.py says why); use --device cpu")
    return options


if __name__ == "__main__":
    sys.exit(main())
