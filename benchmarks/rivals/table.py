"""From the turns of all sides to medians, ratios with their spread, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MIB = 2**20
OURS = "ours"
#: How sides and units are named to people.
TITLES = {
    "ours": "gipo_mc",
    "transformers": "transformers generate",
    "vllm": "vLLM",
    "trl116": "TRL 1.16",
    "trl112": "TRL 1.12",
    "old": "earlier build",
    "sampled": "generation, 64 prompts of mixed length",
    "top_p": "generation with top-p 0.9",
    "four_samples": "generation, 16 prompts, four samples each",
    "sft": "SFT step, 32 sequences",
    "dpo": "DPO step, 16 pairs",
    "reward": "reward-model step, 16 pairs",
    "ppo": "PPO iteration, 32 prompts, two mini-batches",
    "memory": "peak memory of generation",
    "demo": "GI-PPO iteration of the demo, TP2 x PP2",
    "hh": "GI-PPO iteration of the HH run, TP2 x PP2",
}

Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def summary(runs: Runs) -> dict[str, Any]:
    """Of every side the medians of its turns, and of the others how many times as long as ours they take for a token:
    by the processor and by the wall, [median, lowest, highest] over the rounds."""
    found: dict[str, Any] = {}
    for side, turns in runs.items():
        found[side] = {
            name: statistics.median(turn[name] for turn in turns) for name in ("processor", "wall", "tokens")
        }
        if "phases" in turns[0]:
            found[side]["phases"] = {
                name: statistics.median(turn["phases"][name] for turn in turns) for name in turns[0]["phases"]
            }
        if side != OURS and OURS in runs:
            for clock in ("processor", "wall"):
                found[side][f"{clock}_times"] = _times(runs[OURS], turns, clock)
    return found


def _times(ours: Sequence[Mapping[str, Any]], rival: Sequence[Mapping[str, Any]], clock: str) -> list[float]:
    ratios = [(theirs[clock] / theirs["tokens"]) / (own[clock] / own["tokens"]) for own, theirs in zip(ours, rival)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def memory_summary(runs: Runs, floor: int) -> dict[str, Any]:
    """Of every side what its process held beyond the idle one at most, and how many times `floor` that is."""
    found = {}
    for side, turns in runs.items():
        extra = statistics.median(turn["extra_bytes"] for turn in turns)
        found[side] = {"extra_bytes": extra, "floor_bytes": floor, "times_floor": extra / floor}
    return found


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a line for each side of each unit, one for each comparison that was not made, and the memory."""
    lines = [
        "| work | side | tokens | processor | wall | processor: times ours (lowest to highest) | wall |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in record["cases"]:
        if case["unit"] != "memory":
            lines += _lines(case)
    memory = [case for case in record["cases"] if case["unit"] == "memory"]
    if memory:
        lines += ["", "| peak memory of generation | beyond the idle process | weights + KV | times that |"]
        lines.append("| --- | --- | --- | --- |")
        lines += [
            f"| {TITLES[side]} | {found['extra_bytes'] / MIB:.0f} MiB | {found['floor_bytes'] / MIB:.0f} MiB | "
            f"{found['times_floor']:.2f} |"
            for case in memory
            for side, found in case["summary"].items()
        ]
    lines += _phases(record)
    if record["not_run"]:
        lines.append("")
        lines += [f"not run: {TITLES[left['side']]}: {left['reason']}" for left in record["not_run"]]
    return "\n".join(lines)


def _lines(case: Mapping[str, Any]) -> list[str]:
    lines = []
    for side, found in case["summary"].items():
        times = [
            "{:.2f}x ({:.2f} to {:.2f})".format(*found[f"{clock}_times"]) if f"{clock}_times" in found else ""
            for clock in ("processor", "wall")
        ]
        lines.append(
            f"| {TITLES[case['unit']]} | {TITLES[side]} | {found['tokens']:.0f} | {found['processor']:.2f} s | "
            f"{found['wall']:.2f} s | {times[0]} | {times[1]} |"
        )
    return lines


def _phases(record: Mapping[str, Any]) -> list[str]:
    """The phases of our iterations, seconds of the wall."""
    found = []
    for case in record["cases"]:
        phases = case["summary"].get(OURS, {}).get("phases", {})
        if phases:
            named = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items())
            found += ["", f"{TITLES[case['unit']]}, {TITLES[OURS]}: {named}"]
    return found
