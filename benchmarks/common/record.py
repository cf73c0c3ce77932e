"""Results as JSON files that can be read and compared by eye: lists of numbers on one line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record, whole or not at all, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\[[^][{}\"]*\]", lambda m: " ".join(m[0].split()), json.dumps(_rounded(record), indent=1))
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def fingerprint() -> str:
    """One number for the sources that a result depends on, in a git checkout or not."""
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for folder in ("csrc", "gipo_mc", "benchmarks", "scripts"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".py", ".sh"}:
                total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
