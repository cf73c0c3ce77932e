"""Known algorithms by name: each is a few configuration keys over one training loop.

`algorithm.name` (or `algorithm.preset`, the same thing) puts a preset's keys in the place where it is named: over the
defaults and over files that come before, under the keys that stand beside it or come after. Baselines and controls
differ from GI-PPO in nothing but these keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from gipo_mc.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """title: for people. meaning: one clause. algorithm, rollout: keys of these sections."""

    title: str
    meaning: str
    algorithm: Mapping[str, Any]
    rollout: Mapping[str, Any] = field(default_factory=dict)


def _keys(groups_from: str, kl_penalty: str, penalty: str, advantage: str = "gae", **others: Any) -> dict[str, Any]:
    """The four keys that every preset sets, and what else it needs."""
    main = {"groups_from": groups_from, "kl_penalty": kl_penalty, "penalty": penalty, "advantage": advantage}
    return main | others


PRESETS: dict[str, Preset] = {
    "gi_ppo": Preset(
        "GI-PPO", "inferred groups, adaptive KL and variance penalty", _keys("classifier", "adaptive", "variance")
    ),
    "paper": Preset(
        "GI-PPO to the letter of the paper",
        "experimental: the variance of sum_t log pi A; expect near-empty groups",
        _keys(
            "classifier",
            "adaptive",
            "variance",
            group_head="linear",
            group_trunk="shared",
            signal="advantage",
            signal_form="log_prob",
            signal_tokens="sum",
            signal_normalize=False,
            weights="population",
            best_group="objective",
            best_group_decay=0.0,
            beta_policy=1.0,
            beta_critic=1.0,
            beta_ramp=0,
            mass_floor=0.0,
            reweight_cap=0.0,
        ),
    ),
    "ppo": Preset("PPO", "the baseline: fixed KL, no groups", _keys("none", "fixed", "none")),
    "ppo_no_kl": Preset("PPO without KL", "the other baseline: no KL, no groups", _keys("none", "none", "none")),
    "adaptive_kl": Preset(
        "Adaptive KL alone", "ablation: inferred groups, no variance penalty", _keys("classifier", "adaptive", "none")
    ),
    "variance_penalty": Preset(
        "Variance penalty alone", "ablation: inferred groups, fixed KL", _keys("classifier", "fixed", "variance")
    ),
    "mean_kl": Preset(
        "KL at eta times the mean p_high",
        "control: as much KL as adaptive KL, spread evenly",
        _keys("classifier", "adaptive_mean", "none"),
    ),
    "threshold_kl": Preset(
        "Reward-threshold KL",
        "control: KL on responses above the running mean reward, no classifier",
        _keys("reward", "adaptive", "none", groups=2),
    ),
    "threshold_gi_ppo": Preset(
        "GI-PPO with reward-threshold groups",
        "control: responses above and below the running mean reward instead of inferred groups, else GI-PPO",
        _keys("reward", "adaptive", "variance", groups=2),
    ),
    "oracle_gi_ppo": Preset(
        "GI-PPO with known domains (oracle)",
        "told the domain labels, else GI-PPO; a bound, no method",
        _keys("domain", "adaptive", "variance"),
    ),
    "oracle_group_dro": Preset(
        "Group-DRO with known domains (oracle)",
        "told the domain labels; fixed KL, the worst domain weighted up",
        _keys("domain", "fixed", "group_dro"),
    ),
    "rloo": Preset(
        "RLOO",
        "baseline without critic: leave-one-out advantage, fixed KL, no groups",
        _keys("none", "fixed", "none", "rloo"),
        {"samples_per_prompt": 4},
    ),
    "gi_rloo": Preset(
        "GI-RLOO",
        "GI-PPO without critic: leave-one-out advantage, classifier on a trunk of its own",
        _keys("classifier", "adaptive", "variance", "rloo", group_trunk="own"),
        {"samples_per_prompt": 4},
    ),
}


def lines() -> list[str]:
    """One line a preset, for `--help`."""
    width = max(map(len, PRESETS))
    return [f"  {name:<{width}}  {preset.title}: {preset.meaning}" for name, preset in PRESETS.items()]


def apply(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers of a configuration, the later ones over the earlier, with the last named preset put under its layer.

    A key of a layer that only repeats the preset which the same layer names goes away: it came from there (a run's
    resolved config.yaml), and another name in a later layer replaces it. Raises ConfigError where a layer names two.
    """
    result = [deepcopy(dict(layer)) for layer in layers]
    named = [_take_name(layer) for layer in result]
    last = max((position for position, name in enumerate(named) if name is not None), default=None)
    merged: list[dict[str, Any]] = []
    for position, (layer, name) in enumerate(zip(result, named, strict=True)):
        preset = PRESETS.get(name) if isinstance(name, str) else None
        if preset is not None:
            for section, keys in _sections(preset).items():
                own = layer.get(section)
                if isinstance(own, dict):
                    layer[section] = {k: v for k, v in own.items() if k not in keys or not _same(v, keys[k])}
        if position == last:
            merged.append(_sections(preset) if preset is not None else {})
            layer["algorithm"] = {"name": name, **(layer.get("algorithm") or {})}
        merged.append(layer)
    return merged


def _take_name(layer: dict[str, Any]) -> Any:
    """The algorithm that a layer names, taken out of it; None if it names none."""
    section = layer.get("algorithm")
    if not isinstance(section, dict):
        return None
    name, preset = section.pop("name", None), section.pop("preset", None)
    if name is not None and preset is not None and name != preset:
        raise ConfigError(
            f"algorithm.name={name} and algorithm.preset={preset} are two names for the same choice: give one of them."
        )
    chosen = preset if name is None else name
    if isinstance(chosen, str) and "${" in chosen:
        raise ConfigError(f"algorithm.name={chosen} is a reference, but it chooses other keys: write the name itself.")
    return chosen


def _sections(preset: Preset) -> dict[str, dict[str, Any]]:
    return {"algorithm": dict(preset.algorithm), "rollout": dict(preset.rollout)}


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)
