"""The runs of a study, each carried out once, by forked workers, and what is kept of them.

A run is a run of the trainer like any other, in a folder of its own. When it ends, what the study reads of it is put
into `outcome.json` and its checkpoints go away; a run with an outcome is never run again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.studies.costs import spent

if TYPE_CHECKING:
    from gipo_mc.config import Config


@dataclass(frozen=True)
class Method:
    """A method of the study. preset: algorithm.name, or "dpo" for one that learns from pairs. tuned, values: the keys
    that are tuned, and the candidates, a value for each key with blanks between them.
    follows: of what is no rival, the method whose chosen value it takes instead of being tuned."""

    title: str
    preset: str
    tuned: tuple[str, ...]
    values: tuple[str, ...]
    others: tuple[str, ...] = ()
    follows: str = ""

    @property
    def learns_from_pairs(self) -> bool:
        return self.preset == "dpo"


@dataclass(frozen=True)
class Run:
    """One training run: `method` with its tuned keys at `value`, on the prompts of `data`."""

    stage: str
    method: str
    value: str
    seed: int
    data: str = "builtin"

    @property
    def name(self) -> str:
        mixture = self.data.replace(":", "-") + "-" if self.data != "builtin" else ""
        return f"{self.stage}/{mixture}{self.method}-{self.value.replace(' ', '-')}-seed{self.seed}"


def own_words(run: Run, method: Method, folder: Path) -> list[str]:
    """Options that every run has: where it is, and what is the method's own."""
    return [
        f"run.dir={folder / f'seed{run.seed}'}",
        f"run.name={run.name}",
        f"run.seed={run.seed}",
        "device=cpu",
        *method.others,
        *(f"{key}={value}" for key, value in zip(method.tuned, run.value.split(), strict=True)),
    ]


def common_words(run: Run, method: Method, size: Mapping[str, Any], folder: Path) -> list[str]:
    """Options that every study gives to a run of RL. size: iterations, batch (responses of an iteration), every
    (iterations between evaluations of a final run; a tuning run has one at its end), held_out (prompts of a domain)."""
    return [
        f"algorithm.name={method.preset}",
        *own_words(run, method, folder),
        f"run.iterations={size['iterations']}",
        f"rollout.batch_size={size['batch']}",
        f"algorithm.mini_batch_size={size['batch'] // 2}",
        "checkpoint.every=0",
        f"eval.every={0 if run.stage == 'tuning' else size['every']}",
        f"eval.prompts={size['held_out']}",
    ]


def evaluations(run: Run, size: Mapping[str, Any]) -> int:
    """How often such a run evaluates, its start and its end included."""
    return 2 if run.stage == "tuning" else 1 + size["iterations"] // size["every"]


def outcome_path(run: Run, folder: Path) -> Path:
    return folder / f"seed{run.seed}" / run.name / "outcome.json"


def finished(run: Run, folder: Path) -> dict[str, Any] | None:
    """The outcome of a run that has ended, well or badly; None of one that has not."""
    path = outcome_path(run, folder)
    return json.loads(path.read_text()) if path.exists() else None


# -------------------------------------------------------------------------------------------------- one run, in a fork
def carry_out(run: Run, train: Callable[[], dict[str, Any]], folder: Path) -> None:
    """Train, in this process, and leave the outcome behind."""
    from gipo_mc.errors import NumericsError

    begin, processor, path = time.monotonic(), time.process_time(), outcome_path(run, folder)
    found: dict[str, Any] = {}
    failure = ""
    try:
        found = train()
    except NumericsError as error:  # numbers that blow up are a result; a full disk is none
        failure = f"{type(error).__name__}: {error}"
    for left in ("checkpoints", "tensorboard"):
        shutil.rmtree(path.parent / left, ignore_errors=True)
    about = {"run": vars(run) | {}, "failure": failure, "seconds": time.monotonic() - begin}
    leave(found | about | {"cost": spent(path.parent, processor)}, folder)


def leave(outcome: Mapping[str, Any], folder: Path) -> None:
    """Write an outcome, whole or not at all, where `finished` finds it."""
    path = outcome_path(Run(**outcome["run"]), folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(outcome))
    partial.replace(path)


def train_rl(config: Config) -> dict[str, Any]:
    """A run of RL. One that was interrupted has no checkpoint: it begins again in the folder it began in."""
    from gipo_mc.rl import gi_ppo

    gi_ppo.train(config)
    return read_outcome(Path(config.run.dir) / config.run.name, config.run.iterations)


#: First parts of the names of metrics whose late means a study keeps.
_LATE = {"group", "kl", "reward", "time", "policy", "critic", "signal", "gain", "disagreement"}


