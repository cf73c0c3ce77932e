"""Tables of learned reward models, as Markdown, from their records alone."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.cells import BySeed, Record, average, difference, markdown, results, shown, spread
from benchmarks.studies.paired import figures, levels, p_value

#: Figures of differences, and what tables call them.
_COMPARED = {"worst": "worst domain", "ood": "out of domain", "mean": "mean of easy and hard"}
#: PPO from a policy that DPO made.
_AFTER_PPO = "after_dpo_ppo"
#: Candidates for the signal, in the order of the table; a run logs those that it has.
SIGNALS = ("reward", "gain", "return", "advantage", "value_error", "kl", "length")


def judge(record: Record) -> str:
    """What the reward models know, by strength and domain, mean over seeds."""
    rows = []
    for strength, seeds in _judged(record).items():
        for domain in ("easy", "hard"):
            own = [found[domain] for found in seeds]
            cells = [
                f"{average([row[key] for row in own]):.3f}" for key in ("accuracy", "bound", "gold", "correlation")
            ]
            levels = ", ".join(f"{row['level']:+.2f}" for row in own)
            rows.append([strength, domain, *cells, levels])
    titles = ("held-out pairs, right", "the most that label noise allows", "of pairs that gold orders, right")
    return markdown(["reward model", "domain", *titles, "correlation with gold", "mean reward, by seed"], rows)


def _judged(record: Record) -> dict[str, list[dict[str, dict[str, float]]]]:
    """strength -> what was found of each seed. A study's record is of one strength."""
    found = record["judge"]
    if "strength" in record["size"]:
        return {record["size"]["strength"]: list(found.values())}
    return {strength: list(seeds.values()) for strength, seeds in found.items()}


def runs_by_strength(record: Record) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """strength -> method -> outcomes of its final runs, of a study or an exploration, but for those that failed."""
    single = record["size"].get("strength")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for outcome in record["runs"]:
        strength, method = (single, outcome["run"]["method"]) if single else outcome["run"]["method"].split("/")
        if figures(outcome):
            found.setdefault(strength, {}).setdefault(method, []).append(outcome)
    order = [single] if single else record["strengths"]
    return {s: {m: found[s][m] for m in record["methods"] if m in found[s]} for s in order if s in found}


def by_strength(record: Record) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """strength -> method -> seed -> figures of its last evaluation, of the runs that did not fail."""
    return {
        strength: {
            method: {outcome["run"]["seed"]: figures(outcome) for outcome in outcomes}
            for method, outcomes in methods.items()
        }
        for strength, methods in runs_by_strength(record).items()
    }


def explored_gold(record: Record) -> str:
    """Gold, proxy and KL of each method at each strength, mean over the seeds that it was tried on."""
    columns = {"easy": "gold, easy", "hard": "hard", "ood": "out of domain", "proxy": "reward", "kl": "KL, nats"}
    rows = []
    for strength, methods in by_strength(record).items():
        for method, seeds in methods.items():
            cells = [f"{average([own[column] for own in seeds.values()]):.3f}" for column in columns]
            rows.append([strength, record["methods"][method]["title"], ", ".join(map(str, sorted(seeds))), *cells])
    return markdown(["reward model", "method", "seeds", *columns.values()], rows)


def explored_differences(record: Record) -> str:
    """Each method minus PPO, seed by seed: no interval, which two seeds do not make."""
    rows = []
    for strength, methods in by_strength(record).items():
        ppo = methods.get("ppo", {})
        for method, seeds in methods.items():
            shared = sorted(set(seeds) & set(ppo))
            if method != "ppo" and shared:
                cells = [", ".join(f"{seeds[s][key] - ppo[s][key]:+.3f}" for s in shared) for key in _COMPARED]
                rows.append([strength, record["methods"][method]["title"], *cells])
    return markdown(["reward model", "minus PPO, by seed", *_COMPARED.values()], rows)


def explored_signals(record: Record) -> str:
    """AUC of each candidate signal, alone, and of the groups, against the domains: means of the last fifth of a run."""
    rows = []
    for strength in record["strengths"]:
        for method in record["methods"]:
            late = [
                run["late"]
                for run in record["runs"]
                if run["run"]["method"] == f"{strength}/{method}" and "signal/auc/gain" in run.get("late", {})
            ]
            if late:
                names = [f"signal/auc/{name}" for name in SIGNALS] + ["group/domain_auc"]
                known = [[row[name] for row in late if name in row] for name in names]
                cells = [f"{average(values):.2f}" if values else "" for values in known]
                rows.append([strength, record["methods"][method]["title"], *cells])
    return markdown(["reward model", "run", *(name.replace("_", " ") for name in SIGNALS), "the groups"], rows)


