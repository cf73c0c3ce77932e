"""The GI-PPO loop (Zheng et al., arXiv 2310.11971), top to bottom in the order of the data:

prompts -> rollout -> model outputs, sifted -> experience -> critic and group classifier -> policy -> log, checkpoint.

The baselines and controls are the same loop: `algorithm.name` sets where groups, KL weights and advantages come from
(`gipo_mc.presets`), and no line here depends on it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gipo_mc.algorithms.group_diagnostics import count_alarms, follow, off_warnings, warnings
from gipo_mc.algorithms.state import RLState
from gipo_mc.config import Config
from gipo_mc.parallel.step_checks import still_sentence
from gipo_mc.parallel.timing import Phases
from gipo_mc.rl.evaluate import evaluate_policy
from gipo_mc.rl.experience import Experience
from gipo_mc.rl.hacking.alarms import count_hacking, hacking_examples, hacking_warnings
from gipo_mc.rl.hacking.metrics import Looks, looks
from gipo_mc.rl.metrics import (
    check_health,
    check_learned,
    check_start,
    clipped_warning,
    count_steps,
    iteration_metrics,
    sample_rows,
    sampler_warning,
    spreads,
    waiting_warning,
)
from gipo_mc.rl.rollout import roll_out, take_prompts
from gipo_mc.rl.scoring import score
from gipo_mc.rl.setup import RLSetup, restore, set_up
from gipo_mc.rl.shaping import shape
from gipo_mc.rl.sifting import Sifted, sift
from gipo_mc.rl.update_critic import update_critic
from gipo_mc.rl.update_policy import update_policy
from gipo_mc.run.session import Session, open_session

#: Responses of each iteration that go into samples.jsonl.
KEPT_RESPONSES = 8


def train(config: Config) -> None:
    """Run the algorithm as configured, from the start or from the run folder's last checkpoint."""
    with open_session(config, "train_gi_ppo") as session:
        with session.console.share("loading models and data"):
            setup = set_up(session)
            state = restore(session, setup)
        if session.start == 0 and setup.evaluates:
            with session.console.share("evaluation") as tell:
                before = evaluate_policy(setup, config, tell)
            session.log(0, before)
        for step in range(session.start, config.run.iterations):
            session.stop_point(step, partial(_save, session, setup, state, step))
            state, _ = iterate(session, setup, state, step)
            if session.checkpoint_due(step + 1):
                _save(session, setup, state, step + 1)
        session.console.done(session.folder.results())


def iterate(session: Session, setup: RLSetup, state: RLState, step: int) -> tuple[RLState, dict[str, float]]:
    """One iteration. Returns the state after it, and the metrics."""
    config, models = session.config, setup.models
    phases = Phases(session.layout, session.offloader.apart, session.console.share)

    prompts = take_prompts(setup.prompts, config, step)
    with phases("rollout", len(prompts)) as tell:
        rollout = roll_out(setup.rollout_engine, setup.tokenizer, prompts, config, step, on_step=tell)
    outputs = score(models, prompts, rollout, config, phases)
    session.stop_point(step, partial(_save, session, setup, state, step))  # nothing was updated yet: as it began
    sifted, health = sift(prompts, rollout, outputs, state.health, config, setup.tokenizer, setup.troubles)
    state, seen = replace(state, health=health), None
    metrics: dict[str, float] = {}
    if len(sifted.prompts) >= session.layout.data:
        seen, state, metrics = _learn(session, setup, sifted, state, step, phases)
    metrics |= sifted.metrics
    if session.evaluation_due(step + 1) and setup.evaluates:
        with phases("evaluation") as tell:
            metrics |= evaluate_policy(setup, config, tell)
    metrics |= phases.metrics()
    metrics["throughput/tokens_per_second"] = int(rollout.sequences.response_length_B.sum()) / metrics["time/total"]
    _show(session, setup, sifted, seen, metrics, state, step)
    check_health(state.health, sifted.cause, config)
    if step + 1 == config.run.iterations:
        check_learned({role: engine.updates() for role, engine in setup.engines.items()}, sifted.cause, config)
    return state, metrics


def _save(session: Session, setup: RLSetup, state: RLState, step: int) -> None:
    remembered = {"groups": state.to_dict(), "health": state.health.to_dict()}
    session.save(step, setup.engines, setup.tokenizers, remembered)


def _learn(
    session: Session, setup: RLSetup, sifted: Sifted, state: RLState, step: int, phases: Phases
) -> tuple[tuple[Experience, Looks], RLState, dict[str, float]]:
    """Shaping and both updates, with what remains of the rollout batch, and a look at its responses."""
    config, models = session.config, setup.models
    with phases("advantages"):
        experience, state = shape(sifted.rollout, sifted.outputs, state, config, setup.group_source)
    if step == 0 and setup.starts_as_reference:
        check_start(experience, session.dtype, one_layout=session.layout.beside is None)
    with phases("update_critic", len(experience)) as tell:
        critic_metrics = update_critic(models, experience, config, step, tell)
    policy_metrics: dict[str, float] = {}
    if step >= config.algorithm.critic_warmup:
        with phases("update_policy", len(experience)) as tell:
            policy_metrics = update_policy(models.policy, experience, config, step, tell)
    look = looks(experience.rollout.sequences, setup.tokenizer, config.rollout.refusals)
    metrics = iteration_metrics(experience, state, config, step, look) | critic_metrics | policy_metrics
    alarms = count_alarms(state.alarms, metrics, config.algorithm.inferred)
    health = follow(count_steps(state.health, metrics), spreads(experience, metrics, config))
    return (experience, look), replace(state, alarms=alarms, health=count_hacking(health, metrics)), metrics


def _show(
    session: Session,
    setup: RLSetup,
    sifted: Sifted,
    seen: tuple[Experience, Looks] | None,
    metrics: dict[str, float],
    state: RLState,
    step: int,
) -> None:
    session.log(step + 1, metrics)
    texts = [sifted.cause]
    if session.logger:
        session.logger.samples(step + 1, sifted.bad_rows)
    if seen is not None:
        experience, look = seen
        session.distribution(step + 1, "reward", experience.outputs.reward_B, experience.rollout.domain_B)
        examples = hacking_examples(sifted.prompts, experience, setup.tokenizer, metrics, look)
        if session.logger:
            kept = sample_rows(sifted.prompts, experience, setup.tokenizer, KEPT_RESPONSES)
            session.logger.samples(step + 1, kept + examples)
        texts += hacking_warnings(state.health, metrics, examples)
        texts += warnings(state.alarms, metrics, state.groups.best_group)
        texts += off_warnings(state.health, spreads(experience, metrics, session.config))
        texts += [sampler_warning(metrics, str(session.dtype).removeprefix("torch.")), clipped_warning(sifted, state)]
    if step == session.start:
        texts += [still_sentence(engine.first_step, role) for role, engine in setup.engines.items()]
        texts.append(waiting_warning(session.config))
    for text in filter(None, texts):
        session.warn(text)
