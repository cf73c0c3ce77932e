"""What the tables and pictures of a study are made of: its results by method and seed, and their cells in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.studies.paired import Interval, figures, interval, levels, paired, t_quantile

Record = Mapping[str, Any]
BySeed = dict[int, dict[str, float]]


def results(record: Record, data: str = "") -> dict[str, BySeed]:
    """method -> seed -> figures of its final evaluation, of the runs on the prompts of `data` (empty: the study's own)
    that did not fail."""
    found: dict[str, BySeed] = {}
    for outcome in record.get("runs", []):
        if outcome["run"]["data"] == (data or _own(record)) and (own := figures(outcome)):
            found.setdefault(outcome["run"]["method"], {})[outcome["run"]["seed"]] = own
    order = [name for name in record["methods"] if name in found]
    return {name: found[name] for name in order}


def outcomes(record: Record, method: str, data: str = "") -> list[dict[str, Any]]:
    """The final runs of a method, the failed ones too."""
    wanted = data or _own(record)
    return [o for o in record.get("runs", []) if o["run"]["method"] == method and o["run"]["data"] == wanted]


def _own(record: Record) -> str:
    """The prompts of the study itself; mixtures come after them."""
    return str(record["runs"][0]["run"]["data"])


def difference(found: Mapping[str, BySeed], one: str, other: str, figure: str) -> Interval | None:
    """Paired, one minus other; found: as `results` gives them."""
    return paired({s: f[figure] for s, f in found[one].items()}, {s: f[figure] for s, f in found[other].items()})


# --------------------------------------------------------------------------------------------------------------- cells
def markdown(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table with a line of titles and a line for each row of cells."""
    heads = list(titles)
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "| --- " * len(heads) + "|", *lines[1:]])


def title(record: Record, name: str) -> str:
    return str(record["methods"][name]["title"])


def chosen(record: Record, name: str) -> str:
    """The chosen candidate, as the record of the tuning names it. The first study's records have one number."""
    value = record["chosen"][name]
    return value if isinstance(value, str) else f"{value:g}"


def settings(record: Record, name: str) -> dict[str, str]:
    """Key -> value of all that is the method's own: what it is, and what was chosen for it."""
    method = record["methods"][name]
    own = dict(word.split("=", 1) for word in method.get("others", ()))
    return own | dict(zip(method["tuned"].split(), chosen(record, name).split(), strict=True))


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean +- standard error."""
    if len(values) < 2:
        return f"{average(values):.{digits}f}"
    error = interval(values).half / t_quantile(len(values) - 1)
    return f"{average(values):.{digits}f} ± {error:.{digits}f}"


def shown(found: Interval | None) -> str:
    """Bold where it excludes 0; in brackets how many differences are above 0."""
    if found is None:
        return ""
    text = f"{found.mean:+.3f} ± {found.half:.3f} ({found.wins}/{found.count})"
    return f"**{text}**" if found.verdict else text


def start(record: Record, data: str) -> dict[str, list[float]]:
    """Gold of the policy before the first iteration, a value a seed (that of PPO's runs: it is the same for all)."""
    found: dict[str, list[float]] = {}
    for run in outcomes(record, "ppo", data):
        begin = next((row for row in run.get("curve", []) if row["step"] == 0), None)
        if begin:
            for name, value in levels(begin).items():
                found.setdefault(name, []).append(value)
    return found


def warned(runs: Sequence[Mapping[str, Any]]) -> str:
    """Kinds of warnings: in how many of the runs, and the first iteration of any."""
    kinds = sorted({kind for run in runs for kind in run["warnings"] if kind != "other"})
    parts = []
    for kind in kinds:
        first = [run["warnings"][kind]["first"] for run in runs if kind in run["warnings"]]
        parts.append(f"{kind} {len(first)}/{len(runs)} ({min(first)})")
    return ", ".join(parts) or "none"
