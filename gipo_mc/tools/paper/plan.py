"""The file that describes a whole table: which runs of which configurations, and who judges what of them.

    folder: runs/paper/mine            # everything the table makes lies there
    tasks:
      hh:
        runs:                          # trained in this order; sft is the start of the others, reward the reward of RL
          sft: {command: train_sft, config: hh_sft.yaml}
          reward: {command: train_reward, config: hh_reward.yaml}
          gi_ppo: {command: train_gi_ppo, config: hh_rl.yaml}
        ours: gi_ppo
        against: [sft]
        evaluations:
          helpful: {prompts: {helpful: "Anthropic/hh-rlhf/helpful-base@test"}, judges: [judges/helpful.yaml]}

Configurations and judges are named from the folder of the file. `set` adds options to a command, as on its command
line: the plan's (`set: {all: [device=cpu], train_sft: [run.iterations=9]}`), then the task's, then the run's.
References (`${folder}`, `${oc.env:HH_DATA,data/hh}`) are resolved.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from gipo_mc.config import check_name
from gipo_mc.config.explain.problems import worded
from gipo_mc.config.names import is_file, shipped
from gipo_mc.config.section import Section
from gipo_mc.config.yaml_text import read_values
from gipo_mc.errors import ConfigError

#: Part of the name of a step and of a folder.
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$", max_length=60)]
#: The runs that the others start from, and that pay them.
SFT, REWARD = "sft", "reward"


Training = Literal["train_sft", "train_reward", "train_dpo", "train_gi_ppo"]
Commands = Literal["all", Training, "generate"]


class RunPlan(Section):
    """One run. minutes: what it is said to take with the plan's ranks, where none of its kind was measured; 0: nobody
    knows."""

    command: Training
    config: str = Field(min_length=1)
    set: list[str] = Field(default_factory=list)
    minutes: float = Field(0.0, ge=0)


class EvaluationPlan(Section):
    """Responses to prompts, and who judges them.

    prompts: domain -> source, as in data.evaluation. out_of_domain: those of the domains that training has not seen.
    rows: rows read of each source; longer prompts than data.prompt_length are left out of them. set: options that
    responses are generated with. judges: files. calibrate: ours is judged against a second sample of itself too. page:
    pairs that people are shown, 0: no page. minutes: of generation for one policy, and judge_minutes of one judge and
    all pairs, as in `RunPlan`.
    """

    prompts: dict[Name, str] = Field(min_length=1)
    out_of_domain: list[Name] = Field(default_factory=list)
    rows: int = Field(256, ge=1, le=10**6)
    set: list[str] = Field(default_factory=list)
    judges: list[str] = Field(min_length=1)
    calibrate: bool = True
    page: int = Field(60, ge=0, le=10**4)
    minutes: float = Field(0.0, ge=0)
    judge_minutes: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _known(self) -> EvaluationPlan:
        if unknown := set(self.out_of_domain) - self.prompts.keys():
            raise ValueError(f"out_of_domain names {', '.join(sorted(unknown))}, which prompts does not have")
        return self


class TaskPlan(Section):
    """Runs that belong together, in the order of training. set: of all of them. ours is judged against each of
    `against`. A task without evaluations only trains: the reward model of a judge, say."""

    runs: dict[Name, RunPlan] = Field(min_length=1)
    set: list[str] = Field(default_factory=list)
    ours: str = ""
    against: list[str] = Field(default_factory=list)
    evaluations: dict[Name, EvaluationPlan] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _wired(self) -> TaskPlan:
        order = list(self.runs)
        for number, (name, run) in enumerate(self.runs.items()):
            before = order[:number]
            if run.command != "train_sft" and SFT not in before:
                raise ValueError(f"run {name} starts from a run `{SFT}`, which must come before it")
            if run.command == "train_gi_ppo" and REWARD not in before:
                raise ValueError(f"run {name} needs a run `{REWARD}` before it, its reward model")
        if self.evaluations and not (self.ours and self.against):
            raise ValueError("evaluations need `ours` and `against`")
        if unknown := {*([self.ours] if self.ours else []), *self.against} - self.runs.keys():
            raise ValueError(f"ours and against name {', '.join(sorted(unknown))}, and no such run is there")
        if self.ours in self.against:
            raise ValueError(f"{self.ours} is `ours`, and cannot stand in `against`")
        return self


class NewModel(Section):
    """A model with random weights that every task starts from, made by gipo-mc new-model."""

    data: list[str] = Field(min_length=1)
    vocab: int = Field(1024, ge=259)
    hidden: int = Field(64, ge=2)
    layers: int = Field(4, ge=1)


class RowsPlan(Section):
    """Files of dialogues dealt out into parts that share no first question, as <folder>/rows/<part>_<label>.jsonl."""

    sources: dict[Name, str] = Field(min_length=1)
    parts: list[Name] = Field(min_length=2)


class PaperPlan(Section):
    """The whole table. set: options of every run and generation ("all"), or of those of one command."""

    folder: str = Field(min_length=1)
    ranks: int = Field(1, ge=1, le=2**20)
    set: dict[Commands, list[str]] = Field(default_factory=dict)
    rows: RowsPlan | None = None
    model: NewModel | None = None
    tasks: dict[Name, TaskPlan] = Field(min_length=1)


def load_plan(path: str) -> PaperPlan:
    """The plan in a YAML file, with the names of configurations and judges as paths. Raises ConfigError with every
    problem."""
    if not is_file(path):
        raise ConfigError(f"There is no plan {path}: llama2_7b.yaml and tiny.yaml are in {shipped('configs/paper')}.")
    raw = read_values(path, f"The plan {path} cannot be read", resolve=True)
    if not isinstance(raw, dict):
        raise ConfigError(f"The plan {path} must hold `folder:` and `tasks:`.")
    try:
        plan = PaperPlan.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  - {_problem(detail)}" for detail in error.errors())
        raise ConfigError(f"The plan {path} has problems:\n{lines}") from error
    check_name(plan.folder, "folder")
    return _located(plan, Path(path).parent)


def only(plan: PaperPlan, methods: list[str]) -> PaperPlan:
    """The plan with no other methods than these, and what they need. Raises ConfigError for one that is not there."""
    if unknown := sorted(set(methods) - {name for task in plan.tasks.values() for name in task.against}):
        known = sorted({name for task in plan.tasks.values() for name in task.against})
        raise ConfigError(f"--methods names {', '.join(unknown)}; the plan judges against {', '.join(known)}.")
    tasks = {}
    for name, task in plan.tasks.items():
        kept = {SFT, REWARD, task.ours, *methods} if task.evaluations else set(task.runs)
        against = [method for method in task.against if method in kept]
        evaluations = task.evaluations if against else {}
        runs = {method: run for method, run in task.runs.items() if method in kept}
        tasks[name] = task.model_copy(update={"runs": runs, "against": against, "evaluations": evaluations})
    return plan.model_copy(update={"tasks": tasks})


def _located(plan: PaperPlan, folder: Path) -> PaperPlan:
    def of_task(task: TaskPlan) -> TaskPlan:
        runs = {k: run.model_copy(update={"config": str(folder / run.config)}) for k, run in task.runs.items()}
        evaluations = {
            k: one.model_copy(update={"judges": [str(folder / judge) for judge in one.judges]})
            for k, one in task.evaluations.items()
        }
        return task.model_copy(update={"runs": runs, "evaluations": evaluations})

    return plan.model_copy(update={"tasks": {name: of_task(task) for name, task in plan.tasks.items()}})


def _problem(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    said = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else worded(detail)
    return f"{key}: {re.sub(r'^Extra inputs are not permitted$', 'there is no such key', said)}"
