"""The benchmark of the kernels runs, its record holds what docs quote, and documents hold their records' tables."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import documents, timing
from benchmarks.kernels import kernels, layers, roofline, small_cases
from benchmarks.studies import tables
from tests.scripts import run_script

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "kernels" / "kernels.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(record, what was printed) of a run on tiny shapes; torch.compile stands still, because it takes its time."""
    path = tmp_path_factory.mktemp("benchmark") / "kernels.json"
    tiny = ["--quick", "--device", "cpu", "--rows", "12", "--columns", "700", "--sequences", "4", "6", "--threads", "1"]
    tiny += ["--dtypes", "bfloat16", "--rounds", "2", "--out", str(path), "--picture", str(path.with_suffix(".png"))]
    done = run_script(SCRIPT, *tiny, environment={"TORCHDYNAMO_DISABLE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return path, done.stdout


@pytest.fixture
def record(ran: tuple[Path, str]) -> dict[str, Any]:
    return json.loads(ran[0].read_text())


def test_every_op_is_measured_beside_its_rivals(record: dict[str, Any]) -> None:
    assert {"date", "commit", "dirty", "torch", "cpu", "kernels"} <= set(record["machine"])
    assert [case["op"] for case in record["cases"]] == [
        "token_statistics",
        "paged_attention",
        "token_objective",
        "group_objective",
        "group_objective",
        "shape_and_gae",
        "sample",
        "sample",
        "sample",
        "causal_attention",
        "norm_of_sum",
        "gated_silu",
    ]
    for case in record["cases"]:
        assert case["copy_bytes_per_s"] > 0 and case["read_bytes_per_s"] > 0
        names = {run["name"]: run for run in case["runs"]}
        rivals = {"eager torch", "torch.compile of eager torch"}
        if case["op"] == "paged_attention":
            rivals = {"reference", "scaled_dot_product_attention", "flash_attn_with_kvcache"}
        if case["op"] in layers.OPS:
            rivals = {"eager torch"}
        assert rivals <= set(names)
        for run in case["runs"]:
            if run["status"] == "not run":
                assert run["reason"], run["name"]
                continue
            assert len(run["forward_s"]) == len(run["backward_s"]) == 2
            assert run["seconds"]["least"] <= run["seconds"]["both"]
            draws_for_itself = case["op"] == "sample" and run["name"] not in ("gipo_mc", "reference")
            assert run["errors"] or draws_for_itself, f"{run['name']} was compared with nothing"
            if run["ours"]:
                assert run["bitwise"] == {"repeats": 2, "equal": True}
    tokens = {run["name"]: run for run in record["cases"][0]["runs"]}
    assert {"Megatron, fused", "Megatron, unfused", "Liger, a gradient a token"} <= set(tokens)
    assert tokens["Megatron, unfused"]["gives"] == ["logp"] and tokens["gipo_mc"]["gives"] == ["entropy", "logp"]


def test_figures_follow_from_what_was_measured(record: dict[str, Any]) -> None:
    case = record["cases"][0]
    logits = 12 * 700 * 2
    assert case["floor_bytes"] == {"forward": logits, "backward": 2 * logits}
    runs = {run["name"]: run for run in case["runs"]}
    # The gradient in memory of its own is one more buffer of that size; every eager intermediate is float32.
    assert 0.9 * logits < runs["gipo_mc"]["extra_bytes"] - runs["gipo_mc, in place"]["extra_bytes"] < 2 * logits
    assert runs["eager torch"]["extra_bytes"] > 3 * 2 * logits
    # Rounding the gradient is most of the error of a kernel that computes in float32.
    rounding = case["rounding_error"]["d logits"]
    assert rounding / 2 < runs["gipo_mc"]["errors"]["d logits"] < 2 * rounding
    assert runs["gipo_mc"]["errors"]["logp"] < 1e-6 < runs["eager torch, no upcast"]["errors"]["logp"]
    seconds = runs["gipo_mc"]["seconds"]["both"]
    assert roofline.fraction(case, runs["gipo_mc"]) == pytest.approx(3 * logits / seconds / case["copy_bytes_per_s"])


def test_tables_and_picture(ran: tuple[Path, str], record: dict[str, Any]) -> None:
    path, printed = ran
    for case in record["cases"]:
        ratio = f"| {roofline.fraction(case, case['runs'][-1]):.2f} |" if case["runs"][-1]["status"] == "ran" else ""
        assert ratio in roofline.case_table(case) and roofline.case_table(case).splitlines()[2] in printed
        missing = [run for run in case["runs"] if run["status"] == "not run"]
        assert roofline.case_table(case).count("not run: ") == len(missing)
    assert path.with_suffix(".png").stat().st_size > 10_000
    document = path.with_name("document.md")
    document.write_text(f"before\n{documents.marker(path.as_posix())}\nold\n{documents.END}\nafter\n")
    assert kernels.show_table(path, document) == 0
    text = document.read_text()
    assert roofline.document_table(record) in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    with pytest.raises(ValueError, match="has no lines"):
        documents.inserted("nothing here", "x.json", "table")


_PAGES = [page for folder in ("docs", "docs/results") for page in sorted((ROOT / folder).glob("*.md"))]


@pytest.mark.parametrize("document", _PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_of_documents_are_those_of_their_records(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for source in re.findall(re.escape(documents.marker("@")).replace("@", "(.*)"), text):
        path, _, part = source.partition(": ")
        if "/" not in path:
            continue  # another benchmark's, whose own test holds it
        record = json.loads((ROOT / path).read_text())
        table = tables.table(record, part) if part else roofline.document_table(record)
        assert documents.inserted(text, source, table) == text, (
            f"python benchmarks/{record['benchmark']}.py --table {path} --into {document.relative_to(ROOT)}"
        )
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
        assert (document.parent / target).exists(), f"{document.name} points to {target}"


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    def step() -> None:
        first = torch.zeros(1000)
        second = first + 1  # two are alive here, then one of the next size
        del first, second
        torch.zeros(1500)

    assert 2 * 4000 <= timing.peak_extra_bytes(step, torch.device("cpu")) < 2 * 4000 + 100


def test_small_cases_repeat_their_bits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["small_cases", "--device", "cpu", "--repeats", "1", "--dtypes", "bfloat16"])
    assert small_cases.main() == 0
    assert "1 repeats each, 0 wrong" in capsys.readouterr().out
    count = iter(range(100))
    monkeypatch.setattr(small_cases, "jobs", lambda _: [("a", torch.float32, lambda d: [torch.tensor(next(count))])])
    assert small_cases.main() == 1
    assert "a repeat gave other bits" in capsys.readouterr().err
