"""Records of benchmarks/kernels/kernels.py as Markdown tables and as a picture: every figure shown is computed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common.machine import show_machine

_TITLES = {
    "token_statistics": "A, token statistics",
    "paged_attention": "Attention over a paged cache",
    "token_objective": "A and B from logits",
    "group_objective": "B, group objective",
    "shape_and_gae": "C, shaping and GAE",
    "sample": "D, sampling",
    "causal_attention": "Attention of whole sequences",
    "norm_of_sum": "RMSNorm of a sum",
    "gated_silu": "Gated SiLU",
}
_CLOCKS = {"wall": "", "again": ", again", "queued": "", "graph": " (CUDA graph)"}
_HEADS = ("implementation", "forward ms", "backward ms", "both ms", "least ms", "x ours", "of copy bandwidth")
_LATER = ("extra memory MiB", "error of outputs", "error of gradient")


def document_table(record: dict[str, Any]) -> str:
    """Machine and tables of a record, as docs/kernels.md holds them."""
    parts = ["```\n" + show_machine(record["machine"]) + "\n```", *map(case_table, record["cases"])]
    parts.append(notes(record))
    parts += [f"Not run: {left['case']} ({left['reason']})." for left in record["not_run"]]
    return "\n\n".join(parts)


def case_table(case: dict[str, Any]) -> str:
    """One case: what it is, its floor, and a row for each implementation."""
    shape = ", ".join(f"{name} = {size}" for name, size in case["shape"].items())
    floor = case["floor_bytes"]
    total = floor["forward"] + floor["backward"]
    copy = case["copy_bytes_per_s"]
    heads = _HEADS if case["differentiated"] else tuple(h for h in _HEADS if h != "backward ms")
    lines = [
        f"**{_TITLES[case['op']]}**, {case['dtype']}, {shape}. Fewest bytes {total / 1e6:.1f} MB; copy "
        f"{copy / 1e9:.1f} GB/s, read {case['read_bytes_per_s'] / 1e9:.1f} GB/s; floor {total / copy * 1e3:.3f} ms.",
        "",
        "| " + " | ".join((*heads, *_LATER)) + " |",
        "| --- |" + " ---: |" * (len(heads) + len(_LATER) - 1),
    ]
    lines += [_row(case, run, len(heads)) for run in case["runs"]]
    if case["rounding_error"]:
        blank = " |" * (len(heads) + 1)
        lines.append(f"| float64, rounded once{blank} | {max(case['rounding_error'].values()):.1e} |")
    same = [run["bitwise"] for run in case["runs"] if "bitwise" in run]
    if same:
        verdict = "the same bits" if all(b["equal"] for b in same) else "**different bits**"
        lines += ["", f"{same[0]['repeats']} more passes of each of ours: {verdict}."]
    return "\n".join(lines)


def notes(record: dict[str, Any]) -> str:
    """What must be known of each implementation, one line each."""
    found = {
        f"{_TITLES[case['op']]}; {run['name']}": run["note"]
        for case in record["cases"]
        for run in case["runs"]
        if run.get("note")
    }
    return "\n".join(f"- {name}: {note}." for name, note in found.items())


def _row(case: dict[str, Any], run: dict[str, Any], columns: int) -> str:
    name = run["name"] + _CLOCKS.get(run.get("clock", ""), "")
    if run["status"] != "ran":
        return f"| {name} | not run: {run['reason'].replace('|', '/')}" + " |" * (columns + len(_LATER) - 1)
    seconds, ours = run["seconds"], _ours(case, run["clock"])
    parts = [name, _ms(seconds["forward"])]
    if case["differentiated"]:
        parts.append(_ms(seconds["backward"]))
    parts += [
        _ms(seconds["both"]),
        _ms(seconds["least"]),
        f"{seconds['both'] / ours:.2f}",
        f"{fraction(case, run):.2f}",
        f"{run['extra_bytes'] / 2**20:.1f}",
        _worst(run["errors"], gradient=False),
        _worst(run["errors"], gradient=True),
    ]
    return "| " + " | ".join(parts) + " |"


def fraction(case: dict[str, Any], run: dict[str, Any]) -> float:
    """Fewest bytes over measured time, as a fraction of the copy bandwidth."""
    total = case["floor_bytes"]["forward"] + case["floor_bytes"]["backward"]
    return total / run["seconds"]["both"] / case["copy_bytes_per_s"]


def _ours(case: dict[str, Any], clock: str) -> float:
    """Seconds of the first of ours that ran under this clock."""
    return next(r["seconds"]["both"] for r in case["runs"] if r["ours"] and r.get("clock") == clock)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.1 else f"{seconds * 1e3:.1f}"


def _worst(errors: dict[str, float], gradient: bool) -> str:
    found = [error for name, error in errors.items() if name.startswith("d ") is gradient]
    return f"{max(found):.1e}" if found else ""


def picture(record: dict[str, Any], path: Path) -> None:
    """Time over floor (log scale) for each implementation, one panel an op, one colour a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    ops = [op for op in _TITLES if any(case["op"] == op for case in record["cases"])]
    names = {op: _names([c for c in record["cases"] if c["op"] == op]) for op in ops}
    heights = [len(names[op]) + 2.2 for op in ops]
    figure, axes = plt.subplots(
        len(ops), 1, figsize=(9, 0.34 * sum(heights)), sharex=True, squeeze=False, height_ratios=heights
    )
    for axis, op in zip(axes[:, 0], ops, strict=True):
        of_op = [case for case in record["cases"] if case["op"] == op]
        for number, case in enumerate(of_op):
            ran = [run for run in case["runs"] if run["status"] == "ran"]
            rows = [names[op].index(_label(run)) for run in ran]
            axis.plot(
                [1 / fraction(case, run) for run in ran],
                [row + 0.22 * (number - (len(of_op) - 1) / 2) for row in rows],
                "os^DvP"[number % 6],
                markersize=6,
                label=", ".join([case["dtype"], *(f"{k} {v}" for k, v in case["shape"].items())]),
            )
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xscale="log", ylim=(len(names[op]) - 0.4, -0.6))
        axis.set_title(_TITLES[op], fontsize=10, x=-0.02, ha="right", fontweight="bold")
        axis.set_yticks(range(len(names[op])), names[op], fontsize=9)
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.grid(axis="x", which="both", linewidth=0.4, alpha=0.5)
        axis.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0)
    axes[-1, 0].set_xlabel("time over the floor, forward + backward (1: fewest bytes at copy bandwidth)")
    machine = record["machine"]
    where = machine["gpu"] if record["device"] == "cuda" else f"{machine['cpu']}, {record['threads']} threads"
    figure.suptitle(f"{where}; {machine['date'][:10]}, commit {(machine['commit'] or 'unknown')[:7]}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _label(run: dict[str, Any]) -> str:
    return run["name"] + _CLOCKS.get(run["clock"], "")


def _names(cases: list[dict[str, Any]]) -> list[str]:
    """Implementations that ran in any of the cases, in the order of the tables."""
    return list(dict.fromkeys(_label(run) for case in cases for run in case["runs"] if run["status"] == "ran"))
