"""What happens to jobs of several hosts, measured: docs/clusters.md has the table. About twenty minutes on two cores.

    python tests/nodes/measure.py                        every case
    python tests/nodes/measure.py --only cut,kill        the cases whose name has one of these in it
    python tests/nodes/measure.py --record FILE.json     add what was seen to this file, too

The hosts are namespaces of this machine (tests/nodes/hosts.py), as root. A run of ten iterations with a tiny model is
started by the documented line on each host.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tests.golden import digests  # noqa: E402
from tests.nodes.hosts import Hosts, why_not  # noqa: E402
from tests.nodes.jobs import MEET, RL, Job, sentence, status  # noqa: E402
from tests.runs import save_models  # noqa: E402

os.environ.pop("GLOO_SOCKET_IFNAME")  # what digests sets for one host
#: Seconds that a case may take until its job has ended.
PATIENCE = 150.0
QUICK = "parallel.silence_seconds=10"
#: What hosts use among each other: sums of more than two ranks in memory have another order.
AS_HOSTS = "parallel.shared_memory=false"
LAYOUTS = {"TP2": ["parallel.tensor=2"], "PP2": ["parallel.pipeline=2"], "DP2": [], "DP3": []}


class Bench:
    """A folder with models and one run folder, which hosts share."""

    def __init__(self, place: Path) -> None:
        self.place, self.models, self.runs = place, place / "models", place / "runs"
        save_models(self.models)

    def fresh(self) -> None:
        shutil.rmtree(self.runs, ignore_errors=True)
        self.runs.mkdir()

    def options(self, *more: str, iterations: int = 3) -> list[str]:
        models = [f"model.policy={self.models}/policy", f"model.reward={self.models}/reward"]
        return [*RL, *models, f"run.dir={self.runs}", f"run.iterations={iterations}", "checkpoint.every=1", *more]

    def hosts(self, count: int, *, private: bool = False, resolves: str = "address") -> Hosts:
        own = [self.runs] if private else []
        shared = [ROOT, self.models, *([] if private else [self.runs])]
        return Hosts(count, shared=shared, private=own, resolves=resolves)

    @property
    def run(self) -> Path:
        return self.runs / "run"


# --------------------------------------------------------------------------------------------------------- the layouts
def layout(bench: Bench, name: str) -> dict[str, Any]:
    """The digest of the run on several hosts, and of the same layout on one."""
    count, options = int(name[-1]), bench.options(AS_HOSTS, *LAYOUTS[name])
    found = []
    for hosts, ranks, meet in ((count, 1, MEET), (1, count, ("--standalone",))):
        bench.fresh()
        with bench.hosts(hosts) as made:
            job = Job(made, bench.place, options, ranks=ranks, meet=meet)
            ended = job.wait(PATIENCE)
            assert len(ended) == hosts and status(bench.run)["state"] == "done", job.said()
        found.append(_digest(bench, 3))
    return {"hosts": count, "same digests as on one host": found[0] == found[1]}


def _digest(bench: Bench, iterations: int) -> dict[str, str]:
    digests.ITERATIONS = iterations
    return digests.digest_of(bench.run)


def static(bench: Bench) -> dict[str, Any]:
    """The line of the README, with --node-rank and --master-addr."""
    bench.fresh()
    meet = ("--node-rank=RANK", "--master-addr=node1", "--master-port=29500")
    with bench.hosts(2) as made:
        job = Job(made, bench.place, bench.options("parallel.tensor=2"), meet=meet)
        job.wait(PATIENCE)
    return {"state": status(bench.run).get("state"), "step": status(bench.run).get("step")}


# ------------------------------------------------------------------------------------------------------- hosts are lost
def lost(bench: Bench, how: str, number: int, *options: str, patience: float = PATIENCE) -> dict[str, Any]:
    """Seconds until the ranks and torchruns of each host end, after host `number` (from 0) is cut off or killed."""
    bench.fresh()
    with bench.hosts(2) as made:
        job = Job(made, bench.place, bench.options(*options, iterations=10000))
        job.wait_for(lambda: status(bench.run).get("step", 0) >= 2)
        began = time.monotonic()
        made[number].cut() if how == "cut" else made[number].kill()
        ranks: dict[int, float] = {}
        while len(ranks) < 2 and time.monotonic() < began + patience:
            for host in range(2):
                if host not in ranks and "scripts/train" not in _processes(made, host):
                    ranks[host] = round(time.monotonic() - began, 1)
            time.sleep(0.2)
        rest = job.wait(3)
        said = {f"host {host + 1}": sentence(job.logs[host]) for host in range(2)}
    kept = status(bench.run)
    return {
        "seconds until the ranks of each host had ended": {f"host {host + 1}": s for host, s in ranks.items()},
        "torchrun ended too": [f"host {host + 1}" for host in rest],
        "said": said,
        "run_status": {key: kept.get(key) for key in ("state", "exit_code", "message", "step")},
    }


def _processes(made: Hosts, host: int) -> str:
    lines = made[host].run("ps -eo stat,args").splitlines()
    return "\n".join(line for line in lines if "torch.distributed.run" not in line and not line.startswith("Z"))


def fewer(bench: Bench, before: str, after: Sequence[str], kept: Sequence[int]) -> dict[str, Any]:
    """The last host is cut off; hosts `kept` continue in another layout, as the same two layouts on one host do."""
    bench.fresh()
    count = int(before[-1])
    # Without the evaluation at the end, which the undisturbed run of the first layout would log.
    first, options = LAYOUTS[before], bench.options(QUICK, AS_HOSTS, "eval.prompts=0", iterations=10000)
    with bench.hosts(count) as made:
        job = Job(made, bench.place, [*options, *first])
        job.wait_for(lambda: status(bench.run).get("step", 0) >= 2)
        made[count - 1].cut()
        began = time.monotonic()
        ended = job.wait(PATIENCE, kept)
        assert len(ended) == len(kept), job.said()
        taken = time.monotonic() - began
        saved = int(sorted(path.name for path in (bench.run / "checkpoints").glob("step_*"))[-1][5:])
        job = Job(made, bench.place, [*options, *after, f"run.iterations={saved + 2}"], on=kept)
        job.wait(PATIENCE)
        assert status(bench.run).get("state") == "done", job.said()
    found = _digest(bench, saved + 2)
    bench.fresh()
    with bench.hosts(1) as made:
        for layout, ranks, end in ((first, count, saved), (after, len(kept), saved + 2)):
            words = [*options, *layout, f"run.iterations={end}"]
            job = Job(made, bench.place, words, ranks=ranks, meet=("--standalone",))
            job.wait(PATIENCE)
            assert status(bench.run).get("step") == end, job.said()
    return {
        "seconds until the others had ended": round(taken, 1),
        "continued from step": saved,
        "same digests as those layouts on one host": found == _digest(bench, saved + 2),
    }


# --------------------------------------------------------------------------------------------------- refused at a start
def refused(
    bench: Bench,
    *,
    own: Sequence[str] = (),
    options: Sequence[str] = (),
    prepare: Callable[[Hosts], object] | None = None,
    environment: dict[str, str] | None = None,
    meet: Sequence[str] = MEET,
    on: Sequence[int] | None = None,
    **kind: Any,
) -> dict[str, Any]:
    """own: options of host 2 alone. What each host said, and after how many seconds it ended."""
    bench.fresh()
    with bench.hosts(2, **kind) as made:
        if prepare:
            prepare(made)
        job = Job(
            made, bench.place, bench.options(*options), own={1: own}, environment=environment, meet=meet, on=on
        )  # fmt: skip
        ended = job.wait(PATIENCE)
        codes = {f"host {host + 1}": process.poll() for host, process in job.processes.items()}
        said = {f"host {host + 1}": sentence(log) or _last(log) for host, log in job.logs.items()}
    kept = status(bench.run)
    return {
        "seconds from the start": {f"host {host + 1}": round(seconds, 1) for host, seconds in ended.items()},
        "torchrun": codes,
        "said": said,
        "run_status": {key: kept.get(key) for key in ("state", "exit_code", "message")},
    }


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text().splitlines() if re.match(r"\S*(Error|Exception)\b", line.strip())]
    return lines[-1][:300] if lines else ""


def _hide(path: Path) -> Callable[[Hosts], object]:
    """On host 2 the folder is empty."""
    return lambda made: made[1].run(f"mount -t tmpfs none {path}")


def _other_code(made: Hosts) -> None:
    made[1].run(
        f"cd {ROOT}/gipo_mc; cp errors.py /tmp/e.py; echo '# old' >>/tmp/e.py; mount --bind /tmp/e.py errors.py"
    )


def cases(bench: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    config = bench.models / "run.yaml"
    config.write_text("policy: {lr: 0.0001}\n")
    return {
        "kill host 2": lambda: lost(bench, "kill", 1),
        "kill host 1": lambda: lost(bench, "kill", 0),
        "cut off host 2, 10 s": lambda: lost(bench, "cut", 1, QUICK),
        "cut off host 1, 10 s": lambda: lost(bench, "cut", 0, QUICK),
        "cut off host 2, TP2": lambda: lost(bench, "cut", 1, QUICK, "parallel.tensor=2"),
        "cut off host 2, default": lambda: lost(bench, "cut", 1),
        "cut off host 2, silence off, time-out of 30 s": lambda: lost(
            bench, "cut", 1, "parallel.silence_seconds=0", "parallel.timeout_minutes=0.5"
        ),
        "fewer: DP3 to TP2": lambda: fewer(bench, "DP3", ["parallel.tensor=2"], (0, 1)),
        "fewer: TP2 to one rank": lambda: fewer(bench, "TP2", [], (0,)),
        **{f"layout {name}": lambda name=name: layout(bench, name) for name in LAYOUTS},  # type: ignore[misc]
        "static rendezvous": lambda: static(bench),
        "refused: own name is 127.0.1.1": lambda: refused(bench, resolves="loopback"),
        "refused: own name is unknown": lambda: refused(
            bench, resolves="nothing", meet=("--node-rank=RANK", "--master-addr=10.77.0.1", "--master-port=29500")
        ),
        "refused: GLOO_SOCKET_IFNAME=lo": lambda: refused(bench, environment={"GLOO_SOCKET_IFNAME": "lo"}),
        "refused: run folder not shared": lambda: refused(bench, private=True),
        "refused: another option": lambda: refused(bench, own=["policy.lr=1e-3"]),
        "refused: other code": lambda: refused(bench, prepare=_other_code),
        "refused: an option that does not exist": lambda: refused(bench, own=["train.nonsense=1"]),
        "refused: no configuration file": lambda: refused(
            bench, options=[f"--config={config}"], prepare=_hide(bench.models)
        ),
        "refused: no model": lambda: refused(bench, prepare=_hide(bench.models / "reward")),
        "refused: first host unreachable": lambda: refused(bench, prepare=lambda made: made[0].cut()),
        "refused: second host does not come": lambda: refused(
            bench, on=[0], meet=("--nnodes=2", "--rdzv-conf=join_timeout=20", *MEET)
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this, or one of several between commas, in it")
    parser.add_argument("--record", type=Path, help="JSON file to add to")
    arguments = parser.parse_args()
    if reason := why_not():
        print(reason)
        return 2
    with tempfile.TemporaryDirectory(prefix="nodes-") as place:
        for name, case in cases(Bench(Path(place))).items():
            if any(part in name for part in arguments.only.split(",")):
                seen = case()
                print(f"{name}\n{json.dumps(seen, indent=2, ensure_ascii=False)}", flush=True)
                _record(arguments.record, {name: seen})
    return 0


def _record(path: Path | None, cases: dict[str, Any]) -> None:
    """Add what was seen to the file, with what it was seen on."""
    if path:
        earlier = json.loads(path.read_text())["cases"] if path.exists() else {}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        about = {"date": datetime.date.today().isoformat(), "commit": commit.stdout.strip(), "torch": torch.__version__,
                 "python": platform.python_version(), "machine": f"{os.cpu_count()} cores"}  # fmt: skip
        path.write_text(json.dumps({**about, "cases": earlier | cases}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
