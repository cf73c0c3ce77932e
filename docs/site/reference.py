"""Writes the tables of docs/reference/ from the code: `python docs/site/reference.py`. `--check` only compares, and
ends with 1 where a page is behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common.documents import inserted  # noqa: E402
from gipo_mc import errors  # noqa: E402
from gipo_mc.evaluation.answers import JudgeStopped  # noqa: E402
from gipo_mc.report.meanings import SECTIONS  # noqa: E402


def metrics() -> str:
    """A table of each kind of metric."""
    parts = []
    for title, lines in SECTIONS.items():
        rows = [f"| {', '.join(f'`{n}`' for n in m.name.split(', '))} | {m.unit} | {m.text} |" for m in lines]
        parts.append("\n".join([f"## {title}", "", "| metric | unit | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def exit_codes() -> str:
    """A table of the exit codes, as the exceptions that carry them say it."""
    kinds = [kind for kind in errors.GipoError.__subclasses__() if kind.__module__ == errors.__name__]
    meanings = {0: "done", 1: "an error that this program did not expect: a traceback stands above"}
    meanings |= {kind.exit_code: _sentence(kind) for kind in kinds if kind is not errors.Requeue}
    meanings[errors.EXIT_REQUEUE] = "asked to stop, and stopped: the same command continues"
    meanings[errors.EXIT_INTERRUPTED] = "Ctrl-C"
    meanings[errors.EXIT_NO_READER] = "nobody reads standard output any more (`gipo-mc plan ... \\| head`)"
    meanings[JudgeStopped.exit_code] = "A judge does not answer any more, or gave too many answers without a verdict"
    rows = [f"| {code} | {text} |" for code, text in sorted(meanings.items())]
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows])


def _sentence(kind: type[Exception]) -> str:
    return (kind.__doc__ or "").strip().rstrip(".").replace("\n", " ")


#: (page, the name of its table) -> what makes the table.
TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/reference/metrics.md", "gipo_mc/report/meanings.py"): metrics,
    ("docs/reference/run_folder.md", "gipo_mc/errors.py"): exit_codes,
}


def main(words: list[str]) -> int:
    behind = []
    for (name, source), table in TABLES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        new = inserted(text, source, table())
        if new != text:
            behind.append(name)
            if "--check" not in words:
                page.write_text(new, encoding="utf-8")
    if "--check" in words:
        for name in dict.fromkeys(behind):
            print(f"{name} is behind the code: run python docs/site/reference.py", file=sys.stderr)
        return int(bool(behind))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
