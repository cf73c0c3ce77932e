"""`evaluate.py page` and `evaluate.py votes`: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gipo_mc.evaluation.people.key import read_key
from gipo_mc.evaluation.people.page import page_hash
from gipo_mc.evaluation.reading import games_of
from gipo_mc.tools.evaluate.command import main
from tests.evaluation.people.folders import evaluation, pair, votes_file, write_pairs


def _page(tmp_path: Path, *options: str):
    folder, out = tmp_path / "e", tmp_path / "page.html"
    assert main(["page", str(folder), "--out", str(out), *options]) == 0
    return out, read_key(folder, page_hash(out))


def test_from_page_to_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = evaluation(tmp_path / "e", 20)
    out, key = _page(tmp_path, "--pairs", "16", "--repeats", "3", "--attention", "2")
    said = capsys.readouterr().out
    assert "16 pairs (8 with ppo, 8 with sft), 3 of them twice, and 2 attention pairs" in said
    assert f"pages/{key.page}.json" in said and "never the folder" in said
    halves = {i: ("ours", "theirs")[i % 2] for i in range(len(key.items))}
    files = [
        votes_file(tmp_path / "a.json", key, "anna", "ours"),
        votes_file(tmp_path / "b.json", key, "ben", halves),
    ]
    raw = json.loads(files[1].read_text())
    for vote in raw["votes"]:
        vote["vote"] = "tie" if key.items[vote["item"]].asked else vote["vote"]
    files[1].write_text(json.dumps(raw))
    assert main(["votes", str(folder), str(out), *map(str, files), "--draws", "50"]) == 0
    said = capsys.readouterr().out
    assert "anna: 21 judged, 0 skipped, 0 without an answer; attention 2 of 2; repeats 3 of 3 alike" in said
    assert "warning: 2 attention pairs failed" in said and said.count("warning") == 1
    assert "2 people" in said and "people:anna and people:ben" in said
    stored = json.loads((folder / "agreement.json").read_text())
    assert [voter["voter"] for voter in stored["voters"]] == ["anna", "ben"]
    assert stored["among"]["pairs"] == 16 and stored["couples"][0]["percent"]["value"] < 1
    evaluators = {game.evaluator for game in games_of(folder)}
    assert evaluators == {"people:anna", "people:ben"}

    bits = (folder / "agreement.json").read_bytes()
    assert main(["votes", str(folder), "--draws", "50"]) == 0, "agreement alone, for example after another judge"
    assert (folder / "agreement.json").read_bytes() == bits
    capsys.readouterr()
    assert main(["votes", str(folder), str(out), str(files[0])]) == 3
    assert "--replace" in capsys.readouterr().err
    assert main(["votes", str(folder), str(out), str(files[0]), "--replace", "--draws", "0"]) == 0


def test_one_voter_without_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = evaluation(tmp_path / "e")
    out, key = _page(tmp_path)
    file = votes_file(tmp_path / "a.json", key, "anna", "tie")
    assert main(["votes", str(folder), str(out), str(file)]) == 0
    assert "nobody to agree with" in capsys.readouterr().out


def test_names_of_opponents_are_printed_safely(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_pairs(tmp_path / "e", [pair(i, "a\x1b[31m") for i in range(3)])
    _page(tmp_path)
    assert "\x1b" not in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = evaluation(tmp_path / "e")
    out, key = _page(tmp_path)
    (tmp_path / "letter.html").write_text("<!doctype html>\n<p>mine\n")
    file = str(votes_file(tmp_path / "a.json", key, "anna", "tie"))
    (tmp_path / "other").mkdir()
    for words, code, says in (
        (["page", str(folder), "--out", str(tmp_path / "letter.html")], 2, "another kind"),
        (["page", str(tmp_path / "other"), "--out", str(tmp_path / "x.html")], 3, "no evaluation"),
        (["page", str(folder), "--out", str(tmp_path / "a.json" / "x.html")], 6, "cannot be written"),
        (["page", str(folder), "--out", str(tmp_path / "x.html"), "--against", "none"], 3, "those with ppo, sft"),
        (["votes", str(folder)], 3, "holds no votes yet"),
        (["votes", str(folder), str(out)], 3, "name those that the voters downloaded"),
        (["votes", str(folder), str(tmp_path / "letter.html"), file], 3, "no page for votes"),
        (["votes", str(evaluation(tmp_path / "f")), str(out), file], 3, "was not made from the evaluation"),
    ):
        assert main(words) == code, words
        assert says in capsys.readouterr().err, words
    key_file = folder / "pages" / f"{key.page}.json"
    key_file.write_text(key_file.read_text()[:50])
    assert main(["votes", str(folder), str(out), file]) == 3
    assert "damaged" in capsys.readouterr().err
