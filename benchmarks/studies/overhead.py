"""What an iteration of GI-PPO costs beside one of PPO, by phase, on the built-in task.

Short runs of the three take turns, in an order that changes from round to round, each in a fork of its own. The policy
is all but frozen (its learning rate is 1e-12), so that all of them answer the same prompts with the same tokens and are
timed on the same work. Beside the seconds on the clock of each phase stand the processor's seconds of the whole
iteration, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.studies.runs import forked

SIDES: dict[str, tuple[str, ...]] = {
    "PPO": ("algorithm.name=ppo",),
    "GI-PPO (rollout)": ("algorithm.name=gi_ppo", "algorithm.group_statistics=rollout"),
    "GI-PPO (exact)": ("algorithm.name=gi_ppo", "algorithm.group_statistics=exact"),
}
WARM_UP = 5  # iterations that are not counted


def measure(folder: Path, reward: str, batch: int, seed: int, rounds: int, iterations: int = 30) -> dict[str, Any]:
    """{"seconds": side -> phase -> median over all counted iterations, "processor": side -> median processor seconds
    of each round, "totals": side -> median total of each round, "iterations": counted in each round, "rounds"}."""
    place = folder / "overhead"
    shutil.rmtree(place, ignore_errors=True)
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    totals: dict[str, list[float]] = {side: [] for side in SIDES}
    processor: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        names = list(SIDES)[turn % len(SIDES) :] + list(SIDES)[: turn % len(SIDES)]
        for side in names:
            name = f"{list(SIDES).index(side)}-{turn}"
            call = (_train, side, reward, batch, seed, iterations, folder / f"seed{seed}" / "reference", place, name)
            for _ in forked([(name, call)], place, 1):
                pass
            lines = (place / name / "metrics.jsonl").read_text().splitlines()
            counted = [row for row in map(json.loads, lines) if row["step"] > WARM_UP]
            rows[side] += counted
            totals[side].append(statistics.median(row["time/total"] for row in counted))
            processor[side].append(
                statistics.median(json.loads((place / name / "processor.json").read_text())[WARM_UP:])
            )
            wall, own = totals[side][-1] * 1e3, processor[side][-1] * 1e3
            print(f"overhead, round {turn + 1}: {side} {wall:.0f} ms, processor {own:.0f} ms", flush=True)
    phases = [name for name in rows["PPO"][0] if name.startswith("time/") and name != "time/total"] + ["time/total"]
    seconds = {
        side: {name.partition("/")[2]: statistics.median(row[name] for row in found) for name in phases}
        for side, found in rows.items()
    }
    return {
        "seconds": seconds,
        "processor": processor,
        "totals": totals,
        "iterations": iterations - WARM_UP,
        "rounds": rounds,
    }


def _train(
    side: str, reward: str, batch: int, seed: int, iterations: int, policy: Path, place: Path, name: str
) -> None:
    from gipo_mc.config import load_config
    from gipo_mc.rl import gi_ppo
    from gipo_mc.tools import builtin

    iterate, spent = gi_ppo.iterate, []

    def timed(*arguments: Any) -> Any:
        begin = time.process_time()
        found = iterate(*arguments)
        spent.append(time.process_time() - begin)
        return found

    gi_ppo.iterate = timed
    words = [
        f"run.dir={place}",
        f"run.name={name}",
        f"run.seed={seed}",
        f"run.iterations={iterations}",
        "device=cpu",
        f"model.policy={policy}",
        f"model.reward={reward}",
        *SIDES[side],
        f"rollout.batch_size={batch}",
        f"algorithm.mini_batch_size={batch // 2}",
        "policy.lr=1e-12",
        "checkpoint.every=0",
        "eval.prompts=0",
    ]
    gi_ppo.train(load_config(None, words, builtin.gi_ppo_base()))
    (place / name / "processor.json").write_text(json.dumps(spent))
