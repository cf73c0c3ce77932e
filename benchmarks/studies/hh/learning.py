"""What reward models can learn from the HH rows of the gold half, and how many pairs would tell something apart.

    python benchmarks/studies/hh/learning.py --data DIR [--quick] [--workers 2] [--runs DIR] [--out FILE.json]
    python benchmarks/studies/hh/learning.py --table FILE.json [--into FILE.md]

`hh_gold.py` trains its gold reward model for 60 steps at one size. Here reward models of two sizes are trained longer,
on a third of that half's rows and on all of them, and judged on the published test pairs at every evaluation. One model
a cell. What follows from it, and from the spread over the runs of `hh_gold.py`, is a power analysis: training pairs by
a line through accuracy over log2 of the pairs, which is an extrapolation and said to be one, test pairs by the exact
sign test, runs by a paired t test. It goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a worker, before torch is imported

from benchmarks.common.machine import describe_machine
from benchmarks.common.record import fingerprint, write
from benchmarks.studies import hh_models, study, tables
from benchmarks.studies.cells import results
from benchmarks.studies.runs import forked, import_once, trained

#: Hidden sizes, and the one row in so many that is trained on.
WIDTHS, THINNED = (64, 128), (3, 1)
STEPS, EVERY = 120, 20
#: Shares of right pairs, and differences of the smaller gain over SFT, whose cost is asked.
ACCURACIES, EFFECTS = (0.55, 0.6, 0.65), (0.02, 0.05)
STUDY = Path(__file__).resolve().parents[2] / "results" / "hh_gold.json"


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    if options.table:
        return study.show(options)
    folder, steps = options.runs, 2 if options.quick else STEPS
    for name, count in hh_models.split(options.data, folder).items():
        print(f"rows of {name}: {count}", flush=True)
    thin(folder)
    import_once()
    others = hh_models.QUICK if options.quick else ()
    cells = [(width, thinned) for width in WIDTHS for thinned in THINNED]
    sft = [(f"sft_{width}", (_sft, folder, width, others)) for width in WIDTHS]
    rewards = [(_name(*cell), (_reward, folder, *cell, steps, others)) for cell in cells]
    for jobs in (sft, rewards):
        left = [job for job in jobs if not trained(folder / job[0])]
        for name, seconds in forked(left, folder, options.workers):
            print(f"{name}: {seconds:.0f} s", flush=True)
    record = {
        "benchmark": "hh_learning",
        "size": {"steps": steps, "every": EVERY, "rows_and_models": hh_models.fingerprint(options.data)},
        "machine": describe_machine(),
        "code": fingerprint(),
        "test_pairs": _read(folder),
        "runs": [outcome(folder, *cell) for cell in cells],
    }
    record["power"] = power(record, json.loads(STUDY.read_text()))
    write(options.out, record)
    print("\n\n".join(tables.table(record, part) for part in tables.parts(record)))
    return 0


def thin(folder: Path) -> None:
    """Write <folder>/data/gold<n>_<domain>.jsonl, one row in n of the gold half."""
    for thinned in THINNED:
        for domain in hh_models.DOMAINS:
            lines = Path(hh_models.file(folder, "gold", domain)).read_text(encoding="utf-8").splitlines(keepends=True)
            Path(hh_models.file(folder, f"gold{thinned}", domain)).write_text(
                "".join(lines[::thinned]), encoding="utf-8"
            )


def _rows(folder: Path, side: str, domain: str) -> int:
    return len(Path(hh_models.file(folder, side, domain)).read_text(encoding="utf-8").splitlines())


def _read(folder: Path) -> dict[str, int]:
    """Test pairs short enough for the models, by domain."""
    from gipo_mc.config import load_config
    from gipo_mc.data.loading import load_preferences
    from gipo_mc.data.tokenizer import load_tokenizer

    options = [*hh_models.words("preferences", folder, "gold"), *hh_models.REWARD]
    data = load_config(str(hh_models.CONFIGS / "hh_tiny_reward.yaml"), options).data
    tokenizer = load_tokenizer(str(folder / f"model_{WIDTHS[0]}"))
    return dict(Counter(load_preferences(data, tokenizer, part="evaluation").domain_of))


def _name(width: int, thinned: int) -> str:
    return f"reward_{width}_{thinned}"


# ---------------------------------------------------------------------------------------------------- in forks
def _sft(folder: Path, width: int, others: tuple[str, ...]) -> None:
    """The trunk of a size, trained on the gold half's dialogues."""
    from gipo_mc.config import load_config, validate
    from gipo_mc.supervised import sft
    from gipo_mc.tools.new_model import create_text_model

    start = folder / f"model_{width}"
    if not (start / "config.json").exists():
        rows = validate({"data": {"demonstrations": [hh_models.file(folder, "policy", d) for d in hh_models.DOMAINS]}})
        shape = hh_models.SHAPE | {"hidden_size": width, "intermediate_size": 11 * width // 4}
        create_text_model(start, rows.data, hh_models.VOCABULARY, 2, **shape)
    options = hh_models.words("demonstrations", folder, "gold")
    options += [f"run.name=sft_{width}", f"model.policy={start}", *others]
    sft.train(load_config(str(hh_models.CONFIGS / "hh_tiny_sft.yaml"), options))


def _reward(folder: Path, width: int, thinned: int, steps: int, others: tuple[str, ...]) -> None:
    from gipo_mc.config import load_config
    from gipo_mc.supervised import reward_model

    options = hh_models.words("preferences", folder, f"gold{thinned}")
    options += [f"run.name={_name(width, thinned)}", f"model.policy={folder / f'sft_{width}'}", *hh_models.REWARD]
    options += [f"run.iterations={steps}", f"checkpoint.every={steps}", f"eval.every={min(EVERY, steps)}"]
    options += [*others, "eval.prompts=100000"]
    reward_model.train(load_config(str(hh_models.CONFIGS / "hh_tiny_reward.yaml"), options))


# ---------------------------------------------------------------------------------------------------- what is read
def outcome(folder: Path, width: int, thinned: int) -> dict[str, Any]:
    """Training pairs of a cell, and accuracy on the test pairs, by domain, at each evaluation."""
    pairs = sum(_rows(folder, f"gold{thinned}", domain) for domain in hh_models.DOMAINS)
    lines = (folder / _name(width, thinned) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "eval/accuracy" in row and row["step"]]
    curve = [
        {
            "step": row["step"],
            "all": row["eval/accuracy"],
            **{domain: row[f"eval/accuracy/domain/{domain}"] for domain in hh_models.DOMAINS},
        }
        for row in rows
    ]
    return {"width": width, "pairs": pairs, "curve": curve}


def power(record: Mapping[str, Any], studied: Mapping[str, Any]) -> dict[str, Any]:
    """What it would take, from the models of this record and the runs of the other.

    slope: share of right pairs that a doubling of the training pairs adds, at each size, mean over the evaluations;
    error: its standard error, of the test pairs alone. training_pairs: for each of `ACCURACIES`, at the larger size;
    None where more pairs did not help. test_pairs: to tell such a model from a coin with 80 % power. runs: of each of
    two methods, to tell `EFFECTS` of their smaller gain with 80 % power, from the spread of GI-PPO minus PPO.
    """
    from gipo_mc.evaluation.statistics.power import pairs_needed

    count, slopes = sum(record["test_pairs"].values()), {}
    for width in sorted({run["width"] for run in record["runs"]}):
        own = sorted((run for run in record["runs"] if run["width"] == width), key=lambda run: run["pairs"])
        means = [statistics.mean(row["all"] for row in run["curve"]) for run in own]
        doublings = math.log2(own[-1]["pairs"] / own[0]["pairs"])
        slope = (means[-1] - means[0]) / doublings
        slopes[str(width)] = {"slope": slope, "error": math.sqrt(2 * 0.25 / count) / doublings, "accuracy": means[-1]}
    found, pairs = slopes[max(slopes, key=int)], max(run["pairs"] for run in record["runs"])
    by_seed = results(studied)
    spread = statistics.stdev(
        by_seed["gi_ppo"][seed]["worst"] - by_seed["ppo"][seed]["worst"] for seed in by_seed["gi_ppo"]
    )
    return {
        "slopes": slopes,
        "training_pairs": {
            f"{share:g}": pairs * 2 ** ((share - found["accuracy"]) / found["slope"]) if found["slope"] > 0 else None
            for share in ACCURACIES
        },
        "test_pairs": {f"{share:g}": pairs_needed(share, 0.0, 1.0 - share) for share in ACCURACIES},
        "spread": spread,
        "runs": {f"{effect:g}": runs_needed(spread, effect) for effect in EFFECTS},
    }


def runs_needed(spread: float, effect: float) -> int:
    """Paired runs at which a t test at 5 % tells a mean difference `effect` with 80 % power; spread: the standard
    deviation of a difference. Normal approximation with Guenther's correction for the t test (1.96^2 / 2)."""
    return math.ceil(((1.959964 + 0.841621) * spread / effect) ** 2 + 1.959964**2 / 2)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("HH_DATA"), help="folder of the rows [$HH_DATA]")
    parser.add_argument("--quick", action="store_true", help="two steps a model: does it run?")
    parser.add_argument("--workers", type=int, default=1, help="models at a time, one thread each [1]")
    parser.add_argument("--runs", type=Path, default=Path("runs/hh_learning"), help="folder of the runs [%(default)s]")
    out = Path("benchmarks/results/hh_learning.json")
    parser.add_argument("--out", type=Path, default=out, help="the record [%(default)s]")
    study.table_arguments(parser, drawn=False)
    options = study.parsed(parser, list(words) if words is not None else None)
    if not options.table and (why := hh_models.lacking(options.data)):
        parser.error(why)
    return options


if __name__ == "__main__":
    sys.exit(main())