def read_outcome(path: Path, iterations: int) -> dict[str, Any]:
    """What the study keeps of a run folder: the last evaluation, all evaluations (`curve`), the groups every few
    iterations (`trace`), means over the last fifth (`late`), share of HACK tokens there by domain, first warnings."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    if last["step"] != iterations:
        raise ValueError(f"{path} has {last['step']} iterations, not {iterations}.")
    tail = [row for row in rows if row["step"] > iterations - max(1, iterations // 5)]
    names = [name for name in last if name.partition("/")[0] in _LATE]
    late = {name: _mean(row.get(name) for row in tail) for name in names}
    traced = ("group/0/mass", "group/1/mass", "group/domain_auc", "group/p_high", "group/best", "kl/mean")
    return {
        **evaluated([row for row in rows if "gold/mean" in row]),
        "late": {name: value for name, value in late.items() if value is not None},
        "trace": [
            {"step": row["step"], **{name: row[name] for name in traced if name in row}}
            for row in rows
            if row["step"] and (row["step"] % 10 == 0 or row["step"] == 1)
        ],
        "smallest_mass": min((m for row in rows if (m := _smaller(row)) is not None), default=None),
        "hack_share": _hack_share(path, iterations),
        "warnings": warnings(path),
    }


def evaluated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows with an evaluation: all figures of the last one (`final`), the main ones of each (`curve`)."""
    names = ("gold/", "eval/", "worst/domain_gold")
    return {
        "final": {name: value for name, value in rows[-1].items() if name.startswith(names)},
        "curve": [{"step": row["step"], **{name: row[name] for name in row if _curved(name)}} for row in rows],
    }


def _curved(name: str) -> bool:
    return name.startswith(("gold/domain/", "eval/reward/domain/", "eval/kl/")) or name in {
        "gold/mean",
        "eval/reward/mean",
    }


def _smaller(row: dict[str, Any]) -> float | None:
    masses = [row[name] for name in ("group/0/mass", "group/1/mass") if row.get(name) is not None]
    return min(masses) if len(masses) == 2 else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _hack_share(path: Path, iterations: int) -> dict[str, float]:
    """Mean share of HACK among the tokens of the responses that the last fifth of the iterations kept, by domain."""
    shares: dict[str, list[float]] = {}
    for line in (path / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["step"] > iterations - max(1, iterations // 5):
            words = row["response"].split()
            shares.setdefault(row["domain"], []).append(words.count("HACK") / max(1, len(words)))
    return {domain: sum(found) / len(found) for domain, found in sorted(shares.items())}


def warnings(path: Path) -> dict[str, dict[str, Any]]:
    """Kind of warning -> the iteration that gave it first, how often it was given, and its first sentence."""
    kinds = {
        "collapsed": "have collapsed",
        "empty": "is empty",
        "length_only": "follow the length",
        "wrong_best": "is taken for the best one",
        "unlearns": "un-learn",
    }
    found: dict[str, dict[str, Any]] = {}
    file = path / "warnings.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        row = json.loads(line)
        text = str(row.get("text") or row.get("message") or row)
        kind = next((kind for kind, sign in kinds.items() if sign in text), "other")
        entry = found.setdefault(kind, {"first": row.get("step"), "count": 0, "text": text[:300]})
        entry["count"] += 1
    return found


# ------------------------------------------------------------------------------------------------------------- workers
def forked(jobs: Sequence[tuple[Any, tuple[Any, ...]]], folder: Path, workers: int) -> Iterator[tuple[Any, float]]:
    """Carry out (name, (function, *arguments)) in forks of this process, which start in a tenth of a second because it
    has imported torch, with one thread each; yields (name, seconds) as they end. What they print goes to `folder`/logs.
    Raises RuntimeError with the end of that where one fails."""
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(jobs))
    busy: dict[Any, tuple[Any, Path, float]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                name, call = waiting.pop()
                began = time.monotonic()
                log = folder / "logs" / (re.sub(r"[^\w.-]+", "-", getattr(name, "name", str(name))) + ".txt")
                log.parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_quietly, args=(log, call))
                process.start()
                busy[process] = (name, log, began)
            for process in [p for p in busy if not p.is_alive()]:
                name, log, begin = busy.pop(process)
                if process.exitcode:
                    title, said = getattr(name, "name", name), log.read_text()[-2000:]
                    raise RuntimeError(f"{title} ended with {process.exitcode}; the end of {log}:\n{said}")
                yield name, time.monotonic() - begin
            time.sleep(0.2)
    finally:
        for process in busy:
            process.kill()


def trained(folder: Path) -> bool:
    """Has the run in this folder ended well?"""
    status = folder / "run_status.json"
    return status.exists() and json.loads(status.read_text())["state"] == "done"


def _quietly(log: Path, call: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = 0
        try:
            call[0](*call[1:])
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
