"""The sections `rollout` and `algorithm`: what reinforcement learning generates, and what it makes of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gipo_mc.config.section import LARGE, Section, changeable, line_breaks_are_meant
from gipo_mc.presets import PRESETS


class RolloutConfig(Section):
    batch_size: int = Field(64, ge=1, le=LARGE, description="responses of one iteration, over all ranks")
    samples_per_prompt: int = Field(
        1, ge=1, le=LARGE, description="responses to each prompt; batch_size is a multiple of it"
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature; log-probs use the same")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass; 1: off")
    top_k: int = Field(0, ge=0, le=10**9, description="candidates kept; 0: all")
    max_new_tokens: int = Field(64, ge=1, le=LARGE, description="longest response, EOS counted")
    engine: Literal["megatron", "vllm"] = changeable(
        "megatron", description="what generates: the training ranks' own model, or vLLM inside them"
    )
    slots: int = changeable(0, ge=0, le=LARGE, description="responses that a rank generates at a time; 0: all")
    prefill_tokens: int = changeable(
        0, ge=0, le=10**9, description="prompt tokens of one pass of generation; 0: 8192 on CUDA, 256 on a CPU"
    )
    kv_cache_gib: float = changeable(
        0.0, ge=0, le=10**6, description="GiB of each rank for keys and values; 0: half of the free memory"
    )
    stop: list[str] = Field(default_factory=list, description="strings that end a response, like EOS")
    refusals: list[str] = changeable(
        default_factory=list, description="phrases that metrics take for a refusal; none: a built-in list"
    )

    @field_validator("stop")
    @classmethod
    def _line_breaks(cls, value: list[str]) -> list[str]:
        return [line_breaks_are_meant(text) for text in value]


class AlgorithmConfig(Section):
    """What is trained, and how; docs/algorithm.md has the formulas. `name` sets other keys, see `gipo_mc.presets`."""

    name: str = Field("gi_ppo", description="a known combination of the keys below; algorithm.preset is the same")
    # ------------------------------------------------------------------------------------- where the groups come from
    groups_from: Literal["classifier", "none", "domain", "reward", "gain", "uniform"] = Field(
        "classifier",
        description="group probabilities p: inferred; one group; known domains (oracle); reward or gain > mean; 1/M",
    )
    groups: int = Field(2, ge=1, le=16, description="groups M (domain: as many as the prompts have domains)")
    assignment: Literal["soft", "hard"] = Field("soft", description="the policy side uses p, or 1 for the likeliest")
    group_input: Literal["xy", "prompt"] = Field("xy", description="what the classifier reads")
    group_head: Literal["mlp", "linear"] = Field("mlp", description="classifier on the trunk's features")
    group_trunk: Literal["detached", "shared", "own"] = Field(
        "detached", description="the critic's trunk without or with the classifier's gradient, or a model of its own"
    )
    classifier_every: int = Field(1, ge=1, le=10**9, description="train the classifier in one of so many iterations")
    beta_critic: float = Field(1.0, ge=0, description="weight of R_var in the classifier's loss")
    balance: float = Field(0.0, ge=0, description="weight of KL(mean p || uniform) in the classifier's loss")
    # ------------------------------------------------------------------------------------------------- the signal S
    signal: Literal["reward", "gain", "disagreement", "return", "advantage"] = Field(
        "reward", description="X of the signal S; gain: reward minus the reference's; disagreement: of reward.models"
    )
    reference_samples: int = Field(
        0,
        ge=0,
        le=1024,
        description="the reference's responses to each prompt, whose mean reward a gain is over; 0: none",
    )
    signal_form: Literal["value", "log_prob"] = Field("value", description="S of X itself, or of log pi X (the paper)")
    signal_tokens: Literal["mean", "sum"] = Field("mean", description="S over the tokens of a response")
    signal_normalize: bool = Field(True, description="S minus its mean, over its running standard deviation")
    signal_decay: float = Field(0.95, ge=0, lt=1, description="EMA of means and standard deviations")
    weights: Literal["size", "population"] = Field("size", description="omega_g of the variance: P_g / N, or 1 / M")
    # ------------------------------------------------------------------------------------------------- the policy side
    penalty: Literal["variance", "none", "group_dro"] = Field(
        "variance", description="beta R_var in the policy loss, nothing, or group-DRO weights of the groups"
    )
    beta_policy: float = Field(0.3, ge=0, description="weight of R_var in the policy loss")
    beta_ramp: int = Field(20, ge=0, le=10**9, description="iterations over which beta_policy rises from 0")
    mass_floor: float = Field(0.05, ge=0, lt=0.5, description="groups with less mass do not move the policy")
    penalty_over: Literal["tokens", "responses"] = Field(
        "tokens", description="what R_var's gradient is a mean over; tokens: as in PPO's loss (signal_form=value)"
    )
    reweight_cap: float = Field(0.8, ge=0, description="bound of 2 beta |R_g - Rbar|; 0: off")
    dro_step: float = Field(0.05, ge=0, description="group_dro: step of the exponentiated gradient, an iteration")
    group_statistics: Literal["exact", "rollout"] = Field(
        "exact", description="statistics of later mini-batches: a forward pass first, or the rollout's"
    )
    best_group: Literal["reward", "gain", "objective"] = Field(
        "reward", description="g_high has the highest mean raw reward or gain, or the highest R_g (the paper)"
    )
    best_group_decay: float = Field(0.9, ge=0, lt=1, description="EMA of what picks g_high")
    # --------------------------------------------------------------------------------------------------- KL and PPO
    kl_penalty: Literal["adaptive", "fixed", "none", "adaptive_mean"] = Field(
        "adaptive", description="a sequence's KL is weighted by eta p_i,high; eta; 0; eta mean_i p_i,high"
    )
    kl_coef: float = Field(0.05, ge=0, description="KL penalty eta per token")
    kl_target: float = Field(0.0, ge=0, description="eta follows this KL, nats per response; 0: eta is constant")
    kl_in: Literal["reward", "loss"] = Field("reward", description="where the penalty stands")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="estimator of the KL to the reference")
    advantage: Literal["gae", "rloo", "grpo"] = Field(
        "gae", description="from a critic, or from the other samples of the prompt (no critic): minus mean; over std"
    )
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda")
    clip: float = Field(0.2, gt=0, description="clip range of the ratio")
    value_clip: float = Field(0.2, ge=0, description="clip range of the value; 0: off")
    entropy_coef: float = Field(0.0, ge=0, description="entropy bonus")
    whiten_advantages: bool = Field(True, description="advantages to mean 0, std 1 over the rollout batch")
    reward_clip: float = Field(0.0, ge=0, description="clip of the normalised reward; 0: off")
    normalize_reward: bool = Field(False, description="pay (reward - running mean) / running std")
    reward_transform: Literal["none", "log_sigmoid"] = Field(
        "none", description="pay the reward, or log sigmoid((reward - the reference's mean) / reward_scale)"
    )
    reward_scale: float = Field(1.0, gt=0, description="reward_transform=log_sigmoid: the gain that it saturates at")
    outlier: float = changeable(
        20.0, ge=0, description="rewards beyond so many times the usual reach, and 10, are winsorised; 0: off"
    )
    invalid_patience: int = changeable(
        5, ge=1, description="iterations in a row with responses left out as not finite before the run stops"
    )
    epochs: int = Field(1, ge=1, le=LARGE, description="passes over a rollout batch")
    mini_batch_size: int = Field(32, ge=1, le=LARGE, description="sequences of one optimizer step, over all ranks")
    critic_epochs: int = Field(
        0, ge=0, le=LARGE, description="the same for critic and classifier (stage 1); 0: as epochs"
    )
    critic_warmup: int = Field(0, ge=0, le=10**9, description="first iterations that train critic and classifier only")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"algorithm.name={value!r} is no known algorithm: write one of {', '.join(PRESETS)}")
        return value

    @field_validator("groups_from", "kl_penalty", "penalty", mode="before")
    @classmethod
    def _yaml_null(cls, value: object) -> object:
        return "none" if value is None else value

    @property
    def inferred(self) -> bool:
        """Is there a classifier?"""
        return self.groups_from == "classifier" and self.groups > 1

    @property
    def group_count(self) -> int:
        """M, 1 where there are no groups."""
        return 1 if self.groups_from == "none" else self.groups

    def problems(self) -> list[str]:
        """Combinations of keys that have no meaning, each with the fix."""
        found = []
        if self.groups_from in ("reward", "gain") and self.groups != 2:
            found.append(
                f"algorithm.groups_from={self.groups_from} makes two groups, above and below the mean, not "
                f"algorithm.groups={self.groups}: set algorithm.groups=2"
            )
        keys = ("signal", "best_group", "groups_from", "reward_transform")
        gains = [f"{key}={getattr(self, key)}" for key in keys if getattr(self, key) in ("gain", "log_sigmoid")]
        if gains and not self.reference_samples:
            found.append(
                f"algorithm.{gains[0]} compares a reward with those of the reference's own responses to the "
                "prompt, and algorithm.reference_samples=0 asks for none: set it to 4"
            )
        if self.reward_transform != "none" and self.normalize_reward:
            found.append(
                f"algorithm.reward_transform={self.reward_transform} pays what algorithm.normalize_reward would scale "
                "again: set algorithm.normalize_reward=false, and algorithm.reward_scale"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1" and self.kl_penalty != "none":
            found.append(
                "algorithm.kl_in=loss with algorithm.kl_estimator=k1 has a gradient of mean 0 and holds nothing back: "
                "set algorithm.kl_estimator=k2"
            )
        if self.kl_target and (self.kl_penalty == "none" or not self.kl_coef):
            found.append(
                f"algorithm.kl_target={self.kl_target} moves eta by shares of itself, and there is none with "
                f"algorithm.kl_penalty={self.kl_penalty} and algorithm.kl_coef={self.kl_coef}: set kl_penalty=fixed or "
                "adaptive and a kl_coef above 0, or kl_target=0"
            )
        if self.advantage != "gae" and self.inferred and self.group_trunk != "own":
            found.append(
                f"algorithm.advantage={self.advantage} has no critic for the classifier to stand on: set "
                "algorithm.group_trunk=own"
            )
        if self.advantage != "gae" and self.critic_warmup and not self.inferred:
            found.append(
                f"algorithm.advantage={self.advantage} has no critic to train in the first algorithm.critic_warmup="
                f"{self.critic_warmup} iterations: set algorithm.critic_warmup=0"
            )
        return found
