"""DPO as a method of a study: trained on preference pairs by its own trainer, then evaluated as the runs of RL are: on
the same held-out prompts, with the same random numbers, by the same rewards and against the same reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.studies.runs import Method, Run, evaluated, train_rl, warnings

if TYPE_CHECKING:
    from gipo_mc.config import Config

#: Checkpoints that are evaluated, evenly spaced over the run.
POINTS = 4


def words(run: Run, steps: int, held_out: int) -> list[str]:
    """Options of a run of `steps` steps. It writes `POINTS` checkpoints, a tuning run the last alone; held_out: pairs
    of its one evaluation."""
    points = 1 if run.stage == "tuning" else POINTS
    return [
        f"run.iterations={steps}",
        f"checkpoint.every={steps // points}",
        f"checkpoint.keep={max(2, points)}",
        "eval.every=0",
        f"eval.prompts={held_out}",
    ]


def train(
    run: Run, method: Method, rl: Callable[..., Config], pairs: Callable[[Run, Method], Config]
) -> dict[str, Any]:
    """A run of a study and its outcome. rl: (run, method, more options) -> the configuration of a run of RL. pairs: the
    same of one that learns from pairs."""
    if not method.learns_from_pairs:
        return train_rl(rl(run, method))
    # PPO's run of the same seed and stage, for its prompts and random numbers; nothing of it is trained.
    ppo = replace(run, value=""), Method("PPO", "ppo", (), ())
    return train_and_evaluate(pairs(run, method), lambda *others: rl(*ppo, *others))


def train_and_evaluate(training: Config, evaluation: Callable[..., Config]) -> dict[str, Any]:
    """A run of `scripts/train_dpo.py` and its outcome, which has the shape of an RL run's; steps are optimizer steps.

    evaluation: takes options, gives the configuration of the RL run whose evaluation is wanted.
    """
    from gipo_mc.supervised import dpo

    dpo.train(training)
    path = Path(training.run.dir) / training.run.name
    policies = {0: training.model.policy}
    policies |= {int(kept.name.removeprefix("step_")): str(kept) for kept in path.glob("checkpoints/step_*")}
    rows = []
    for step, policy in sorted(policies.items()):
        models = f"model.policy={policy}", f"model.reference={training.model.policy}"
        rows.append({"step": step, **evaluate(evaluation(*models, f"run.name={training.run.name}/evaluation{step}"))})
    return {
        **evaluated(rows),
        "late": on_pairs(path, training.run.iterations),
        "trace": [],
        "smallest_mass": None,
        "hack_share": {},
        "warnings": warnings(path),
    }


def evaluate(config: Config) -> dict[str, float]:
    """What an RL run so configured finds before its first iteration."""
    from gipo_mc.rl.evaluate import evaluate_policy
    from gipo_mc.rl.setup import set_up
    from gipo_mc.run.session import open_session

    with open_session(config, "evaluate") as session:
        metrics = evaluate_policy(set_up(session), config)
        session.log(0, metrics)
    return metrics


def on_pairs(path: Path, steps: int) -> dict[str, float]:
    """How the run did on its pairs: "pairs/{loss,accuracy,margin}" over the last fifth of the steps, and the same of
    the held-out pairs at the end, "pairs/held_out/..."."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    tail = [row for row in rows if row["step"] > steps - max(1, steps // 5)]
    found = {f"pairs/{name}": sum(row[name] for row in tail) / len(tail) for name in ("loss", "accuracy", "margin")}
    last = rows[-1]
    return found | {f"pairs/held_out/{name}": last[f"eval/{name}"] for name in ("loss", "accuracy", "margin")}
