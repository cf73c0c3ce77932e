"""The configuration: every key with its type, bounds, default and meaning. The sections `data` (`data.py`), `rollout`
and `algorithm` (`rl.py`) have files of their own, and so have `memory` and `precision`.

Combinations of keys that have no meaning are found here too; what depends on the ranks is in `layout.py`, what depends
on a model's shape in `gipo_mc.models.shape`.

A run that continues keeps the value of every option, unless the field says otherwise: `changeable`, or
`fixed_by_content` for the name of a file or model (`gipo_mc.run.resume` compares).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, field_validator, model_validator
from pydantic.fields import FieldInfo

from gipo_mc.config.data import DataConfig
from gipo_mc.config.memory import MemoryConfig
from gipo_mc.config.precision import PrecisionConfig
from gipo_mc.config.reward import RewardConfig
from gipo_mc.config.rl import AlgorithmConfig, RolloutConfig
from gipo_mc.config.section import LARGE, ResumeRule, Section, changeable, fixed_by_content, on_or_off


class RunConfig(Section):
    dir: str = changeable("runs", description="folder that holds run folders")
    name: str = changeable("", description="name of the run folder; empty: the command's own name")
    iterations: int = changeable(20, ge=1, le=10**9, description="iterations (RL) or optimizer steps (the others)")
    seed: int = Field(1, ge=0, lt=2**31, description="seed of every random stream")
    resume: bool = changeable(True, description="continue from the last checkpoint of the run folder, if it has one")
    grace_seconds: float = changeable(
        25.0,
        gt=0,
        description="seconds to reach the end of a step after SIGTERM and its like; torchrun kills after 30",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = changeable(
        default_factory=lambda: ["tensorboard"], description="what shows the metrics beside metrics.jsonl; []: nothing"
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class TrackingConfig(Section):
    """Where Weights & Biases and MLflow keep a run; docs/trackers.md."""

    project: str = changeable("gipo_mc", min_length=1, description="project of W&B, experiment of MLflow")
    name: str = changeable("", description="what the run is called there; empty: the name of the run folder")
    group: str = changeable("", description='group of W&B, tag "group" of MLflow; empty: none')
    tags: list[str] = changeable(default_factory=list, description="tags, beside the command and the algorithm")
    entity: str = changeable("", description="team or user of W&B; empty: the account's own")
    wandb_mode: Literal["auto", "online", "offline"] = changeable(
        "auto", description="offline: files in the run folder, for wandb sync; auto: online where there is an API key"
    )
    mlflow_uri: str = changeable(
        "", description="server or folder of MLflow; empty: MLFLOW_TRACKING_URI, else the folder mlruns in run.dir"
    )


class ParallelConfig(Section):
    tensor: int = changeable(1, ge=1, le=LARGE, description="tensor-parallel ranks (TP)")
    pipeline: int = changeable(1, ge=1, le=LARGE, description="pipeline-parallel ranks (PP)")
    virtual_pipeline: int = changeable(
        1, ge=1, le=LARGE, description="chunks of layers on each of these; 2 and more: an interleaved pipeline"
    )
    frozen_tensor: int = changeable(
        0, ge=0, le=LARGE, description="tensor-parallel ranks of frozen models (reference, reward); 0: as the others"
    )
    frozen_pipeline: int = changeable(
        0, ge=0, le=LARGE, description="pipeline-parallel ranks of frozen models; 0: as the others"
    )
    sequence: bool = changeable(
        False, description="sequence parallelism inside the tensor-parallel group, if it has ranks"
    )
    micro_batch_size: int = changeable(8, ge=1, le=LARGE, description="most sequences of a pass through the pipeline")
    tokens_per_micro_batch: int = changeable(
        0, ge=0, le=10**9, description="most tokens of such a pass, padding included; 0: only the sequences count"
    )
    logit_rows: int = changeable(
        4096,
        ge=0,
        le=10**9,
        description="response tokens whose logits exist at a time; more are computed twice; 0: all",
    )
    timeout_minutes: float = changeable(
        10.0,
        gt=0,
        le=10**6,
        description="a wait for another rank, or a call of a reward function, that takes longer ends the job",
    )
    silence_seconds: float = changeable(
        60.0,
        ge=0,
        le=10**6,
        description="of several hosts, one that gives no sign of life for so long ends the job; 0: never",
    )
    shared_memory: bool = changeable(
        True, description="ranks of one machine exchange CPU tensors through memory; false: gloo's sockets"
    )
    distributed_optimizer: Literal["auto", "on", "off"] = Field(
        "auto",
        description="shard optimizer state over data-parallel ranks (ZeRO-1); auto: on CUDA",
    )
    overlap: Literal["auto", "on", "off"] = changeable(
        "auto",
        description="sum gradients and gather weights during the passes; auto: on CUDA, with distributed_optimizer",
    )

    @property
    def frozen_sizes(self) -> tuple[int, int]:
        """(tensor, pipeline) of frozen models."""
        return self.frozen_tensor or self.tensor, self.frozen_pipeline or self.pipeline

    @field_validator("distributed_optimizer", "overlap", mode="before")
    @classmethod
    def _yaml_bool(cls, value: object) -> object:
        return on_or_off(value)


class ModelConfig(Section):
    policy: str = changeable("", description="HF folder or hub name, or a run's checkpoint")
    reference: str = fixed_by_content(
        "", description="frozen reference of RL's KL and of DPO; empty: the policy's start"
    )
    critic: str = changeable("", description="start of the critic; empty: the reward model, else the policy")
    reward: str = fixed_by_content(
        "", description="reward model; or python:package.module:function; or http://host:port/path"
    )
    tokenizer: str = fixed_by_content("", description="tokenizer folder; empty: the policy's")

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: object) -> object:
        return "" if value is None else value  # `model.policy=` on a command line


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
    # A word of Python, so that the field cannot be written as the others are.
    __annotations__["async"] = bool
    vars()["async"] = changeable(False, description="write a checkpoint while training goes on; costs host memory")
    verify: Literal["content", "size"] = changeable(
        "content", description="what a start compares: all bytes that no start has read yet, or names and sizes alone"
    )

    @property
    def asynchronous(self) -> bool:
        """`checkpoint.async`."""
        return bool(getattr(self, "async"))


class EvalConfig(Section):
    every: int = changeable(0, ge=0, le=10**9, description="iterations between evaluations; 0: only at the end")
    prompts: int = changeable(64, ge=0, le=10**9, description="held-out rows used, of each domain in RL; 0: none")
    reward: str = changeable(
        "", description="RL: a second reward that training never sees, logged as gold/*; like model.reward"
    )
    pairs: list[str] = changeable(
        default_factory=list,
        description="RL: held-out preference pairs; how many the reward model orders as labelled, by domain and group",
    )


class Config(Section):
    """Everything a run needs. One class for all commands; a command reads the sections it uses."""

    run: RunConfig = Field(default_factory=RunConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    device: Literal["auto", "cpu", "cuda"] = changeable("auto", description="auto: CUDA where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
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
        problems += self.reward.problems(self.model.reward, self.algorithm.signal)
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
        if self.rollout.engine == "vllm" and self.parallel.pipeline > 1:
            problems.append(
                f"rollout.engine=vllm has no pipeline, and parallel.pipeline={self.parallel.pipeline}: set it to 1 and "
                "parallel.tensor higher, or rollout.engine=megatron"
            )
        if self.parallel.virtual_pipeline > 1 and self.parallel.pipeline == 1:
            problems.append(
                f"parallel.virtual_pipeline={self.parallel.virtual_pipeline} cuts the layers of a pipeline's rank into "
                "chunks, and there is no pipeline: set parallel.pipeline=2 or more, or parallel.virtual_pipeline=1"
            )
        if self.precision.fp8 != "off" and (self.device == "cpu" or self.dtype == "float32"):
            problems.append(
                f"precision.fp8={self.precision.fp8} needs a GPU and bfloat16, and device={self.device}, "
                f"dtype={self.dtype}: set it to off, or device=cuda and dtype=bfloat16"
            )
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
