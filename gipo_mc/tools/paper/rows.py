"""Deal out files of dialogues into parts that share no first question: for a judge that knows no row of training.

    python -m gipo_mc.tools.paper.rows --out DIR --parts policy judge harmless=FILE helpful=FILE

writes DIR/<part>_<label>.jsonl. The part of a row is that of the hash of its first question, whatever file it is in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gipo_mc.data.sources import BadRow, read_rows
from gipo_mc.errors import DataError, GipoError
from gipo_mc.run.arguments import Parser, name, say_error
from gipo_mc.run.jsonl import printable, storage_errors, write_atomically


def deal(sources: dict[str, str], parts: Sequence[str], out: Path) -> dict[str, int]:
    """Write the files; returns the rows of each. Raises DataError for a file or a row that cannot be read."""
    counts = {}
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for label, source in sources.items():
        dealt: dict[str, list[str]] = {part: [] for part in parts}
        for row in read_rows(source):
            if isinstance(row, BadRow):
                raise DataError(f"{row.where}: {row.reason}.")
            chosen = row.fields.get("chosen")
            if not isinstance(chosen, str):
                raise DataError(f"{row.where} has no text 'chosen': only dialogues as HH-RLHF has them are dealt out.")
            question = chosen.split("\n\nAssistant:", 1)[0].strip()
            number = int.from_bytes(hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()[:8], "big")
            dealt[parts[number % len(parts)]].append(json.dumps(dict(row.fields)) + "\n")
        for part, lines in dealt.items():
            path = out / f"{part}_{label}.jsonl"
            write_atomically(path, "".join(lines))
            counts[path.name] = len(lines)
    return counts


def _labelled(text: str) -> tuple[str, str]:
    label, _, path = text.partition("=")
    if not (label and path):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not written label=FILE")
    return name(label), name(path)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=_labelled, metavar="label=FILE", help="a file of HH-RLHF's form")
    parser.add_argument("--parts", nargs="+", type=name, required=True, metavar="PART", help="names of the parts")
    parser.add_argument("--out", type=name, required=True, metavar="DIR", help="folder to write into")
    options = parser.parse_args(argv)
    try:
        counts = deal(dict(options.sources), options.parts, Path(options.out))
    except GipoError as error:
        return say_error(error)
    print(printable(", ".join(f"{file}: {count} rows" for file, count in counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
