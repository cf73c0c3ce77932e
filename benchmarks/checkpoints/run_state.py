"""What saving the state of a run costs, beside an earlier commit: time, memory, what training waits for, and starts.

    python benchmarks/checkpoints/run_state.py --against 16bad6c                       # 50 million parameters
    python benchmarks/checkpoints/run_state.py --against 16bad6c --parameters 2.5e8 --record
    python benchmarks/checkpoints/run_state.py --parameters 1e9 --layouts TP2 --no-background    # this build alone

A Llama with its optimizer is made on the ranks, filled, and saved as a trainer saves it. Both builds run in turn, in
processes of their own, in each repetition; a row holds the smallest time and the largest memory of each. Memory is that
of all ranks together and of what they forked, pages that they share counted once; it is read every 20 ms, in runs that
are not timed. In the background, training is stood for by one pass over all weights and moments, as an update makes it.

Memory of the state in float32 is 16 bytes a parameter on one rank or with TP2 (weights, gradients, moments), 24 with
DP2 and the distributed optimizer on two ranks of one machine, and 32 with DP2 without it. The build of 16bad6c takes
up to 40 more with the distributed optimizer, saves beside training up to 12 (TP2) or 16 (--no-background leaves them
out). On the disk it is 12 to 16 bytes, removed afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # behind the build that is measured

from benchmarks.common.documents import insert  # noqa: E402
from benchmarks.common.earlier import earlier_build  # noqa: E402
from benchmarks.common.host_memory import Watcher  # noqa: E402
from benchmarks.common.machine import describe_machine  # noqa: E402
from benchmarks.common.record import write  # noqa: E402

RECORD, PAGE = ROOT / "benchmarks/results/checkpoints.json", ROOT / "docs/checkpoints.md"
#: Layout -> (its sizes, is the optimizer distributed?). All have two ranks but the first.
LAYOUTS: dict[str, tuple[dict[str, int], bool]] = {
    "1": ({}, False),
    "TP2": ({"tensor": 2}, False),
    "DP2": ({"data": 2}, True),
    "DP2, whole optimizer": ({"data": 2}, False),
}
_VOCABULARY = 32_000


# ------------------------------------------------------------------------------------------ in a process of its own
def _shape(parameters: float) -> Any:
    """A Llama of about so many parameters."""
    from gipo_mc.models.shape import ModelShape

    hidden, layers = 256, 4
    while True:
        of_layer = 4 * hidden**2 + 3 * hidden * 3 * hidden
        layers = round((parameters - 2 * _VOCABULARY * hidden) / of_layer)
        if layers <= hidden // 64:
            break
        hidden += 128
    return ModelShape(
        vocab_size=_VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden, layers=max(layers, 2),
        heads=hidden // 64, kv_heads=hidden // 64, head_dim=64,
    )  # fmt: skip


def _engine(layout_name: str, parameters: float) -> Any:
    import torch

    from gipo_mc.config import OptimizerConfig
    from gipo_mc.models.build import build_model
    from gipo_mc.parallel import runtime
    from gipo_mc.parallel.engine import Engine
    from tests.ranks import parallel_config

    sizes, sharded = LAYOUTS[layout_name]
    layout = runtime.initialize(parallel_config(**sizes)[0], "cpu")
    shape = _shape(parameters)
    model = build_model(shape, layout, head="lm", dtype=torch.float32, trainable=True, initialize=False)
    engine = Engine(model, layout, OptimizerConfig(), distributed_optimizer=sharded)
    _touch(engine)
    return engine


def _touch(engine: Any) -> None:
    """Change every weight and moment, as an update does."""
    import torch

    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.add_(1.0)
        for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer]):
            for own in part.optimizer.state.values():
                own["exp_avg"].add_(0.5)
                own["exp_avg_sq"].add_(0.25)


class _Clock:
    """Wall and processor seconds of what is done within, of this rank and what it forked."""

    def __enter__(self) -> _Clock:
        import torch.distributed as dist

        dist.barrier()
        self._wall, self._cpu = time.perf_counter(), _processor()
        return self

    def __exit__(self, *error: object) -> None:
        import torch.distributed as dist

        self.own = time.perf_counter() - self._wall
        dist.barrier()
        self.wall, self.cpu = time.perf_counter() - self._wall, _processor() - self._cpu


def _processor() -> float:
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def _saved(rank: int, layout: str, parameters: float, folder: str, asynchronous: bool) -> dict[str, float]:
    """One save; with `asynchronous`, of the new build, training goes on meanwhile."""
    from gipo_mc.run import checkpoint

    engine = _engine(layout, parameters)
    target, pids = Path(folder) / "checkpoints", Path(folder) / "pids"
    (pids / str(os.getpid())).touch()
    (pids / "state").touch()
    time.sleep(1.0)  # the state is there: the watcher looks
    if not asynchronous:
        (pids / "saving").touch()
        with _Clock() as whole:
            checkpoint.save(target, 1, engine.sharded_state("model"), {}, 2, lambda path: None)
        return {"wall": whole.wall, "cpu": whole.cpu}
    return _in_the_background(engine, target, pids)


def _in_the_background(engine: Any, target: Path, pids: Path) -> dict[str, float]:
    from gipo_mc.parallel.saving.snapshot import HostCopies
    from gipo_mc.run import checkpoint

    _touch(engine)
    with _Clock() as alone:
        _touch(engine)
    (pids / "saving").touch()
    with _Clock() as whole:
        with _Clock() as begun:
            saving = checkpoint.begin(
                target, 1, engine.sharded_state("model"), {}, lambda path: None, background=HostCopies()
            )
        with _Clock() as beside:
            _touch(engine)
        while not saving.written():
            time.sleep(0.02)
        with _Clock() as ended:
            saving.finish()
    return {
        "wall": whole.wall, "cpu": whole.cpu, "blocked": begun.wall + ended.wall, "update": alone.wall,
        "update_beside": beside.wall,
    }  # fmt: skip


def _verified(rank: int, folder: str, layout: str) -> dict[str, float]:
    """Two starts of a job: what each takes to find that the checkpoint is whole."""
    import inspect

    from gipo_mc.parallel import runtime
    from gipo_mc.run import checkpoint
    from tests.ranks import parallel_config

    runtime.initialize(parallel_config(**LAYOUTS[layout][0])[0], "cpu")
    new = "keep" in inspect.signature(checkpoint.latest).parameters
    times = {}
    for start in ("first start", "second start"):
        with _Clock() as clock:
            found, reasons = checkpoint.latest(
                Path(folder) / "checkpoints", together=True, **{"keep": True} if new else {}
            )
        assert found is not None, reasons
        times[start] = clock.wall
    return times


def _measure(what: str, layout: str, parameters: float, folder: str) -> dict[str, float]:
    from tests.ranks import parallel_config, run_ranks

    ranks = parallel_config(**LAYOUTS[layout][0])[1]
    if what.startswith("verify"):
        time.sleep(2.5)  # files that were written a moment ago are always read
        found = run_ranks(_verified, 1 if what == "verify alone" else ranks, folder, "1" if "alone" in what else layout)
    else:
        found = run_ranks(_saved, ranks, layout, parameters, folder, what == "background", timeout=3600.0)
    rows = {name: max(row[name] for row in found) for name in found[0]}
    return rows | ({"cpu": sum(row["cpu"] for row in found)} if "cpu" in rows else {})


# --------------------------------------------------------------------------------------------------- all of them
def _in_a_process(root: Path, what: str, layout: str, parameters: float, folder: Path, watch: bool) -> dict[str, float]:
    (folder / "pids").mkdir(parents=True, exist_ok=True)
    for file in (folder / "pids").iterdir():
        file.unlink()
    command = [sys.executable, str(Path(__file__)), "--measure", what, layout, str(parameters), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with Watcher(folder / "pids") if watch else contextlib.nullcontext() as watcher:
        done = subprocess.run(command, env=environment, cwd=root, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} of {root} with {layout} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | ({"state": watcher.state, "peak": watcher.peak} if watcher else {})


def measure_layout(options: argparse.Namespace, layout: str, temporary: Path, old: Path | None) -> dict[str, Any]:
    """{build: {what: the best of its repetitions}}, builds in turn."""
    builds = ({"before": old} if old else {}) | {"now": ROOT}
    row: dict[str, dict[str, dict[str, float]]] = {name: {} for name in builds}
    for number in range(options.repeat + 1):
        watch = number == 0  # memory first, which warms the files up, too
        for name, root in builds.items():
            folder = temporary / "run"
            kinds = ["save"] + (["verify", "verify alone"] if not watch else [])
            for what in kinds + (["background"] if name == "now" and options.background else []):
                if what == "background":
                    shutil.rmtree(folder)
                (folder / ".verified.json").unlink(missing_ok=True)
                _keep(
                    row[name].setdefault(what, {}),
                    _in_a_process(root, what, layout, options.parameters, folder, watch),
                    watch,
                )
            shutil.rmtree(folder)
    return row


def _keep(best: dict[str, float], found: dict[str, float], watched: bool) -> None:
    for name, value in found.items():
        if name in ("state", "peak"):
            best[name] = max(best.get(name, 0), value)
        elif not watched:
            best[name] = min(best.get(name, value), value)


def show(layout: str, row: dict[str, Any]) -> None:
    """The figures of a layout, a line each."""
    now = row["now"]
    before = row.get("before")
    compared = [
        ("save, wall s", "save", "wall"), ("save, processor s", "save", "cpu"), ("state, GB", "save", "state"),
        ("peak of a save, GB", "save", "peak"), ("first start, all ranks, s", "verify", "first start"),
        ("first start, one rank, s", "verify alone", "first start"),
        ("second start, all ranks, s", "verify", "second start"),
    ]  # fmt: skip
    for title, what, name in compared:
        scale = 1e9 if "GB" in title else 1.0
        found = now[what][name] / scale
        line = f"{layout:22} {title:34} {found:9.3f}"
        if before:
            line += (
                f"   before {before[what][name] / scale:9.3f}   now/before {found / (before[what][name] / scale):.2f}"
            )
        print(line)
    if "background" not in now:
        return
    background, save = now["background"], now["save"]
    for title, value, more in (
        ("blocked, s", background["blocked"], f"of a save {background['blocked'] / save['wall']:.3f}"),
        ("an update beside it, s", background["update_beside"], f"alone {background['update']:.3f}"),
        ("until it stands, s", background["wall"], ""),
        ("peak, GB", background["peak"] / 1e9, ""),
    ):
        print(f"{layout:22} {'background: ' + title:34} {value:9.3f}   {more}", flush=True)


def table(runs: list[dict[str, Any]]) -> str:
    """Of all runs of a record: now, and in brackets the earlier build."""
    lines = [
        "| parameters, layout | save, s | held beside the state, GB | start, s | start again, s "
        "| background: training waits, s | an update beside it, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        for layout, row in run["layouts"].items():
            cells = [f"{run['parameters'] / 1e6:.0f} million, {layout}", _cell(row, "save", "wall")]
            cells.append(_cell(row, "save", "peak", "state"))
            cells += [_cell(row, "verify", start) for start in ("first start", "second start")]
            background = row["now"].get("background")
            cells.append(f"{background['blocked']:.2f}" if background else "")
            cells.append(f"{background['update_beside']:.2f}, alone {background['update']:.2f}" if background else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], what: str, name: str, beyond: str | None = None) -> str:
    """`name` less `beyond`, which are bytes, or seconds."""
    found = {
        build: (own[what][name] - own[what][beyond]) / 1e9 if beyond else own[what][name] for build, own in row.items()
    }
    return f"{found['now']:.2f}" + (f" ({found['before']:.2f})" if "before" in found else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="the earlier build [none]")
    parser.add_argument("--parameters", type=float, default=5e7, help="of the model, about [5e7]")
    parser.add_argument("--layouts", default="TP2;DP2", help=f"of {'; '.join(LAYOUTS)} [TP2;DP2]")
    parser.add_argument("--repeat", type=int, default=3, help="timed measurements of each build [3]")
    parser.add_argument(
        "--no-background", dest="background", action="store_false", help="leave saves beside training out"
    )
    parser.add_argument("--folder", type=Path, help="where checkpoints are written for a while [the system's]")
    parser.add_argument("--record", action="store_true", help=f"add to {RECORD.relative_to(ROOT)} and its table")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, layout, parameters, folder = options.measure
        print(json.dumps(_measure(what, layout, float(parameters), folder)))
        return 0
    rows: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="run-state-", dir=options.folder) as name,
        earlier_build(options.against, Path(name) / "old") if options.against else contextlib.nullcontext() as old,
    ):
        for layout in options.layouts.split(";"):
            rows[layout] = measure_layout(options, layout, Path(name), old)
            show(layout, rows[layout])
    if options.record:
        known = json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []
        run = {
            "machine": describe_machine(),
            "against": options.against,
            "parameters": options.parameters,
            "repeat": options.repeat,
            "layouts": rows,
        }
        write(RECORD, {"runs": [*known, run]})
        insert(PAGE, RECORD.name, table([*known, run]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
