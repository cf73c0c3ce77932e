"""How time and memory of each phase of a GI-PPO iteration grow with the work: one quantity at a time, with exponents.

    python benchmarks/scaling/scaling.py [--only batch,length,vocabulary,groups,parameters,ranks] [--record]

A random Llama runs a few iterations on the CPU, one thread a rank. Time is the median of the iterations behind the
first, as the run logs it (on several ranks the slowest, since phases end together); memory is the most bytes of tensors
that lived in the phase, from another run, because counting slows it (benchmarks/planning/peaks.py). An exponent is the
slope of a line through the logarithms: 1 is linear, 0 does not depend.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common.documents import insert  # noqa: E402
from benchmarks.common.machine import describe_machine  # noqa: E402
from benchmarks.common.processes import run_again  # noqa: E402
from benchmarks.common.record import write  # noqa: E402

#: The record and the page that shows it.
RECORD, PAGE = ROOT / "benchmarks/results/scaling.json", ROOT / "docs/performance.md"
PHASES = ("rollout", "behaviour_logprob", "reference_logprob", "values", "update_critic", "update_policy")
PROMPT = 32
ITERATIONS = 5


@dataclass(frozen=True)
class Work:
    """What an iteration does. batch: sequences. length: response tokens. hidden: width of the model, four layers.
    data, tensor, pipeline: ranks."""

    batch: int = 32
    length: int = 32
    vocabulary: int = 4096
    groups: int = 2
    hidden: int = 128
    data: int = 1
    tensor: int = 1
    pipeline: int = 1

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.pipeline

    @property
    def parameters(self) -> int:
        """Of the policy: embedding and head, and four layers with as many key-value heads as heads."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        return 2 * self.vocabulary * self.hidden + 4 * layer + self.hidden

    @property
    def feed_forward(self) -> int:
        return self.hidden * 11 // 4


#: Quantity -> the works that differ in it, and what stands on the horizontal axis.
SERIES: dict[str, list[tuple[str, Work]]] = {
    "batch": [(str(n), Work(batch=n)) for n in (16, 32, 64, 128)],
    "length": [(str(n), Work(length=n)) for n in (16, 32, 64, 128, 256)],
    "vocabulary": [(str(n), Work(vocabulary=n)) for n in (1024, 4096, 16384, 65536)],
    "groups": [(str(n), Work(groups=n)) for n in (2, 4, 8, 16)],
    "parameters": [(str(work.parameters), work) for work in (Work(hidden=n) for n in (64, 128, 256, 512))],
    "ranks": [
        ("1", Work()), ("data 2", Work(data=2)), ("tensor 2", Work(tensor=2)), ("pipeline 2", Work(pipeline=2)),
        ("data 4", Work(data=4)), ("tensor 4", Work(tensor=4)), ("tensor 2 x pipeline 2", Work(tensor=2, pipeline=2)),
    ],
}  # fmt: skip
#: The tables' heads.
AXES = {
    "batch": "sequences of a batch", "length": "tokens of a response", "vocabulary": "tokens of the vocabulary",
    "groups": "groups M", "parameters": "parameters of the policy", "ranks": "ranks",
}  # fmt: skip


def options(folder: Path, work: Work) -> list[str]:
    """The run's configuration as overrides."""
    return [
        f"run.dir={folder}", "run.name=run", "device=cpu", "dtype=float32", f"model.policy={folder / 'model'}",
        "model.reward=python:tests.reward_functions:length", f"data.prompts={folder / 'prompts.jsonl'}",
        f"data.prompt_length={PROMPT}", f"rollout.batch_size={work.batch}", f"rollout.max_new_tokens={work.length}",
        f"algorithm.mini_batch_size={work.batch // 2}", f"algorithm.groups={work.groups}",
        "parallel.micro_batch_size=16", f"parallel.tensor={work.tensor}", f"parallel.pipeline={work.pipeline}",
        "eval.prompts=0", "checkpoint.every=0",
    ]  # fmt: skip


