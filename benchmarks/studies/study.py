"""How a study is carried out: of every rival each candidate of its tuned keys on the tuning seeds, the best by the
criterion (the mean gold reward of the trained domains at the end, averaged over the tuning seeds), which is written
down and stays fixed, then every method at its best on the final seeds. It goes on where it was interrupted."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import documents
from benchmarks.common.machine import describe_machine, show_machine
from benchmarks.common.record import fingerprint, write
from benchmarks.studies import costs, pictures, tables
from benchmarks.studies.learned import pictures as learned_pictures
from benchmarks.studies.paired import best_value, figures
from benchmarks.studies.runs import Method, Run, carry_out, finished, forked, import_once, leave

_SIZE = "size.json"  # in the folder of the runs: what their size was


@dataclass(frozen=True)
class Study:
    """A study: its name, what is compared on which seeds, and how a run of it is configured.

    data: the prompts of its runs. mixtures: other prompts -> the methods that the final seeds try on them, untuned.
    size: numbers that say how large it is, kept in the record. train: (run, method) -> trains, in the process it is
    called in, and returns the outcome. prepare: seeds -> makes what their runs start from, yielding a line a part.
    seconds: of a run, about, for the budget as long as none was measured. judge: something to keep in the record of
    what was prepared.
    """

    name: str
    methods: dict[str, Method]
    tuning_seeds: Sequence[int]
    final_seeds: Sequence[int]
    data: str
    mixtures: dict[str, Sequence[str]]
    size: dict[str, Any]
    train: Callable[[Run, Method], dict[str, Any]]
    prepare: Callable[[Sequence[int]], Iterator[str]]
    seconds: Callable[[Run], float]
    judge: Callable[[], dict[str, Any]] = dict

    # ---------------------------------------------------------------------------------------------- what is to be run
    def tuning_runs(self, tuned: Collection[str] = ()) -> list[Run]:
        """Of all methods but those that are `tuned` already."""
        return [
            Run("tuning", name, value, seed, self.data)
            for name, method in self.methods.items()
            if not method.follows and name not in tuned
            for seed in self.tuning_seeds
            for value in method.values
        ]

    def final_runs(self, chosen: dict[str, str]) -> list[Run]:
        """Seed by seed, so that what is there after an interruption is paired."""
        return [Run("final", name, chosen[name], seed, self.data) for seed in self.final_seeds for name in self.methods]

    def mixture_runs(self, chosen: dict[str, str]) -> list[Run]:
        """The same settings on other prompts: nothing is tuned for them."""
        return [
            Run("final", name, chosen[name], seed, data)
            for data, names in self.mixtures.items()
            for seed in self.final_seeds
            for name in names
            if name in self.methods
        ]

    def choose(self, method: str, scores: dict[str, Any]) -> str:
        """The candidate with the best criterion; one that failed on a seed is out, unless all did."""
        method = self.methods[method].follows or method
        complete = {value: [seed["mean"] for seed in seeds] for value, seeds in scores[method].items() if all(seeds)}
        return best_value(complete) if complete else self.methods[method].values[-1]

    def plan(self) -> dict[str, Any]:
        """What the record of this study begins with; a record with another plan is of another study."""
        methods = {
            name: {
                "title": m.title,
                "preset": m.preset,
                "tuned": " ".join(m.tuned),
                "values": list(m.values),
                "others": list(m.others),
                "follows": m.follows,
            }
            for name, m in self.methods.items()
        }
        seeds = {"tuning_seeds": list(self.tuning_seeds), "final_seeds": list(self.final_seeds)}
        return {"size": self.size, **seeds, "methods": methods}


def run(study: Study, options: argparse.Namespace) -> int:
    """Everything that is left to run, or with --budget only how much it is. Raises RuntimeError where a run dies of
    anything but its numbers: the program, the data or the machine is at fault then, and no method."""
    record = load(study, options.out, options.runs)
    print(budget(study, record, options), flush=True)
    if options.budget:
        return 0
    for folder in (options.runs, options.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    (options.runs / _SIZE).write_text(json.dumps(study.size))
    restore(record, options.runs)
    record["machine"] = record.get("machine") or describe_machine()
    print(show_machine(record["machine"]) + "\n", flush=True)
    import_once()

    tuning = study.tuning_runs(record.get("tuning", ()))
    _carry_out(study, tuning, options)
    if len(record.get("chosen", {})) < len(study.methods):
        record |= study.judge()
        record["tuning"] = {**record.get("tuning", {}), **tuning_scores(tuning, options.runs)}
        kept = record.get("chosen", {})
        record["chosen"] = {name: kept.get(name) or study.choose(name, record["tuning"]) for name in study.methods}
        fixed = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "code": fingerprint()}
        (record["additions"][-1] if record.get("additions") else record)["settings_fixed"] = fixed
        write(options.out, record)
        print(tables.tuning(record), flush=True)
    if options.tuning_only:
        return 0
    final, mixture = study.final_runs(record["chosen"]), study.mixture_runs(record["chosen"])
    if not record.get("runs") and (here := describe_machine())["commit"] != record["machine"]["commit"]:
        record["final_machine"] = here  # its settings were chosen by an earlier commit
    for runs in (final, mixture):
        _carry_out(study, runs, options)
        record["runs"] = [found for run in (*final, *mixture) if (found := finished(run, options.runs))]
        write(options.out, record)
    if seeds := unpaired(record):
        print(f"WARNING: the runs of {seeds} do not all begin at the same policy: their differences are not paired.\n")
    for part in tables.parts(record):
        print(tables.table(record, part) + "\n")
    return 0


def tuning_scores(runs: Sequence[Run], folder: Path) -> dict[str, dict[str, list[dict[str, float] | None]]]:
    """method -> value -> the figures of each tuning seed, None of a run that failed."""
    scores: dict[str, dict[str, list[dict[str, float] | None]]] = {}
    for run in runs:
        own = figures(finished(run, folder) or {})
        kept = {name: own[name] for name in ("mean", "worst", "ood", "kl") if name in own}
        scores.setdefault(run.method, {}).setdefault(run.value, []).append(kept or None)
    return scores


def budget(study: Study, record: dict[str, Any], options: argparse.Namespace) -> str:
    """Runs of each kind, those left, and what they will cost, as the runs that have ended show."""
    chosen = {name: method.values[0] for name, method in study.methods.items()} | record.get("chosen", {})
    planned = {"tuning": study.tuning_runs(record.get("tuning", ())), "final": study.final_runs(chosen)}
    if mixture := study.mixture_runs(chosen):
        planned["other mixture"] = mixture
    counts = ", ".join(f"{name} {len(runs)}" for name, runs in planned.items())
    known = {Run(**outcome["run"]) for outcome in record.get("runs", [])}
    everything = [run for runs in planned.values() for run in runs]
    left = [run for run in everything if run not in known and finished(run, options.runs) is None]
    outcomes = [*record.get("runs", []), *(found for run in everything if (found := finished(run, options.runs)))]
    cost = costs.sentence(left, outcomes, study.seconds, options.workers)
    return f"{len(study.methods)} methods. Runs: {counts}; {cost}"


def load(study: Study, path: Path, runs: Path) -> dict[str, Any]:
    """The record so far, or an empty one. Its settings and runs are kept. Methods and final seeds that the study has
    gained since then are listed in its "additions". Raises SystemExit where the record, or the runs in the folder, are
    of another study."""
    plan = json.loads(json.dumps(study.plan()))
    kept = runs / _SIZE
    if kept.exists() and not _extends(plan["size"], other := json.loads(kept.read_text())):
        raise SystemExit(f"The runs in {runs} are of another size ({other}, not {plan['size']}): give another --runs.")
    if not path.exists():
        return {"benchmark": study.name, **plan}
    record: dict[str, Any] = json.loads(path.read_text())
    same = {key: _extends(plan[key], record.get(key)) for key in ("size", "methods", "final_seeds")}
    same["tuning_seeds"] = plan["tuning_seeds"] == record.get("tuning_seeds")
    if changed := [key for key in same if not same[key]]:
        raise SystemExit(f"{path} is of another study (it differs in {', '.join(changed)}): give another --out.")
    new = {key: [item for item in plan[key] if item not in record[key]] for key in ("methods", "final_seeds")}
    if any(new.values()):
        record.setdefault("additions", []).append({**new, "machine": describe_machine()})
    # The order of methods and seeds is the plan's.
    return {"benchmark": study.name, **plan, **{key: value for key, value in record.items() if key not in plan}}


def _extends(plan: Any, older: Any) -> bool:
    """Is everything of the older plan in this one, unchanged?"""
    if isinstance(plan, dict):
        return isinstance(older, dict) and all(key in plan and plan[key] == older[key] for key in older)
    return isinstance(older, list) and set(older) <= set(plan)


def restore(record: dict[str, Any], folder: Path) -> None:
    """Runs that the record holds and the folder does not are not run again."""
    for outcome in record.get("runs", []):
        if finished(Run(**outcome["run"]), folder) is None:
            leave(outcome, folder)


def unpaired(record: dict[str, Any]) -> list[int]:
    """Final seeds whose runs do not all begin at the same policy, as far as an evaluation can tell (on machines that
    round differently they may not). What a run trains on is no sign: an ensemble's reward is another number."""
    starts: dict[int, list[list[float]]] = {}
    for outcome in record.get("runs", []):
        for row in outcome.get("curve", [])[:1] if "run" in outcome else ():
            found = [row[name] for name in sorted(row) if not name.startswith("eval/reward/")]
            starts.setdefault(outcome["run"]["seed"], []).append(found)
    # Records keep six digits.
    return sorted(seed for seed, rows in starts.items() if any(_differ(rows[0], row) for row in rows))


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    return any(abs(a - b) > 1e-5 for a, b in zip(one, other, strict=True))


