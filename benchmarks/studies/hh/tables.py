"""Tables of what reward models learn from HH rows, as Markdown, from the record alone."""

from __future__ import annotations

from benchmarks.studies import hh_models
from benchmarks.studies.cells import Record, markdown


def curves(record: Record) -> str:
    """Accuracy on the test pairs at each evaluation, of each cell, as a table."""
    steps = [row["step"] for row in record["runs"][0]["curve"]]
    rows = [
        [str(run["width"]), str(run["pairs"]), *(f"{row['all']:.1%}" for row in run["curve"])]
        + [f"{run['curve'][-1][domain]:.1%}" for domain in hh_models.DOMAINS]
        for run in record["runs"]
    ]
    titles = [f"step {step}" for step in steps] + [f"{domain}, last" for domain in hh_models.DOMAINS]
    return markdown(["hidden size", "training pairs", *titles], rows)


def needed(record: Record) -> str:
    """The power analysis as a table."""
    found = record["power"]
    rows = [
        [f"a reward model right on {float(share):.0%}", "training pairs", _about(count)]
        for share, count in found["training_pairs"].items()
    ]
    rows += [
        [f"to tell {float(share):.0%} from a coin", "test pairs", f"{count:,}"]
        for share, count in found["test_pairs"].items()
    ]
    rows += [
        [f"to tell {float(effect):g} of the smaller gain between two methods", "runs of each", f"{count:,}"]
        for effect, count in found["runs"].items()
    ]
    return markdown(["what", "unit", "how many"], rows)


def _about(count: float | None) -> str:
    if count is None:
        return "more pairs did not help here"
    return f"about {count:,.0f}" if count < 1e7 else "more than ten million"