def run_worker(folder: Path, work: Work, memory: bool) -> None:
    """One rank of a run. Writes memory-RANK.json; times are in the run's metrics."""
    import torch

    from benchmarks.planning.peaks import peaks_of
    from gipo_mc.config import load_config
    from gipo_mc.rl import gi_ppo

    torch.set_num_threads(1)
    iterations = 2 if memory else ITERATIONS
    config = load_config(None, [*options(folder, work), f"run.iterations={iterations}"])
    if memory:
        (folder / f"memory-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(peaks_of(config)))
    else:
        gi_ppo.train(config)


def measure(work: Work) -> dict[str, dict[str, float]]:
    """Phase -> seconds, bytes of the rank with the most."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_material(folder, work)
        _start(folder, work, memory=False)
        lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()][1:]
        seconds = {phase: statistics.median(line[f"time/{phase}"] for line in lines) for phase in PHASES}
        (folder / "run").rename(folder / "timed")  # the next begins anew
        _start(folder, work, memory=True)
        ranks = [json.loads(path.read_text()) for path in folder.glob("memory-*.json")]
    most = {phase: max(rank.get(phase, 0) for rank in ranks) for phase in PHASES}
    return {phase: {"seconds": seconds[phase], "bytes": most[phase]} for phase in PHASES}


def _make_material(folder: Path, work: Work) -> None:
    from benchmarks.planning import peaks

    peaks.make_material(
        folder, prompt=PROMPT, rows=work.batch, vocab_size=work.vocabulary, hidden_size=work.hidden,
        intermediate_size=work.feed_forward, num_hidden_layers=4, num_attention_heads=work.hidden // 16,
        num_key_value_heads=work.hidden // 16, head_dim=16, max_position_embeddings=PROMPT + work.length,
    )  # fmt: skip


def _start(folder: Path, work: Work, memory: bool) -> None:
    arguments = ["--worker", json.dumps(asdict(work)), "--folder", str(folder), *["--memory"] * memory]
    run_again(__file__, arguments, ranks=work.ranks)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through (log size, log value)."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope


def with_exponents(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """A series with the exponents of its phases; none of ranks, which are of several kinds."""
    series: dict[str, Any] = {"points": points}
    if name != "ranks":
        sizes = [float(point["size"]) for point in points]
        series["exponents"] = {
            phase: {
                kind: exponent(sizes, [point["phases"][phase][kind] for point in points])
                for kind in ("seconds", "bytes")
            }
            for phase in PHASES
        }
    return series


def table(name: str, series: dict[str, Any]) -> str:
    """Markdown: a line for each size, milliseconds / MB by phase, and the exponents below."""
    lines = [f"| {AXES[name]} | {' | '.join(PHASES)} |", "| --- " * (len(PHASES) + 1) + "|"]
    for point in series["points"]:
        cells = [
            f"{1e3 * point['phases'][phase]['seconds']:,.0f} ms / {point['phases'][phase]['bytes'] / 1e6:,.0f} MB"
            for phase in PHASES
        ]
        size = f"{int(point['size']):,}" if point["size"].isdigit() else point["size"]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    if slopes := series.get("exponents"):
        cells = [f"{slopes[phase]['seconds']:.2f} / {slopes[phase]['bytes']:.2f}" for phase in PHASES]
        lines.append(f"| exponent | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SERIES), help="which quantities [all]")
    parser.add_argument("--record", action="store_true", help="write the record, and its tables into the page")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.worker:
        return run_worker(own.folder, Work(**json.loads(own.worker)), own.memory)
    names = own.only.split(",")
    if unknown := [name for name in names if name not in SERIES]:
        parser.error(f"--only knows {', '.join(SERIES)}, and not {', '.join(unknown)}")
    if own.record and len(names) < len(SERIES):
        parser.error("--record needs all quantities, of one commit: leave --only out")
    known: dict[Work, dict[str, dict[str, float]]] = {}
    record: dict[str, Any] = {"machine": describe_machine(), "base": asdict(Work()), "series": {}}
    for name in names:
        points = []
        for size, work in SERIES[name]:
            if work not in known:
                known[work] = measure(work)
            points.append({"size": size, "phases": known[work]})
            print(f"{name} {size}", flush=True)
        record["series"][name] = with_exponents(name, points)
        print(table(name, record["series"][name]), flush=True)
    if own.record:
        write(RECORD, record)
        for name, series in record["series"].items():
            insert(PAGE, f"{RECORD.name}: {name}", table(name, series))


if __name__ == "__main__":
    main()
