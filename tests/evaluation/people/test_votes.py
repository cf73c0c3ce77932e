"""Votes: what is taken, what is refused, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gipo_mc.errors import DataError
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.evaluation.people.voters import voter_reports
from gipo_mc.evaluation.people.votes import import_votes, is_name, people_games, read_votes
from tests.evaluation.people.folders import evaluation, page, pair, votes_file, write_pairs


def _take(folder: Path, key, *files: Path, replace: bool = False):
    return import_votes(folder, key, read_pairs(folder), files, replace=replace)


def _where(key, kind: str) -> list[int]:
    return [place for place, item in enumerate(key.items) if item.kind == kind]


def test_votes_become_verdicts_whatever_the_side(tmp_path: Path):
    folder = evaluation(tmp_path / "e")
    _, key = page(folder)
    votes = _take(folder, key, votes_file(tmp_path / "a.json", key, "anna", "ours"))
    assert votes == read_votes(folder) and len(votes) == len(key.items)
    for vote, item in zip(votes, key.items, strict=True):
        assert (vote.voter, vote.page, vote.pair, vote.kind) == ("anna", key.page, item.pair, item.kind)
        assert vote.ours_first == item.ours_first
        assert vote.passed is (True if item.asked else None)
        assert item.asked or vote.verdict == "ours"
    columns = json.loads((folder / "votes.jsonl").read_text().split("\n")[0])
    assert {"voter", "page", "pair", "opponent", "ours_first", "verdict", "seconds", "kind"} <= set(columns)


def test_games_of_people(tmp_path: Path):
    folder = evaluation(tmp_path / "e")
    _, key = page(folder, repeats=2, attention=1)
    shown = _where(key, "pair")
    verdicts = {
        "anna": dict.fromkeys(shown, "ours"),
        "ben": {shown[0]: "ours", shown[1]: "theirs", shown[2]: "skip"},
        "eve": {shown[0]: "theirs", shown[1]: "theirs", shown[2]: "tie"},
    }
    files = [votes_file(tmp_path / f"{who}.json", key, who, given) for who, given in verdicts.items()]
    games = people_games(_take(folder, key, *files), read_pairs(folder))
    by = {(game.evaluator, game.pair): game for game in games}
    assert len(by) == len(games), "one of each evaluator and pair: repeats and attention make none"
    assert [game.evaluator for game in games] == ["people:anna"] * 10 + ["people:ben"] * 2 + ["people:eve"] * 3
    assert [by["people:eve", key.items[i].pair].outcome for i in shown[:3]] == ["theirs", "theirs", "tie"]
    assert ("people:ben", key.items[shown[2]].pair) not in by, "skipped"
    first = by["people:anna", key.items[shown[0]].pair]
    source = next(each for each in read_pairs(folder) if each.pair == first.pair)
    assert (first.conversation, first.opponent, first.domain, first.group, first.ours_length, first.theirs_length) == (
        source.conversation, source.opponent, source.domain, source.group, 2, 3,
    )  # fmt: skip
    assert first.ours_first == key.items[shown[0]].ours_first and first.repeat == 0


def test_identical_pairs_are_ties_of_everybody(tmp_path: Path):
    folder = write_pairs(tmp_path / "e", [pair(i, **({"theirs": f" o{i} words"} if i < 2 else {})) for i in range(6)])
    _, key = page(folder)
    games = people_games(_take(folder, key, votes_file(tmp_path / "a.json", key, "anna", "ours")), read_pairs(folder))
    assert sorted(game.outcome for game in games) == ["identical"] * 2 + ["ours"] * 4


def test_two_pages(tmp_path: Path):
    """The same voter on two pages is no duplicate; a pair that both show is two games."""
    folder = evaluation(tmp_path / "e", opponents=("sft",))
    keys = [page(folder, seed=seed)[1] for seed in (0, 1)]
    for number, key in enumerate(keys):
        votes = _take(folder, key, votes_file(tmp_path / f"{number}.json", key, "anna", "ours"))
    games = people_games(votes, read_pairs(folder))
    assert len(games) == 20 == len({(game.pair, game.ours_first, game.repeat) for game in games})
    report = voter_reports(votes, {key.page: key for key in keys})
    assert [(each.voter, len(each.pages), each.missing) for each in report] == [("anna", 2, 0)]


def test_a_voter_twice_is_refused_or_replaced(tmp_path: Path):
    folder = evaluation(tmp_path / "e")
    _, key = page(folder)
    ours, theirs = (votes_file(tmp_path / f"{each}.json", key, "anna", each) for each in ("ours", "theirs"))
    ben = votes_file(tmp_path / "ben.json", key, "ben", "tie")
    with pytest.raises(DataError, match="are both votes of 'anna'"):
        _take(folder, key, ours, theirs)
    assert not (folder / "votes.jsonl").exists()
    _take(folder, key, ours, ben)
    before = (folder / "votes.jsonl").read_bytes()
    with pytest.raises(DataError, match="--replace"):
        _take(folder, key, theirs)
    assert (folder / "votes.jsonl").read_bytes() == before
    votes = _take(folder, key, theirs, replace=True)
    assert {v.verdict for v in votes if v.voter == "anna" and v.kind == "pair"} == {"theirs"}
    assert sum(v.voter == "ben" for v in votes) == len(key.items) == sum(v.voter == "anna" for v in votes)


def test_a_foreign_page_is_refused(tmp_path: Path):
    folder = evaluation(tmp_path / "e")
    _, key = page(folder)
    _, other = page(folder, seed=3)
    file = votes_file(tmp_path / "a.json", other, "anna", "ours")
    with pytest.raises(DataError, match=f"holds votes on page {other.page}, and this is page {key.page}"):
        _take(folder, key, file)
    good = votes_file(tmp_path / "b.json", key, "ben", "ours")
    with pytest.raises(DataError, match="Nothing was imported"):
        _take(folder, key, good, file)
    assert not (folder / "votes.jsonl").exists(), "all files or none"


def test_pairs_that_changed_are_refused(tmp_path: Path):
    folder = evaluation(tmp_path / "e")
    _, key = page(folder)
    file = votes_file(tmp_path / "a.json", key, "anna", "ours")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    write_pairs(folder, rows[:15])
    with pytest.raises(DataError, match="no longer holds"):
        _take(folder, key, file)


def test_damaged_files_are_refused(tmp_path: Path):
    folder = evaluation(tmp_path / "e")
    _, key = page(folder)
    good = json.loads(votes_file(tmp_path / "a.json", key, "anna", "ours").read_text())
    votes = good["votes"]
    damaged = {
        "cut": json.dumps(good)[:200],
        "empty": "",
        "list": "[]",
        "deep": "[" * 100_000,
        "page as a number": json.dumps(good | {"page": 7}),
        "format": json.dumps(good | {"format": "x"}),
        "more": json.dumps(good | {"x": 1}),
        "pairs": json.dumps(good | {"pairs": 3}),
        "no votes": json.dumps(good | {"votes": []}),
        "twice": json.dumps(good | {"votes": [*votes, votes[0]]}),
        "outside": json.dumps(good | {"votes": [votes[0] | {"item": len(key.items)}]}),
        "negative": json.dumps(good | {"votes": [votes[0] | {"item": -1}]}),
        "text for a number": json.dumps(good | {"votes": [votes[0] | {"item": "0"}]}),
        "time": json.dumps(good | {"votes": [votes[0] | {"seconds": -1}]}),
        "endless": json.dumps(good | {"votes": [votes[0] | {"seconds": float("inf")}]}),
        "verdict": json.dumps(good | {"votes": [votes[0] | {"vote": "ours"}]}),
        "name": json.dumps(good | {"voter": "a\nb"}),
        "no name": json.dumps(good | {"voter": ""}),
        "long name": json.dumps(good | {"voter": "a" * 41}),
    }
    for what, text in damaged.items():
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad\.json") as caught:
            _take(folder, key, tmp_path / "bad.json")
        assert len(str(caught.value)) < 500, what
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(DataError, match="cannot be read"):
            _take(folder, key, path)
    assert not (folder / "votes.jsonl").exists()
    (folder / "votes.jsonl").write_text('{"voter": "x"}\n')
    with pytest.raises(DataError, match=r"votes\.jsonl:1: not a line"):
        read_votes(folder)


def test_names():
    assert all(map(is_name, ("anna", "Zoë", "李 雷", "a_b-c.d", "נעמי", "x" * 40, "__proto__", "हिन्दी")))
    assert not any(map(is_name, ("", " ", " a", "a ", "x" * 41, "a:b", "<b>", "a\u202eb", "a/b", "a\tb", "a\n")))


def test_reports_of_voters(tmp_path: Path):
    folder = evaluation(tmp_path / "e", 20)
    _, key = page(folder, pairs=16, repeats=4, attention=2)
    shown, again, tested = (_where(key, kind) for kind in ("pair", "repeat", "attention"))
    steady = dict.fromkeys([*shown, *again, *tested], "ours")
    # Always left: a repeat, whose sides are swapped, gets the opposite verdict from the same side.
    left = {i: "ours" if key.items[i].ours_first else "theirs" for i in [*shown, *again]}
    lazy = left | {shown[0]: "skip", shown[1]: "skip"}
    del lazy[shown[2]]
    files = [
        votes_file(tmp_path / "a.json", key, "anna", steady),
        votes_file(tmp_path / "b.json", key, "ben", lazy),
    ]
    raw = json.loads(files[1].read_text())
    raw["votes"] += [
        {"item": tested[0], "vote": "tie", "seconds": 1},
        {"item": tested[1], "vote": "skip", "seconds": 1},
    ]
    files[1].write_text(json.dumps(raw))
    anna, ben = voter_reports(_take(folder, key, *files), {key.page: key})
    assert (anna.judged, anna.skipped, anna.missing) == (22, 0, 0)
    assert (anna.attention, anna.failed, anna.repeats, anna.same, anna.same_side) == (2, 0, 4, 4, 0)
    assert (ben.skipped, ben.missing, ben.attention, ben.failed) == (3, 1, 1, 1)
    gone = {key.items[i].pair for i in shown[:3]}
    repeats = [i for i in again if key.items[i].pair not in gone]
    assert (ben.repeats, ben.same, ben.same_side, ben.first_side) == (len(repeats), 0, len(repeats), 1.0)
    assert anna.seconds == 1.5 + 21 / 2
