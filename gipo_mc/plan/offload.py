"""Which part of the models' state is on the device in a phase, where memory.offload lets some of it leave.

The rules are those of `gipo_mc.parallel.memory.offload`: two models beside each other while they score, one that trains
or is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from gipo_mc.plan.grid import Grid
from gipo_mc.plan.run import Run
from gipo_mc.plan.state import ModelState, model_state


@dataclass(frozen=True)
class _Moment:
    """weights: models whose weights are needed or on their way. optimizer, gradients: of which model, if of any."""

    weights: tuple[str, ...]
    optimizer: str = ""
    gradients: str = ""


def kinds_of(run: Run) -> frozenset[str]:
    """What may leave in this run; the supervised trainers keep everything."""
    return frozenset(run.config.memory.offload if run.command == "train_gi_ppo" else ())


def copied_by_saves(run: Run) -> bool:
    """Does a save copy what it writes to the host, because parts of trained models leave?"""
    return bool(kinds_of(run) & {"optimizer", "idle"})


def state_on_device(run: Run, states: Mapping[str, ModelState], phase: str) -> dict[str, int]:
    """Bytes of "weights", "gradients" and "optimizer" at the worst moment of a phase. states: of each model, by name,
    those left out that are gone for good."""
    found = [_at(moment, run, states) for moment in _moments(run, phase)]
    return max(found, key=lambda kinds: sum(kinds.values()))


def host_bytes(run: Run, states: Mapping[str, ModelState]) -> int:
    """Of the copies that the host keeps as long as the run lasts, on a rank: all that leaves, gradient buffers aside,
    which are freed. states: of each model, by name."""
    kinds, kept = kinds_of(run), 0
    for role in run.roles:
        state = states[role.name]
        kept += state.weights * (("idle" if role.trained else "frozen") in kinds)
        kept += state.optimizer * ("optimizer" in kinds)
    return kept


def moved_bytes(run: Run, grid: Grid, width: int) -> int:
    """That the first rank of the first stage moves in an iteration, out and in; part of it passes while something is
    computed. A trained model's weights come for the rollout or its values and for its update, and go when they have
    changed; the policy is there already when it scores."""
    kinds, moved = kinds_of(run), 0
    for role in run.roles:
        state = model_state(role, grid.of(role.trained), 0, 0, width)
        if role.trained:
            moved += 3 * state.weights * ("idle" in kinds) + 2 * state.optimizer * ("optimizer" in kinds)
        elif role.name != "eval reward":
            moved += state.weights * ("frozen" in kinds)
    return moved


def _moments(run: Run, phase: str) -> list[_Moment]:
    trained = [role.name for role in run.roles if role.trained]
    if phase == "scoring":
        order = [name for name in ("policy", "reference", "critic", "classifier", "reward", "critic") if run.role(name)]
        return [_Moment(pair) for pair in pairwise(order)]
    if phase == "save":
        return [_Moment((name,), name) for name in trained]
    if phase == "critic update":
        return [_Moment((name,), name, name) for name in trained if name != "policy"]
    if phase == "policy update":
        return [_Moment(("policy",), "policy", "policy")]
    return [_Moment(("policy",))]


def _at(moment: _Moment, run: Run, states: Mapping[str, ModelState]) -> dict[str, int]:
    kinds = kinds_of(run)
    found = {"weights": 0, "gradients": 0, "optimizer": 0}
    for role in run.roles:
        if (state := states.get(role.name)) is None:
            continue
        if role.name in moment.weights or ("idle" if role.trained else "frozen") not in kinds:
            found["weights"] += state.weights
        if role.name == moment.gradients or "idle" not in kinds:
            found["gradients"] += state.gradients
        if role.name == moment.optimizer or "optimizer" not in kinds:
            found["optimizer"] += state.optimizer
    return found
