"""What an RL run remembers between iterations: plain numbers, equal on every rank, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gipo_mc.algorithms.distribution import winsorised
from gipo_mc.algorithms.group_inference import GroupState
from gipo_mc.algorithms.signal import ema, normalised, running_std
from gipo_mc.errors import CheckpointError

#: A signal so many times farther out than nine tenths of its batch does not enter its running standard deviation.
SIGNAL_OUTLIER = 20.0


@dataclass(frozen=True)
class Health:
    """What a run remembers to notice, and to survive, numbers that are wrong.

    reach: running distance from the median that nine tenths of a batch's rewards keep to; None before the first batch.
    usual: name -> its running mean, of what shows whether a part of the method is in effect off.
    counts: condition -> iterations in a row in which it held.
    """

    reach: float | None = None
    usual: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, as JSON holds them."""
        return {"reach": self.reach, "usual": dict(self.usual), "counts": dict(self.counts)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any] | None) -> Health:
        """What `to_dict` gave; healthy where a checkpoint of an earlier version has nothing of it."""
        saved = saved or {}
        return cls(saved.get("reach"), saved.get("usual", {}), saved.get("counts", {}))

    def counted(self, **holds: bool) -> Health:
        """With each named condition counted in this iteration; conditions that do not hold are forgotten."""
        counts = {**self.counts, **{name: self.counts.get(name, 0) + 1 for name, held in holds.items() if held}}
        return replace(self, counts={name: n for name, n in counts.items() if holds.get(name, True)})

    def reached(self, reach: float, decay: float) -> Health:
        """With the reach of this batch's rewards; one odd batch at most doubles what enters."""
        return replace(self, reach=ema(self.reach, min(reach, 2.0 * self.reach) if self.reach else reach, decay))


@dataclass(frozen=True)
class RLState:
    """groups: how the inferred groups stand.
    reward_mean, reward_std: running mean and standard deviation of the raw reward; None before the first batch.
    signal_std: running standard deviation of the signal S.
    kl_coef: eta where it follows a target KL, None where it is constant or before the first batch.
    dro_weight_M: q_g of group-DRO, one for each group.
    alarms: alarm -> iterations in a row in which it held (`group_diagnostics`).
    health: stands beside the others in a checkpoint, not among them: earlier versions have none.
    """

    groups: GroupState
    dro_weight_M: tuple[float, ...]
    reward_mean: float | None = None
    reward_std: float | None = None
    signal_std: float | None = None
    kl_coef: float | None = None
    alarms: Mapping[str, int] = field(default_factory=dict)
    health: Health = field(default_factory=Health)

    @classmethod
    def initial(cls, groups: int) -> RLState:
        """The state before the first iteration, with `groups` = M groups."""
        return cls(GroupState.initial(groups), dro_weight_M=(1.0 / groups,) * groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None: JSON holds them without loss. One flat object, as in every checkpoint so far;
        hence the names of two fields."""
        return {
            "reward_M": list(self.groups.mean_M),
            "weight_M": list(self.dro_weight_M),
            "reward_mean": self.reward_mean,
            "reward_std": self.reward_std,
            "signal_std": self.signal_std,
            "kl_coef": self.kl_coef,
            "best_group": self.groups.best_group,
            "flips": self.groups.flips,
            "alarms": dict(self.alarms),
            "steps": self.groups.steps,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> RLState:
        """The state that `to_dict` gave. Raises CheckpointError when a field is missing or unknown."""
        names = set(cls.initial(1).to_dict())
        if set(saved) != names:
            odd = ", ".join(sorted(names ^ set(saved)))
            raise CheckpointError(
                f"The saved group state has missing or unknown fields ({odd}): it was written by another version. "
                "Use that version, or start a new run from the exported weights."
            )
        groups = GroupState(tuple(saved["reward_M"]), saved["best_group"], saved["flips"], saved["steps"])
        running = {name: saved[name] for name in ("reward_mean", "reward_std", "signal_std", "kl_coef", "alarms")}
        return cls(groups, tuple(saved["weight_M"]), **running)


def track_reward(state: RLState, reward_B: Tensor, decay: float) -> RLState:
    """State with the running mean and standard deviation of the raw reward, this batch included.

    reward_B: [B] of the whole rollout batch, finite. An empty batch changes nothing.
    """
    if not reward_B.numel():
        return state
    mean = float(reward_B.detach().double().mean())
    return replace(
        state,
        reward_mean=ema(state.reward_mean, mean, decay),
        reward_std=running_std(state.reward_std, reward_B, decay),
    )


def normalised_signal(signal_B: Tensor, state: RLState, decay: float) -> tuple[Tensor, RLState]:
    """(S', state): the signal over its running standard deviation, centred; see `signal.normalised`. [B].

    Outliers enter the running standard deviation as the farthest signal that is none.
    """
    ordinary_B, _ = winsorised(signal_B, SIGNAL_OUTLIER)
    state = replace(state, signal_std=running_std(state.signal_std, ordinary_B, decay))
    assert state.signal_std is not None
    return normalised(signal_B, state.signal_std), state
