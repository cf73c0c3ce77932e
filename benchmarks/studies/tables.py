"""The tables of a study, as Markdown, from its record alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.studies.cells import (
    Record,
    average,
    chosen,
    difference,
    markdown,
    outcomes,
    results,
    settings,
    shown,
    spread,
    start,
    title,
    warned,
)
from benchmarks.studies.hh import tables as hh_tables
from benchmarks.studies.learned import tables as learned_tables

#: The figures that are compared, and their titles, by study.
COMPARED = {
    "group_robustness": {
        "worst": "worst domain",
        "ood": "out of domain",
        "mean": "mean of easy and hard",
        "mixture": "training mixture",
    },
    "hh_gold": {
        "worst": "smaller gain over SFT",
        "harmless": "harmless",
        "helpful": "helpful",
        "mean": "mean of both",
    },
}
COMPARED["demo_seeds"] = COMPARED["learned_reward"] = COMPARED["learned_exploration"] = COMPARED["group_robustness"]
#: The columns of the table of gold rewards, by study.
COLUMNS = {
    "group_robustness": {
        "easy": "gold, easy",
        "hard": "hard",
        "ood": "out of domain",
        "mean": "mean of easy and hard",
        "worst": "worst",
        "proxy": "proxy, mean",
        "kl": "KL, nats",
        "kl_ood": "KL, out of domain",
    },
    "hh_gold": {
        "harmless": "gold, harmless",
        "helpful": "helpful",
        "mean": "mean of both",
        "worst": "smaller gain over SFT",
        "proxy": "proxy, mean",
        "kl_harmless": "KL, harmless",
        "kl_helpful": "KL, helpful",
    },
}
COLUMNS["demo_seeds"] = COLUMNS["learned_reward"] = COLUMNS["group_robustness"]
#: Beside PPO: what says whether a gain is due to group inference, and to which part of it.
_CONTROLS = ("mean_kl", "threshold_kl", "threshold_gi_ppo", "ppo_no_kl", "dpo")
_COUNTERPARTS = (
    *((form, control) for form in ("gi_ppo", "gi_ppo_prompt") for control in _CONTROLS),
    *((form, part) for form in ("gi_ppo", "gi_ppo_prompt") for part in ("variance_penalty", "adaptive_kl")),
    *(("gi_ppo_beta", other) for other in ("gi_ppo", "threshold_gi_ppo_beta", "dpo")),
    *(("gi_ppo_prompt", "gi_ppo"), ("adaptive_kl", "mean_kl"), ("adaptive_kl", "threshold_kl"), ("gi_rloo", "rloo")),
)
#: Methods with groups whose KL does not look at them.
_FIXED_KL = ("variance_penalty", "oracle_group_dro")


# -------------------------------------------------------------------------------------------------------- the tables
def tuning(record: Record) -> str:
    """Criterion at each candidate, the mean over the tuning seeds; the chosen one in bold."""
    rows = []
    for name, tried in record["tuning"].items():
        cells, best = [], chosen(record, name)
        for value, seeds in tried.items():
            text = "failed" if not all(seeds) else f"{average([s['mean'] for s in seeds]):.3f}"
            text = f"{value}: {text}"
            cells.append(f"**{text}**" if value == best else text)
        rows.append([title(record, name), f"`{record['methods'][name]['tuned']}`", ", ".join(cells), best])
    return markdown(["method", "key", "criterion at each candidate", "chosen"], rows)


def gold(record: Record, data: str = "") -> str:
    """Gold reward by domain, proxy and KL of each method, mean +- standard error over seeds."""
    columns = COLUMNS[record["benchmark"]]
    rows = [
        [title(record, name), *(spread([own[column] for own in seeds.values()]) for column in columns)]
        for name, seeds in results(record, data).items()
    ]
    if reference := start(record, data):
        cells = [
            spread(reference[column]) if column in reference and not column.startswith("kl") else ""
            for column in columns
        ]
        rows.append(["the SFT policy itself", *cells])
    return markdown(["method", *columns.values()], rows)


def differences(record: Record, data: str = "") -> str:
    """Every method against PPO, paired over seeds."""
    found, compared = results(record, data), COMPARED[record["benchmark"]]
    rows = [
        [title(record, name), *(shown(difference(found, name, "ppo", figure)) for figure in compared)]
        for name in found
        if name != "ppo" and "ppo" in found
    ]
    return markdown(["minus PPO", *compared.values()], rows)


def controls(record: Record, data: str = "") -> str:
    """GI-PPO against the controls of group inference, against its parts, and in its forms."""
    found, compared = results(record, data), COMPARED[record["benchmark"]]
    rows = [
        [
            f"{title(record, name)} minus {title(record, other)}",
            *(shown(difference(found, name, other, figure)) for figure in compared),
        ]
        for name, other in _COUNTERPARTS
        if name in found and other in found
    ]
    return markdown(["difference", *compared.values()], rows)


def distribution(record: Record) -> str:
    """Lower tail and kurtosis of the gold reward, by domain."""
    columns = {
        **{f"tail_{d}": f"lowest tenth, {d}" for d in ("easy", "hard", "ood")},
        **{f"kurtosis_{d}": f"excess kurtosis, {d}" for d in ("easy", "hard", "ood")},
        "proxy_tail_hard": "proxy: lowest tenth, hard",
        "proxy_kurtosis_easy": "proxy: kurtosis, easy",
    }
    rows = [
        [title(record, name), *(spread([own[column] for own in seeds.values()], 2) for column in columns)]
        for name, seeds in results(record).items()
    ]
    return markdown(["method", *columns.values()], rows)


def groups(record: Record, data: str = "") -> str:
    """What the groups were, over the last fifth of the iterations; smallest mass of the whole run; first warnings."""
    titles = (
        *("method", "AUC against the domains (worst seed)", "smaller mass, late (worst seed)"),
        *("smallest mass of any iteration", "mean p_high", "corr(p_high, reward)"),
        *("seeds with a warning (first iteration)", "failed"),
    )
    rows = []
    for name in record["methods"]:
        runs = outcomes(record, name, data)
        ended = [run for run in runs if not run["failure"]]
        late = [run["late"] for run in ended if "group/1/mass" in run["late"]]
        if not late:
            continue
        aucs = [row["group/domain_auc"] for row in late]
        masses = [min(row["group/0/mass"], row["group/1/mass"]) for row in late]
        cells = [
            f"{average(aucs):.2f} ({min(aucs):.2f})",
            f"{average(masses):.2f} ({min(masses):.2f})",
            f"{min(run['smallest_mass'] for run in ended):.2f}",
            f"{average([row['group/p_high'] for row in late]):.2f}",
            f"{average([row['group/reward_correlation'] for row in late]):.2f}",
            warned(ended),
            str(len(runs) - len(ended)),
        ]
        rows.append([title(record, name), *cells])
    return markdown(titles, rows)


def hacking(record: Record, data: str = "") -> str:
    """Where each method spent its KL and where it hacked. Effective eta: kl_coef times the mean p_high."""
    columns = {"kl_easy": "KL, easy", "kl_hard": "KL, hard", "kl_ood": "KL, out of domain"}
    titles = ["method", "effective eta", *columns.values(), "HACK share of tokens, easy", "hard", "response length"]
    rows = []
    found = results(record, data)
    for name in found:
        ended = [run for run in outcomes(record, name, data) if not run["failure"]]
        # A fixed KL weighs every response alike, whatever groups the method has beside it.
        high = [1.0 if name in _FIXED_KL else run["late"].get("group/p_high", 1.0) for run in ended]
        hack = [
            [run["hack_share"][domain] for run in ended if domain in run["hack_share"]] for domain in ("easy", "hard")
        ]
        eta = float(settings(record, name).get("algorithm.kl_coef", 0.0))
        cells = [
            "" if record["methods"][name].get("preset") == "dpo" else f"{eta * average(high):.3f}",
            *(spread([own[column] for own in found[name].values()], 2) for column in columns),
            *(spread(shares, 2) if shares else "" for shares in hack),
            f"{average([run['final']['eval/length'] for run in ended]):.1f}",
        ]
        rows.append([title(record, name), *cells])
    return markdown(titles, rows)


def preferences(record: Record) -> str:
    """What learning from pairs made of the pairs, mean +- standard error over seeds."""
    columns = {
        "pairs/accuracy": "pairs trained on last, right",
        "pairs/held_out/accuracy": "held-out pairs, right",
        "pairs/held_out/loss": "held-out loss",
        "pairs/held_out/margin": "held-out margin",
    }
    late = {
        name: [run["late"] for run in outcomes(record, name) if "pairs/accuracy" in run.get("late", {})]
        for name in record["methods"]
    }
    rows = [
        [title(record, name), *(spread([row[key] for row in found]) for key in columns)]
        for name, found in late.items()
        if found
    ]
    return markdown(["method", *columns.values()], rows)


def replication(record: Record) -> str:
    """Every method against PPO on the seeds that the study began with, and on those that were added later alone."""
    later = [seed for addition in record["additions"] for seed in addition["final_seeds"]]
    sides = {f"seeds {min(s)} to {max(s)}": s for s in (sorted(set(record["final_seeds"]) - set(later)), sorted(later))}
    compared = {key: name for key, name in COMPARED[record["benchmark"]].items() if key != "mixture"}
    found = results(record)
    by_side = [
        {name: {seed: own for seed, own in seeds.items() if seed in side} for name, seeds in found.items()}
        for side in sides.values()
    ]
    rows = [
        [title(record, name), *(shown(difference(own, name, "ppo", key)) for key in compared for own in by_side)]
        for name in found
        if name != "ppo"
    ]
    return markdown(["minus PPO", *(f"{name}, {side}" for name in compared.values() for side in sides)], rows)


def by_seed(record: Record) -> str:
    """GI-PPO minus PPO in each seed: the demo shows one of them."""
    found, compared = results(record), COMPARED[record["benchmark"]]
    ppo, gi_ppo = found["ppo"], found["gi_ppo"]
    rows = [
        [str(seed), *(f"{gi_ppo[seed][figure] - ppo[seed][figure]:+.3f}" for figure in compared)]
        for seed in sorted(set(ppo) & set(gi_ppo))
    ]
    return markdown(["seed", *compared.values()], rows)


def judge(record: Record) -> str:
    """What the two reward models are worth on the published test pairs, by domain."""
    columns = {
        "proxy_accuracy": "proxy, right",
        "gold_accuracy": "gold, right",
        "agreement": "order a pair alike",
        "correlation": "correlation of their rewards",
    }
    rows = [
        [
            domain,
            str(found["pairs"]),
            *(f"{found[key]:.2f}" if key == "correlation" else f"{found[key]:.1%}" for key in columns),
        ]
        for domain, found in record["judge"].items()
    ]
    return markdown(["test pairs", "pairs", *columns.values()], rows)


def overhead(record: Record) -> str:
    """Seconds of an iteration by phase, median, and GI-PPO over PPO."""
    measured = record["overhead"]
    sides = list(measured["seconds"])
    rows = []
    for phase, base in measured["seconds"][sides[0]].items():
        values = [measured["seconds"][side][phase] for side in sides]
        ratios = [f"{value / base - 1:+.1%}" if base else "" for value in values[1:]]
        rows.append([phase, *(f"{value * 1e3:.1f}" for value in values), *ratios])
    # Rounds are interleaved: a ratio is of neighbours in time, and its spread says what it is worth.
    for what, key in (("total, by round", "totals"), ("processor time, by round", "processor")):
        base = measured[key][sides[0]]
        cells = [f"{statistics.median(measured[key][side]) * 1e3:.1f}" for side in sides]
        for side in sides[1:]:
            ratios = sorted(value / first - 1 for value, first in zip(measured[key][side], base, strict=True))
            cells.append(f"{statistics.median(ratios):+.1%} ({ratios[0]:+.1%} to {ratios[-1]:+.1%})")
        rows.append([what, *cells])
    titles = ["phase", *(f"{side}, ms" for side in sides), *(f"{side} over {sides[0]}" for side in sides[1:])]
    return markdown(titles, rows)


PARTS: dict[str, Callable[[Record], str]] = {
    "settings": tuning,
    "gold": gold,
    "differences": differences,
    "controls": controls,
    "distribution": distribution,
    "groups": groups,
    "hacking": hacking,
    "preferences": preferences,
    "replication": replication,
    "even gold": lambda record: gold(record, "builtin:even"),
    "even differences": lambda record: differences(record, "builtin:even"),
    "even controls": lambda record: controls(record, "builtin:even"),
    "even groups": lambda record: groups(record, "builtin:even"),
    "by seed": by_seed,
    "judge": judge,
    "what the reward models know": learned_tables.judge,
    "explored gold": learned_tables.explored_gold,
    "explored differences": learned_tables.explored_differences,
    "explored signals": learned_tables.explored_signals,
    "equal KL": learned_tables.equal_kl,
    "equal KL differences": learned_tables.equal_kl_differences,
    "after DPO": learned_tables.after_dpo,
    "after DPO, differences": learned_tables.after_dpo_differences,
    "main questions": learned_tables.questions,
    "accuracy": hh_tables.curves,
    "how many it takes": hh_tables.needed,
    "overhead": overhead,
}


#: The tables of each kind of record.
DEMO = ("gold", "differences", "by seed")
_PARTS = {
    "group_robustness": tuple(PARTS)[: tuple(PARTS).index("by seed")],
    "demo_seeds": DEMO,
    "learned_exploration": ("what the reward models know", *(part for part in PARTS if part.startswith("explored"))),
    "learned_equal_kl": ("what the reward models know", "equal KL", "equal KL differences"),
    "learned_after_dpo": ("what the reward models know", "after DPO", "after DPO, differences"),
    "learned_reward": (
        *("settings", "what the reward models know", "gold", "differences", "main questions", "controls"),
        *("groups", "hacking", "preferences"),
    ),
    "hh_gold": ("judge", "settings", "gold", "differences", "controls", "groups", "preferences"),
    "hh_learning": ("accuracy", "how many it takes"),
    "group_overhead": ("overhead",),
}


def parts(record: Record) -> tuple[str, ...]:
    """The tables that a record can have by now; none for a record of something else."""
    known = _PARTS.get(record.get("benchmark", ""), ())
    needs = {"settings": "tuning", "judge": "judge", "overhead": "overhead", "what the reward models know": "judge"}
    absent = {
        "replication": not any(addition["final_seeds"] for addition in record.get("additions", [])),
        "preferences": not any(method.get("preset") == "dpo" for method in record.get("methods", {}).values()),
    }
    return tuple(part for part in known if record.get(needs.get(part, "runs")) and not absent.get(part))


def table(record: Record, part: str) -> str:
    return PARTS[part](record)
