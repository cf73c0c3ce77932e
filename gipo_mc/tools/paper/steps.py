"""A plan as the steps that make its table, in order: each is one command of gipo-mc."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gipo_mc.config import Config, check_layout, load_config
from gipo_mc.errors import ConfigError
from gipo_mc.evaluation.statistics.outcomes import SELF
from gipo_mc.tools.commands import gipo_mc, trainer
from gipo_mc.tools.paper.plan import REWARD, SFT, Commands, EvaluationPlan, PaperPlan, TaskPlan

#: Options that hold the sources of training data, by command.
_DATA = {
    "train_sft": "demonstrations",
    "train_reward": "preferences",
    "train_dpo": "preferences",
    "train_gi_ppo": "prompts",
}


@dataclass(frozen=True)
class Step:
    """One command.

    name: "hh/ppo". kind: what steps of like duration share. words: the command behind `python`, or behind torchrun
    where there are more ranks than one. reads: what its result depends on, by the name that a message gives it: a file,
    a run, a model's folder or a hub name. writes: files, or the run's folder. units: how much there is to do, of which
    durations are measured: iterations, prompts, pairs. minutes: what the plan says. config: of a training run, else
    None.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    ranks: int = 1
    reads: dict[str, str] = field(default_factory=dict)
    writes: tuple[Path, ...] = ()
    units: int = 1
    unit: str = "step"
    minutes: float = 0.0
    config: Config | None = None

    @property
    def run(self) -> Path | None:
        """The run's folder, of a training step."""
        return self.writes[0] if self.config else None


def steps_of(plan: PaperPlan, ranks: int = 0) -> list[Step]:
    """All steps of a plan. ranks: instead of the plan's.

    Every configuration is loaded and checked against the ranks. Raises ConfigError naming the step.
    """
    plan = plan.model_copy(update={"ranks": ranks or plan.ranks})
    return list(_Steps(plan).all())


