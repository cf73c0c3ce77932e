"""What a checkpoint costs, beside an earlier commit: a save, the verification at a start, and the loading.

    python benchmarks/checkpoints/checkpoint_cost.py --against COMMIT    # about 1 GB, 1 and 2 ranks, 5 repetitions
    python benchmarks/checkpoints/checkpoint_cost.py --against COMMIT --megabytes 200 --repeat 3

Tensors of the given size are saved as a trainer saves them. Both versions run in turn, in processes of their own, in
each repetition; the table holds the smallest time of each. Files are in memory after they were written, so that
verification is measured and not the disk.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # behind the build that is measured

from benchmarks.common.earlier import earlier_build  # noqa: E402

PARTS = ("save", "verify", "load")


def measure(ranks: int, megabytes: int, folder: Path) -> dict[str, float]:
    """Seconds of each part, the slowest rank's, in the version of gipo_mc that is imported."""
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from gipo_mc.parallel import runtime
    from gipo_mc.parallel.collectives import on_main
    from gipo_mc.run import checkpoint
    from tests.ranks import parallel_config, run_ranks

    def work(rank: int) -> list[float]:
        runtime.initialize(parallel_config(tensor=ranks)[0], "cpu")
        count = 16  # tensors, as a model has many
        size = megabytes * 1_000_000 // 4 // count // ranks
        tensors = [torch.full((size,), float(rank)) for _ in range(count)]

        def state() -> dict[str, Any]:
            return {
                f"t{i}": ShardedTensor.from_rank_offsets(f"t{i}", tensors[i], (0, rank, ranks)) for i in range(count)
            } | {"plain": {"step": 1}}

        times = []
        together = "together" in inspect.signature(checkpoint.latest).parameters
        for part in PARTS:
            torch.distributed.barrier()
            begin = time.perf_counter()
            if part == "save":
                checkpoint.save(folder / "checkpoints", 1, state(), {}, 2, lambda path: None)
            elif part == "verify":
                found, _ = (
                    checkpoint.latest(folder / "checkpoints", together=True)
                    if together
                    else on_main(lambda: checkpoint.latest(folder / "checkpoints"))
                )
            else:
                checkpoint.load_shards(found, state())
            torch.distributed.barrier()
            times.append(time.perf_counter() - begin)
        return times

    found = run_ranks(work, ranks)
    return {part: max(times[i] for times in found) for i, part in enumerate(PARTS)}


def compare(against: str, megabytes: int, repeat: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="checkpoint-cost-") as temporary,
        earlier_build(against, Path(temporary) / "old") as old,
    ):
        for ranks in (1, 2):
            found: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
            for _ in range(repeat):
                for name, root in (("old", old), ("new", ROOT)):
                    found[name].append(_in_a_process(root, ranks, megabytes, Path(temporary)))
            for part in PARTS:
                before, now = (min(row[part] for row in found[name]) for name in ("old", "new"))
                print(f"{ranks} ranks {part:7} {before:7.3f} s -> {now:7.3f} s  ({before / now:.2f}x)", flush=True)


def _in_a_process(root: Path, ranks: int, megabytes: int, temporary: Path) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(dir=temporary))
    command = [sys.executable, str(Path(__file__)), "--measure", str(ranks), str(megabytes), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True, text=True)
    shutil.rmtree(folder)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="HEAD~1", metavar="COMMIT", help="the earlier version [HEAD~1]")
    parser.add_argument("--megabytes", type=int, default=1000, help="of tensors in the checkpoint [1000]")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each version [5]")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        ranks, megabytes, folder = options.measure
        print(json.dumps(measure(int(ranks), int(megabytes), Path(folder))))
        return 0
    compare(options.against, options.megabytes, options.repeat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