def show(options: argparse.Namespace) -> int:
    """The tables of a record, printed or put into a document, and its pictures."""
    record = json.loads(options.table.read_text())
    parts = tables.parts(record)
    if not parts:
        raise SystemExit(f"{options.table} is no record of a study, or of one that has not chosen its settings yet.")
    if options.pictures:
        if not record.get("runs"):
            raise SystemExit(f"{options.table} has no final runs, of which there could be pictures.")
        learned = record["benchmark"].startswith("learned_")
        (learned_pictures if learned else pictures).draw(record, options.pictures, options.table.stem)
    text = options.into.read_text() if options.into else ""
    sources = {part: f"{options.table.as_posix()}: {part}" for part in parts}
    wanted = [part for part in sources if options.into is None or documents.marker(sources[part]) in text]
    if not wanted:
        raise SystemExit(f"{options.into} has no line {documents.marker(sources[parts[0]])} or the like.")
    for part in wanted:
        table = tables.table(record, part)
        if options.into is None:
            print(table + "\n")
        else:
            text = documents.inserted(text, sources[part], table)
    if options.into:
        options.into.write_text(text)
    return 0


def arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that all studies have."""
    parser.add_argument("--budget", action="store_true", help="say what is left to run, and stop")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two methods: does it run?")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each [1]")
    parser.add_argument("--tuning-only", action="store_true", help="stop when the settings are chosen and written")
    parser.add_argument("--runs", type=Path, default=Path("runs") / name, help=f"folder of the runs [runs/{name}]")
    out = Path("benchmarks/results") / f"{name}.json"
    parser.add_argument("--out", type=Path, default=out, help=f"the record [{out}]")
    table_arguments(parser, drawn=True)


def table_arguments(parser: argparse.ArgumentParser, drawn: bool) -> None:
    """What shows a record instead of making it. drawn: there are pictures of such records."""
    parser.add_argument("--table", type=Path, help="run nothing: the tables of this record, in Markdown")
    parser.add_argument("--into", type=Path, help="with --table: replace the tables between their markers there")
    parser.set_defaults(pictures=None)
    if drawn:
        parser.add_argument("--pictures", type=Path, help="with --table: draw the pictures into this folder")


def refuse_followers_alone(
    parser: argparse.ArgumentParser, names: Sequence[str], methods: Mapping[str, Method]
) -> None:
    """A method that takes the settings of another is run with it."""
    if alone := [name for name in names if methods[name].follows and methods[name].follows not in names]:
        leaders = " ".join(methods[name].follows for name in alone)
        parser.error(f"--methods: {' '.join(alone)} takes the settings of {leaders}: name that too")


def parsed(parser: argparse.ArgumentParser, words: list[str] | None) -> argparse.Namespace:
    options = parser.parse_args(words)
    if (options.into or options.pictures) and not options.table:
        parser.error("--into and --pictures need --table FILE.json")
    if options.workers < 1:
        parser.error("--workers is at least 1")
    for path in (options.table, options.into):
        if path and not path.is_file():
            parser.error(f"there is no file {path}")
    return options


def _carry_out(study: Study, runs: Sequence[Run], options: argparse.Namespace) -> None:
    """What has no outcome yet, after what it starts from."""
    left = [run for run in runs if finished(run, options.runs) is None]
    for line in study.prepare(sorted({run.seed for run in left})):
        print(line, flush=True)
    jobs = [(run, (_train, study, run, options.runs)) for run in left]
    began = time.monotonic()
    for number, (run, seconds) in enumerate(forked(jobs, options.runs, options.workers), 1):
        failure = (finished(run, options.runs) or {}).get("failure")
        rest = (time.monotonic() - began) / number * (len(left) - number) / 60
        print(
            f"{number}/{len(left)} {run.name}: {seconds:.0f} s{', FAILED: ' + failure if failure else ''}; "
            f"about {rest:.0f} minutes left",
            flush=True,
        )


def _train(study: Study, run: Run, folder: Path) -> None:
    carry_out(run, lambda: study.train(run, study.methods[run.method]), folder)
