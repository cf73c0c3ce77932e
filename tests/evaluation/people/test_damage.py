"""Damaged files in front of the readers of pages, keys and votes: values and sentences come out, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gipo_mc.errors import GipoError
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.evaluation.people.guidelines import guideline_file
from gipo_mc.evaluation.people.key import read_key
from gipo_mc.evaluation.people.page import page_hash
from gipo_mc.evaluation.people.votes import import_votes, people_games, read_votes
from tests.evaluation.people.folders import evaluation, page, votes_file
from tests.fuzz.mutations import COUNT, mutated


def _readers(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    home = evaluation(folder / "e")
    written, key = page(home)
    file = votes_file(folder / "a.json", key, "anna", "ours")
    pairs = read_pairs(home)
    import_votes(home, key, pairs, [file])
    (folder / "guide.txt").write_text("Which?\n\nRead both, é.\n")
    return {
        "file of votes": (file, lambda path: import_votes(home, key, pairs, [path], replace=True)),
        "votes": (home / "votes.jsonl", lambda path: people_games(read_votes(home), pairs)),
        "key": (written.key, lambda path: read_key(home, key.page)),
        "page": (written.path, page_hash),
        "guideline": (folder / "guide.txt", guideline_file),
    }


@pytest.mark.parametrize("name", ["file of votes", "votes", "key", "page", "guideline"])
def test_damage_is_answered_in_sentences(tmp_path: Path, name: str):
    file, read = _readers(tmp_path)[name]
    whole, failures, sentences = file.read_bytes(), [], 0
    read(file)
    for number in range(COUNT or 150):
        file.write_bytes(mutated(whole, name, number))
        try:
            read(file)
        except GipoError as error:
            sentences += 1
            assert 20 < len(str(error)) < 1000, error
        except Exception as error:
            failures.append(f"mutation {number}: {type(error).__name__}: {str(error)[:200]}")
    assert not failures, f"{len(failures)} of {name}:\n" + "\n".join(failures[:20])
    assert sentences > 3