class _Steps:
    def __init__(self, plan: PaperPlan) -> None:
        self._plan, self._folder = plan, Path(plan.folder)

    def all(self) -> Iterator[Step]:
        plan = self._plan
        if plan.rows:
            out = self._folder / "rows"
            words = ["-m", "gipo_mc.tools.paper.rows", *(f"{k}={v}" for k, v in plan.rows.sources.items())]
            words += ["--parts", *plan.rows.parts, "--out", str(out)]
            files = tuple(out / f"{part}_{label}.jsonl" for label in plan.rows.sources for part in plan.rows.parts)
            yield Step("rows", "rows", tuple(words), reads=dict(plan.rows.sources), writes=files)
        if plan.model:
            words = [*gipo_mc("new-model"), "--out", str(self._folder / "model"), "--overwrite"]
            words += ["--vocab", str(plan.model.vocab), "--hidden", str(plan.model.hidden)]
            words += ["--layers", str(plan.model.layers), "--data", *plan.model.data]
            reads = {f"data[{number}]": file for number, file in enumerate(plan.model.data)}
            yield Step("model", "model", tuple(words), reads=reads, writes=(self._folder / "model",))
        for name, task in plan.tasks.items():
            for run in task.runs:
                yield self._training(name, task, run)
            for label, evaluation in task.evaluations.items():
                yield from self._evaluation(name, task, label, evaluation)

    def _set(self, command: Commands) -> list[str]:
        return [*self._plan.set.get("all", []), *self._plan.set.get(command, [])]

    def _training(self, task_name: str, task: TaskPlan, name: str) -> Step:
        run, folder = task.runs[name], self._folder / task_name
        options = [*self._set(run.command), *task.set, *run.set, f"run.dir={folder}", f"run.name={name}"]
        if name != SFT and SFT in task.runs:
            options.append(f"model.policy={folder / SFT}")
        elif self._plan.model:
            options.append(f"model.policy={self._folder / 'model'}")
        if run.command == "train_gi_ppo":
            options.append(f"model.reward={folder / REWARD}")
        config = self._checked(f"{task_name}/{name}", run.command, run.config, options)
        data = getattr(config.data, _DATA[run.command])
        reads = {f"data.{_DATA[run.command]}[{number}]": source for number, source in enumerate(data)}
        reads["model.policy"] = config.model.policy
        if run.command == "train_gi_ppo":
            reads["model.reward"] = config.model.reward
        return Step(
            f"{task_name}/{name}",
            run.command,
            (*trainer(run.command), "--config", run.config, *options),
            self._plan.ranks,
            reads,
            (folder / name,),
            config.run.iterations,
            "iteration",
            run.minutes,
            config,
        )

    def _evaluation(self, task_name: str, task: TaskPlan, label: str, plan: EvaluationPlan) -> Iterator[Step]:
        runs, folder = self._folder / task_name, self._folder / task_name / f"judged_{label}"
        start = f"{task_name}/{label}"
        opponents = [*task.against, *([SELF] if plan.calibrate else [])]
        files = {name: folder / "responses" / f"{name}.jsonl" for name in (task.ours, *opponents)}
        options, seed = self._of_generation(f"{start}/responses", plan)
        for name, file in files.items():
            run, own = runs / (task.ours if name == SELF else name), seed + (name == SELF)
            yield self._responses(f"{start}/responses/{name}", [*options, f"run.seed={own}"], run, file, plan)
        pairs = len(opponents) * plan.rows * len(plan.prompts)
        against = [f"{name}={files[name]}" for name in opponents]
        judges = [word for judge in plan.judges for word in ("--judge", judge)]
        journal = (folder / "pairs.jsonl", folder / "verdicts.jsonl")
        yield self._evaluate(
            f"{start}/judge",
            ["judge", "--ours", str(files[task.ours]), "--against", *against, *judges, "--out", str(folder)],
            {**{name: str(file) for name, file in files.items()}, **{judge: judge for judge in plan.judges}},
            journal,
            (pairs * len(plan.judges), "pair", plan.judge_minutes * len(plan.judges)),
        )
        judged = {path.name: str(path) for path in journal} | {"votes.jsonl": str(folder / "votes.jsonl")}
        if plan.page:
            page = folder / "page.html"
            words = ["page", str(folder), "--out", str(page), "--pairs", str(plan.page), "--against", *task.against]
            yield self._evaluate(f"{start}/page", words, {"pairs.jsonl": str(journal[0])}, (page,))
        table = folder / "table.json"
        yield self._evaluate(f"{start}/table", ["table", str(folder)], judged, (table,))
        export = folder / "table.md"
        words = ["export", str(folder), "--format", "markdown", "--out", str(export)]
        yield self._evaluate(f"{start}/export", words, {"table.json": str(table)}, (export,))
        report = folder / "report.html"
        shown = [str(runs / name) for name in (task.ours, *task.against)]
        words = [*gipo_mc("report"), *shown, "--evaluation", str(folder), "--out", str(report)]
        reads = judged | {"table.json": str(table)} | {name: name for name in shown}
        yield Step(f"{start}/report", "report", tuple(words), reads=reads, writes=(report,))

    def _of_generation(self, step: str, plan: EvaluationPlan) -> tuple[list[str], int]:
        """Options of `gipo-mc generate`, but for policy and seed, and the seed."""
        sources, labels = ",".join(plan.prompts.values()), ",".join(plan.prompts)
        options = [*self._set("generate"), *plan.set, f"data.evaluation=[{sources}]", f"data.domains=[{labels}]"]
        options += [f"data.max_rows={plan.rows}", f"eval.prompts={plan.rows * len(plan.prompts)}"]
        return options, self._checked(step, "generate", None, options).run.seed

    def _responses(self, step: str, options: list[str], run: Path, out: Path, plan: EvaluationPlan) -> Step:
        words = (*gipo_mc("generate"), *options, f"model.policy={run}", "--out", str(out))
        reads = {**plan.prompts, "model.policy": str(run)}
        units = plan.rows * len(plan.prompts)
        return Step(step, "generate", words, self._plan.ranks, reads, (out,), units, "prompt", plan.minutes)

    def _evaluate(
        self,
        step: str,
        words: list[str],
        reads: dict[str, str],
        writes: tuple[Path, ...],
        size: tuple[int, str, float] = (1, "step", 0.0),
    ) -> Step:
        units, unit, minutes = size
        full = (*gipo_mc("evaluate"), *words)
        return Step(step, words[0], full, reads=reads, writes=writes, units=units, unit=unit, minutes=minutes)

    def _checked(self, step: str, command: str, config: str | None, options: list[str]) -> Config:
        try:
            found = load_config(config, options)
            check_layout(found, self._plan.ranks, command)
        except ConfigError as error:
            raise ConfigError(f"Step {step}: {error}") from error
        return found
