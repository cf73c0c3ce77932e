"""The sections of the configuration: every key with its type, bounds, default and meaning.

Combinations of keys that have no meaning are found here too; what depends on the ranks is in `layout.py`, what depends
on a model's shape in `gipo_mc.models.shape`. This file is a list and may be long.

A run that continues keeps the value of every option, unless the field says otherwise: `changeable`, or
`fixed_by_content` for the name of a file or model (`gipo_mc.run.resume` compares).
"""

from __future__ import annotations

from datetime import date
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from gipo_mc.presets import PRESETS

#: More than this of anything that a step holds is a slip of the hand.
LARGE = 2**20
#: What a run that continues may do with an option.
ResumeRule = Literal["fixed", "changeable", "content"]


def changeable(*default: Any, **field: Any) -> Any:
    """A field that may have another value when a run continues. Arguments: those of pydantic's `Field`."""
    return Field(*default, json_schema_extra={"on_resume": "changeable"}, **field)


def fixed_by_content(*default: Any, **field: Any) -> Any:
    """A field that names files or models, which may be moved or renamed when a run continues, but hold the same."""
    return Field(*default, json_schema_extra={"on_resume": "content"}, **field)


class Section(BaseModel):
    """Strict base: unknown keys are errors, fields are documented by their `description`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise PydanticCustomError("number", "Input should be a number, not yes or no")
        return value


def _line_breaks_are_meant(text: str) -> str:
    """Raises where a text holds the two characters \\n: YAML and shells give them for a line break that is not written
    in double quotes, and no text of a model would match."""
    if any(escape in text for escape in ("\\n", "\\r", "\\t")):
        raise PydanticCustomError(
            "escape",
            "it holds a backslash and a letter, not a line break: write it in double quotes inside the quotes of the "
            "shell, as in 'rollout.stop=[\"\\n\\nHuman:\"]'",
        )
    return text


def _on_or_off(value: object) -> object:
    """YAML reads a bare on or off as a boolean."""
    return ("on" if value else "off") if isinstance(value, bool) else value


class RunConfig(Section):
    dir: str = changeable("runs", description="folder that holds run folders")
    name: str = changeable("", description="name of the run folder; empty: the command's own name")
    iterations: int = changeable(20, ge=1, le=10**9, description="iterations (RL) or optimizer steps (the others)")
    seed: int = Field(1, ge=0, lt=2**31, description="seed of every random stream")
    resume: bool = changeable(True, description="continue from the last checkpoint of the run folder, if it has one")
    grace_seconds: float = changeable(
        25.0, gt=0, description="after SIGTERM or SIGUSR1: time to reach the end of a step; torchrun kills after 30"
    )


class ParallelConfig(Section):
    tensor: int = changeable(1, ge=1, le=LARGE, description="tensor-parallel ranks (TP)")
    pipeline: int = changeable(1, ge=1, le=LARGE, description="pipeline-parallel ranks (PP)")
    sequence: bool = changeable(False, description="sequence parallelism inside the tensor-parallel group")
    micro_batch_size: int = changeable(8, ge=1, le=LARGE, description="sequences of one pass through the pipeline")
    logit_rows: int = changeable(
        4096,
        ge=0,
        le=10**9,
        description="response tokens whose logits exist at a time; more are computed twice; 0: all",
    )
    timeout_minutes: float = changeable(10.0, gt=0, le=10**6, description="a collective that takes longer ends the job")
    distributed_optimizer: Literal["auto", "on", "off"] = Field(
        "auto",
        description="shard optimizer state over data-parallel ranks (ZeRO-1); auto: on CUDA",
    )

    @field_validator("distributed_optimizer", mode="before")
    @classmethod
    def _yaml_bool(cls, value: object) -> object:
        return _on_or_off(value)


class ModelConfig(Section):
    policy: str = changeable("", description="HF folder or hub name, or a run's checkpoint")
    reference: str = fixed_by_content(
        "", description="frozen reference of RL's KL and of DPO; empty: the policy's start"
    )
    critic: str = changeable("", description="start of the critic; empty: the reward model, else the policy")
    reward: str = fixed_by_content("", description="reward model; or python:package.module:function")
    tokenizer: str = fixed_by_content("", description="tokenizer folder; empty: the policy's")

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: object) -> object:
        return "" if value is None else value  # `model.policy=` on a command line


class DataConfig(Section):
    prompts: list[str] = fixed_by_content(
        default_factory=list, description="[files or hub names] of RL prompts, or builtin"
    )
    preferences: list[str] = fixed_by_content(default_factory=list, description="preference pairs (reward model, DPO)")
    demonstrations: list[str] = fixed_by_content(default_factory=list, description="demonstrations (SFT)")
    evaluation: list[str] = changeable(default_factory=list, description="held-out rows of the same kind")
    format: Literal["auto", "hh", "tldr", "pairs", "messages", "builtin"] = Field("auto", description="row format")
    domains: list[str] = fixed_by_content(
        default_factory=list, description="label of each file; empty: from the row or file"
    )
    prompt_length: int = Field(256, ge=1, le=LARGE, description="longest prompt in tokens; longer ones are left out")
    sequence_length: int = Field(512, ge=2, le=LARGE, description="longest prompt + response (SFT, reward model, DPO)")
    on_error: Literal["strict", "quarantine"] = Field("strict", description="malformed rows: stop, or skip")
    max_rows: int = Field(0, ge=0, le=10**12, description="use only this many rows of each file; 0: all")
    chat_template: bool = Field(False, description="render dialogues with the tokenizer's chat template")
    template_date: str = Field("2024-07-26", description="the date that a chat template writes, YYYY-MM-DD")
    reward_chat_template: Literal["auto", "on", "off"] = Field(
        "auto", description="render for a reward model with its own chat template; auto: as the policy's data"
    )
    special_tokens_in_text: Literal["auto", "refuse", "text", "allow"] = Field(
        "auto",
        description="text that spells a special token: leave out; characters; the token; auto: text, templated refuse",
    )
    response_separator: str = Field(
        "", description="text between prompt and response; empty: the space of HH and TL;DR"
    )
    join: Literal["separator", "exact"] = Field(
        "separator", description="plain prompt and response: stripped, with the separator; or exactly as they stand"
    )
    turns: Literal["last", "all"] = Field("last", description="SFT learns a dialogue's last assistant turn, or each")

    @field_validator("response_separator")
    @classmethod
    def _line_breaks(cls, value: str) -> str:
        return _line_breaks_are_meant(value)

    @field_validator("prompts", "preferences", "demonstrations", "evaluation", "domains", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("reward_chat_template", mode="before")
    @classmethod
    def _yaml_bool(cls, value: object) -> object:
        return _on_or_off(value)

    @field_validator("template_date", mode="before")
    @classmethod
    def _is_date(cls, value: object) -> object:
        try:
            return date.fromisoformat(str(value)).isoformat()  # YAML reads a bare date as one
        except ValueError:
            raise ValueError(f"data.template_date={value!r} is no date: write one like 2024-07-26") from None

    def problems(self) -> list[str]:
        """Combinations of keys that have no meaning, each with the fix."""
        if self.join == "exact" and self.chat_template:
            return ["data.join=exact is for plain text, and data.chat_template=true has the template join: set one"]
        if self.join == "exact" and self.response_separator:
            return ["data.join=exact puts no data.response_separator between prompt and response: set one of the two"]
        return []


class RolloutConfig(Section):
    batch_size: int = Field(64, ge=1, le=LARGE, description="responses of one iteration, over all ranks")
    samples_per_prompt: int = Field(
        1, ge=1, le=LARGE, description="responses to each prompt; batch_size is a multiple of it"
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature; log-probs use the same")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass; 1: off")
    top_k: int = Field(0, ge=0, le=10**9, description="candidates kept; 0: all")
    max_new_tokens: int = Field(64, ge=1, le=LARGE, description="longest response, EOS counted")
    micro_batch_size: int = changeable(0, ge=0, le=LARGE, description="sequences generated at a time on a rank; 0: all")
    stop: list[str] = Field(default_factory=list, description="strings that end a response, like EOS")

    @field_validator("stop")
    @classmethod
    def _line_breaks(cls, value: list[str]) -> list[str]:
        return [_line_breaks_are_meant(text) for text in value]


class AlgorithmConfig(Section):
    """What is trained, and how; docs/algorithm.md has the formulas. `name` sets other keys, see `gipo_mc.presets`."""

    name: str = Field("gi_ppo", description="a known combination of the keys below; algorithm.preset is the same")
    # ------------------------------------------------------------------------------------- where the groups come from
    groups_from: Literal["classifier", "none", "domain", "reward", "uniform"] = Field(
        "classifier",
        description="group probabilities p: inferred; one group; known domains (oracle); reward above its mean; 1/M",
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
    signal: Literal["reward", "return", "advantage"] = Field("reward", description="X of the signal S")
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
    reweight_cap: float = Field(0.8, ge=0, description="bound of 2 beta |R_g - Rbar|; 0: off")
    dro_step: float = Field(0.05, ge=0, description="group_dro: step of the exponentiated gradient, an iteration")
    group_statistics: Literal["exact", "rollout"] = Field(
        "exact", description="statistics of later mini-batches: a forward pass first, or the rollout's"
    )
    best_group: Literal["reward", "objective"] = Field(
        "reward", description="g_high has the highest mean raw reward, or the highest R_g (the paper)"
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
        if self.groups_from == "reward" and self.groups != 2:
            found.append(
                f"algorithm.groups_from=reward makes two groups, above and below the mean, not algorithm.groups="
                f"{self.groups}: set algorithm.groups=2"
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


class OptimizerConfig(Section):
    lr: float = changeable(1e-5, gt=0, description="peak learning rate")
    min_lr: float = changeable(0.0, ge=0, description="learning rate at the end of the decay")
    schedule: Literal["constant", "linear", "cosine"] = changeable("constant", description="decay after the warm-up")
    warmup: int = changeable(0, ge=0, le=10**9, description="optimizer steps of linear warm-up")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the gradient's mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="Adam's decay of the gradient's square")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    clip_grad: float = changeable(1.0, ge=0, description="bound of the global gradient norm; 0: off")


class TrainConfig(Section):
    batch_size: int = Field(32, ge=1, le=LARGE, description="sequences (SFT) or pairs (reward model, DPO) of one step")
    margin: float = Field(0.0, ge=0, description="reward model: margin of the Bradley-Terry loss")


class DPOConfig(Section):
    loss: Literal["dpo", "ipo"] = Field("dpo", description="sigmoid loss, or IPO's squared one")
    beta: float = Field(0.1, gt=0, description="how strongly the reference holds the policy (IPO: tau)")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="conservative DPO: share of pairs taken to be labelled wrongly; 0: plain DPO"
    )
    groups_from: Literal["none", "domain", "classifier"] = Field(
        "none", description="group-DPO, loss weighted by group: off; known domains; inferred by dpo.group_model"
    )
    group_step: float = Field(0.05, ge=0, description="group-DPO: step of the exponentiated gradient; 0: plain DPO")
    group_model: str = fixed_by_content(
        "", description="GI-PPO run (or its checkpoint) whose classifier infers the groups"
    )


class CheckpointConfig(Section):
    every: int = changeable(10, ge=0, le=10**9, description="iterations between checkpoints; 0: only the last")
    keep: int = changeable(2, ge=2, description="checkpoints kept, damaged ones not counted")


class EvalConfig(Section):
    every: int = changeable(0, ge=0, le=10**9, description="iterations between evaluations; 0: only at the end")
    prompts: int = changeable(64, ge=0, le=10**9, description="held-out rows used, of each domain in RL; 0: none")
    reward: str = changeable(
        "", description="RL: a second reward that training never sees, logged as gold/*; like model.reward"
    )


class Config(Section):
    """Everything a run needs. One class for all commands; a command reads the sections it uses."""

    run: RunConfig = Field(default_factory=RunConfig)
    device: Literal["auto", "cpu", "cuda"] = changeable("auto", description="auto: CUDA where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    policy: OptimizerConfig = Field(default_factory=OptimizerConfig)
    critic: OptimizerConfig = Field(default_factory=OptimizerConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    dpo: DPOConfig = Field(default_factory=DPOConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    #: Options with what came from the environment as references (`gipo_mc.config.environment`), set by `load_config`.
    _referring: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        problems = [*self.algorithm.problems(), *self.data.problems()]
        samples = self.rollout.samples_per_prompt
        if self.rollout.batch_size % samples:
            problems.append(
                f"rollout.batch_size={self.rollout.batch_size} is no multiple of rollout.samples_per_prompt={samples}: "
                f"set it to {-(-self.rollout.batch_size // samples) * samples}"
            )
        if self.algorithm.advantage != "gae" and samples < 2:
            problems.append(
                f"algorithm.advantage={self.algorithm.advantage} compares the samples of a prompt, and there is one: "
                "set rollout.samples_per_prompt=4"
            )
        if self.algorithm.mini_batch_size > self.rollout.batch_size:
            problems.append(
                f"algorithm.mini_batch_size={self.algorithm.mini_batch_size} is larger than "
                f"rollout.batch_size={self.rollout.batch_size}: make it at most that"
            )
        for name in ("prompts", "preferences", "demonstrations", "evaluation"):
            files = getattr(self.data, name)
            if self.data.domains and files and len(files) != len(self.data.domains):
                problems.append(
                    f"data.domains names {len(self.data.domains)} labels, but data.{name} {len(files)} files: "
                    "give one label for each file, in the same order in every list"
                )
        for name in ("policy", "critic"):
            section: OptimizerConfig = getattr(self, name)
            if section.min_lr > section.lr:
                problems.append(f"{name}.min_lr={section.min_lr} is larger than {name}.lr={section.lr}")
        if self.dpo.loss == "ipo" and self.dpo.label_smoothing:
            problems.append(f"dpo.label_smoothing={self.dpo.label_smoothing} is an option of dpo.loss=dpo: set it to 0")
        if (self.dpo.groups_from == "classifier") != bool(self.dpo.group_model):
            problems.append(
                f"dpo.groups_from={self.dpo.groups_from} does not fit dpo.group_model={self.dpo.group_model!r}: "
                "classifier takes its groups from a GI-PPO run named there, the others from none"
            )
        if self.parallel.sequence and self.parallel.tensor == 1:
            problems.append("parallel.sequence=true needs parallel.tensor > 1: set one of the two")
        if problems:
            raise ValueError("\n".join(problems))
        return self


@cache
def options(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Every option by its key ("algorithm.groups"), in order."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= options(annotation, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


def resume_rule(key: str) -> ResumeRule:
    """May this option change when a run continues?"""
    extra = options()[key].json_schema_extra
    return extra["on_resume"] if isinstance(extra, dict) else "fixed"  # type: ignore[return-value]
