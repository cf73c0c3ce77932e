"""The GI-PPO loop (Zheng et al., arXiv 2310.11971), top to bottom in the order of the data:

prompts -> rollout -> model outputs -> experience -> critic and group classifier -> policy -> log, checkpoint.

The baselines and controls are the same loop: `algorithm.name` sets where groups, KL weights and advantages come from
(`gipo_mc.presets`), and no line here depends on it.
"""

from __future__ import annotations

from dataclasses import replace

from gipo_mc.algorithms.group_diagnostics import count_alarms, warnings
from gipo_mc.algorithms.state import RLState
from gipo_mc.config import Config
from gipo_mc.errors import NumericsError
from gipo_mc.rl.evaluate import evaluate_policy
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.metrics import iteration_metrics, sample_rows, sampler_warning
from gipo_mc.rl.rollout import roll_out, take_prompts
from gipo_mc.rl.scoring import score
from gipo_mc.rl.setup import RLSetup, restore, set_up
from gipo_mc.rl.shaping import shape
from gipo_mc.rl.update_critic import update_critic
from gipo_mc.rl.update_policy import update_policy
from gipo_mc.run.session import Session, open_session
from gipo_mc.run.timing import Phases
from gipo_mc.types import Prompt

#: Responses of each iteration that go into samples.jsonl.
KEPT_RESPONSES = 8
#: Iterations in a row in which every optimizer step was skipped before the run stops.
PATIENCE = 3


def train(config: Config) -> None:
    """Run the algorithm as configured, from the start or from the run folder's last checkpoint."""
    with open_session(config, "train_gi_ppo") as session:
        setup = set_up(session)
        state = restore(session, setup)
        broken = 0
        if session.start == 0 and setup.held_out is not None:
            session.log(0, evaluate_policy(setup, config))  # what the policy could do before
        for step in range(session.start, config.run.iterations):
            state, metrics = iterate(session, setup, state, step)
            broken = _skipped_in_a_row(broken, metrics)
            if broken >= PATIENCE:
                raise NumericsError(
                    f"Every optimizer step of the last {PATIENCE} iterations was skipped, because gradients were not "
                    "finite. Lower policy.lr or critic.lr, or continue from an earlier checkpoint."
                )
            if session.checkpoint_due(step + 1):
                session.save(step + 1, setup.engines, setup.tokenizers, {"groups": state.to_dict()})
        session.console.done(
            [("metrics", str(session.folder.metrics)), ("report", f"python scripts/report.py {session.folder.path}")]
        )


def iterate(session: Session, setup: RLSetup, state: RLState, step: int) -> tuple[RLState, dict[str, float]]:
    """One iteration. Returns the state after it, and the metrics."""
    config, models = session.config, setup.models
    phases = Phases(session.layout)

    prompts = take_prompts(setup.prompts, config, step)
    with phases("rollout"), session.progress("rollout", len(prompts)) as tell:
        rollout = roll_out(setup.rollout_engine, setup.tokenizer, prompts, config, step, on_step=tell)
    outputs = score(models, prompts, rollout, config, phases)
    with phases("advantages"):
        experience, state = shape(rollout, outputs, state, config, setup.group_source)
    with phases("update_critic"), session.progress("critic", len(prompts)) as tell:
        critic_metrics = update_critic(models, experience, config, step, tell)
    policy_metrics: dict[str, float] = {}
    if step >= config.algorithm.critic_warmup:
        with phases("update_policy"), session.progress("policy", len(prompts)) as tell:
            policy_metrics = update_policy(models.policy, experience, config, step, tell)

    metrics = iteration_metrics(experience, state, config, step) | critic_metrics | policy_metrics
    state = replace(state, alarms=count_alarms(state.alarms, metrics, config.algorithm.inferred))
    if session.evaluation_due(step + 1) and setup.held_out is not None:
        with phases("evaluation"):
            metrics |= evaluate_policy(setup, config)
    metrics |= phases.metrics()
    tokens = float(rollout.sequences.response_length_B.sum())
    metrics["throughput/tokens_per_second"] = tokens / metrics["time/total"]
    _show(session, setup, prompts, experience, metrics, state, step)
    return state, metrics


def _show(
    session: Session,
    setup: RLSetup,
    prompts: list[Prompt],
    experience: Experience,
    metrics: dict[str, float],
    state: RLState,
    step: int,
) -> None:
    session.log(step + 1, metrics)
    session.distribution(step + 1, "reward", experience.outputs.reward_B, experience.rollout.domain_B)
    if session.logger:
        session.logger.samples(step + 1, sample_rows(prompts, experience, setup.tokenizer, KEPT_RESPONSES))
    dtype = str(session.dtype).removeprefix("torch.")
    for text in [*warnings(state.alarms, metrics, state.groups.best_group), sampler_warning(metrics, dtype)]:
        if text:
            session.warn(text)


def _skipped_in_a_row(before: int, metrics: dict[str, float]) -> int:
    """Iterations in a row in which every optimizer step, or every one of the policy, was skipped. An iteration without
    any (a classifier at rest during the critic's warm-up) counts neither way."""
    stepped, updated = (
        {name.removesuffix(end) for name in metrics if name.endswith(end)} for end in ("/skipped", "/grad_norm")
    )
    if not stepped:
        return before
    return before + 1 if not updated or "policy" in stepped - updated else 0
