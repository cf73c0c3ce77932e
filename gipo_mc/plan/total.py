"""How long the whole run takes: its iterations, evaluations and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from gipo_mc.plan.cost import costs
from gipo_mc.plan.plan import Plan

#: Phases of an iteration that an evaluation has, too.
_EVALUATED = ("rollout", "behaviour_logprob", "reference_logprob", "rewards")


@dataclass(frozen=True)
class Total:
    """Seconds of all iterations, evaluations and checkpoints of a run, and how many there are."""

    iterations: int
    training: float
    evaluations: int
    evaluating: float
    saves: int
    saving: float

    @property
    def seconds(self) -> float:
        return self.training + self.evaluating + self.saving


def total(plan: Plan) -> Total | None:
    """None on a CPU, whose rates nobody stated. The first critic_warmup iterations leave the policy's update out.
    Evaluations are GI-PPO's, of all prompts that eval.prompts asks for; one more comes before the first iteration."""
    if plan.cost is None:
        return None
    config, number = plan.run.config, plan.run.config.run.iterations
    training, evaluations, each = number * plan.seconds, 0, 0.0
    if plan.run.command == "train_gi_ppo":
        training -= min(config.algorithm.critic_warmup, number) * plan.cost["update_policy"].seconds
        if config.data.evaluation and config.eval.prompts:
            evaluations, each = 1 + _due(number, config.eval.every), _evaluation(plan)
    saves = _due(number, config.checkpoint.every)
    return Total(number, training, evaluations, evaluations * each, saves, saves * plan.cost["save"].seconds)


def _due(iterations: int, every: int) -> int:
    """How often something comes that comes in one of `every` iterations, and in the last one; 0: only then."""
    return -(-iterations // every) if every else 1


def _evaluation(plan: Plan) -> float:
    config = plan.run.config
    rows = config.eval.prompts * max(len(set(config.data.domains)), 1)
    sizes = {"rollout.batch_size": max(rows, plan.grid.data), "rollout.samples_per_prompt": 1}
    run = plan.run.changed({**sizes, "algorithm.mini_batch_size": sizes["rollout.batch_size"]})
    pages = plan.memory.cache_pages
    cost = costs(run, plan.grid, plan.device, plan.width, plan.utilisation, plan.program, pages=pages)
    return sum(cost[name].seconds for name in _EVALUATED if name in cost)
