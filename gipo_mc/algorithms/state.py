"""What an RL run remembers between iterations: plain numbers, equal on every rank, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gipo_mc.algorithms.group_inference import GroupState
from gipo_mc.algorithms.signal import ema, normalised, running_std
from gipo_mc.errors import CheckpointError


@dataclass(frozen=True)
class RLState:
    """groups: how the inferred groups stand.
    reward_mean, reward_std: running mean and standard deviation of the raw reward; None before the first batch.
    signal_std: running standard deviation of the signal S.
    kl_coef: eta where it follows a target KL, None where it is constant or before the first batch.
    dro_weight_M: q_g of group-DRO, one for each group.
    alarms: alarm -> iterations in a row in which it held (`group_diagnostics`).
    """

    groups: GroupState
    dro_weight_M: tuple[float, ...]
    reward_mean: float | None = None
    reward_std: float | None = None
    signal_std: float | None = None
    kl_coef: float | None = None
    alarms: Mapping[str, int] = field(default_factory=dict)

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
    """(S', state): the signal over its running standard deviation, centred; see `signal.normalised`. [B]."""
    state = replace(state, signal_std=running_std(state.signal_std, signal_B, decay))
    assert state.signal_std is not None
    return normalised(signal_B, state.signal_std), state