def equal_kl(record: Record) -> str:
    """Gold of each domain where the total KL is held, and the KL that came of it, over seeds."""
    columns = {
        "kl": "KL, nats",
        "kl_ood": "KL, out of domain",
        "easy": "gold, easy",
        "hard": "hard",
        "ood": "out of domain",
    }
    rows = []
    for strength, methods in by_strength(record).items():
        for method, seeds in methods.items():
            cells = [spread([own[column] for own in seeds.values()]) for column in columns]
            rows.append([strength, record["methods"][method]["title"], *cells])
    return markdown(["reward model", "where the penalty falls", *columns.values()], rows)


def equal_kl_differences(record: Record) -> str:
    """Groups minus each other way to spread as much KL, paired by seed, at each target."""
    rows = []
    for strength, methods in by_strength(record).items():
        for one in (name for name in methods if name.startswith("adaptive")):
            target = one.partition("-")[2]
            for other in (name for name in methods if name.endswith(f"-{target}") and not name.startswith("adaptive")):
                rows.append([strength, *_difference(record, methods, one, other)])
    return markdown(["reward model", "difference", *_COMPARED.values()], rows)


def _difference(record: Record, found: dict[str, BySeed], one: str, other: str) -> list[str]:
    """What is subtracted from what, and the cells: paired by seed."""
    known = record["methods"]
    titles = " minus ".join(known[name]["title"] if name in known else name for name in (one, other))
    return [titles, *(shown(difference(found, one, other, key)) for key in _COMPARED)]


def after_dpo(record: Record) -> str:
    """Gold of the policies that DPO made, and of the runs of RL that started there, with their KL to them."""
    columns = {"easy": "gold, easy", "hard": "hard", "ood": "out of domain", "kl": "KL to DPO's policy, nats"}
    rows = []
    for strength, methods in by_strength(record).items():
        found = {"DPO, the start": _starts(record, strength)}
        found |= {record["methods"][name]["title"]: seeds for name, seeds in methods.items()}
        for title, seeds in found.items():
            rows.append([strength, title, *(spread([own[column] for own in seeds.values()]) for column in columns)])
    return markdown(["reward model", "method", *columns.values()], rows)


def after_dpo_differences(record: Record) -> str:
    """Each method minus the policy that it started from, and minus PPO from the same start, paired by seed."""
    rows = []
    for strength, methods in by_strength(record).items():
        found = {"its start": _starts(record, strength), **methods}
        pairs = [(name, "its start") for name in methods]
        pairs += [(name, _AFTER_PPO) for name in methods if name != _AFTER_PPO]
        rows += [[strength, *_difference(record, found, *pair)] for pair in pairs]
    return markdown(["reward model", "difference", *_COMPARED.values()], rows)


def _starts(record: Record, strength: str) -> dict[int, dict[str, float]]:
    """seed -> figures of the policy before the first iteration, the same for all methods."""
    runs = [run for outcomes in runs_by_strength(record)[strength].values() for run in outcomes]
    return {run["run"]["seed"]: levels(run["curve"][0]) for run in runs}


def questions(record: Record) -> str:
    """The main questions of the study: paired differences, p of a t test over seeds, and Holm's p over all of them."""
    from benchmarks.studies.learned.learned import QUESTIONS
    from gipo_mc.evaluation.statistics.sign_test import holm

    found = results(record)
    asked = [q for q in QUESTIONS if q[0] in found and q[1] in found]
    intervals = [difference(found, *question) for question in asked]
    p_values = [
        p_value([found[a][seed][figure] - found[b][seed][figure] for seed in sorted(set(found[a]) & set(found[b]))])
        for a, b, figure in asked
    ]
    names = {"worst": "worst domain", "ood": "out of domain"}
    rows = [
        [f"{record['methods'][a]['title']} minus {record['methods'][b]['title']}", names[figure], shown(own)]
        + [f"{p:.4f}", f"{adjusted:.4f}"]
        for (a, b, figure), own, p, adjusted in zip(asked, intervals, p_values, holm(p_values), strict=True)
    ]
    return markdown(["main question", "figure", "difference", "p", "p, Holm"], rows)
