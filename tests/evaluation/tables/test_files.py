"""table.json and the exports: read back as they were, escaped, refused where they are not ours."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from gipo_mc.errors import ConfigError, DataError
from gipo_mc.evaluation.tables.build import build_table
from gipo_mc.evaluation.tables.export import FORMATS, flat, is_export, to_csv, to_json, to_latex, to_markdown
from gipo_mc.evaluation.tables.model import FILE, Table, read_table, write_table
from gipo_mc.run.arguments import Parser
from gipo_mc.tools.evaluate import export
from tests.evaluation.made_games import pair, tournament

HOSTILE = '=1+2|a_b & {c}\\d "e", 50 %\n<b>[A]($x$)'


def hostile() -> Table:
    games = [own for place in range(4) for own in pair("ww", f"p{place}", domain=(HOSTILE, "plain")[place % 2])]
    return build_table([*games, *pair("xx", "q", opponent="-ppo")], 100)


def test_a_table_is_read_back_as_it_was(tmp_path: Path):
    for table in (build_table(tournament(120, ("ppo", "sft", "self")), 100), hostile()):
        write_table(tmp_path, table)
        assert read_table(tmp_path) == table
    found = json.loads((tmp_path / FILE).read_text())
    assert found["version"] == 1 and found["evaluators"][0]["cells"][0]["margin"].keys() == {"value", "low", "high"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no table of this program"),
        ("[]", "is no table of this program"),
        ('{"version": 99}', "is of version 99, this program reads 1"),
        ('{"version": 1, "seed": "x"}', "is no table of this program"),
        ("\udcff", "cannot be read"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        read_table(tmp_path)


def test_without_a_table_it_says_what_to_run(tmp_path: Path):
    with pytest.raises(DataError, match=r"run `gipo-mc evaluate table .*` first"):
        read_table(tmp_path)


def test_csv_holds_every_figure_and_no_formula():
    table = hostile()
    rows = list(csv.DictReader(io.StringIO(to_csv(table), newline="")))
    assert len(rows) == len(flat(table)) == 5
    assert {tuple(row) for row in rows} == {tuple(flat(table)[0])}
    assert rows[1]["label"] == "'" + HOSTILE.replace("\n", "\\n")
    assert rows[2]["label"] == "plain" and float(rows[2]["margin"]) == 1.0 and rows[2]["simultaneous"] == ""
    assert rows[3]["opponent"] == "'-ppo" and rows[3]["left_out_invalid_games"] == "2" and rows[3]["margin"] == ""
    # Figures below 0 are no formulas.
    lost = build_table([own for p in range(3) for own in pair("ll", f"p{p}")], 100)
    assert next(csv.DictReader(io.StringIO(to_csv(lost))))["margin"] == "-1.0"


def test_json_is_a_list_of_the_rows():
    table = hostile()
    found = json.loads(to_json(table))
    assert found == flat(table)
    assert found[1]["label"] == HOSTILE and found[1]["win"] == 1.0 and found[1]["controlled"] is None


def test_markdown_escapes_names():
    lines = to_markdown(hostile()).splitlines()
    assert len(lines) == 2 + 5
    name = lines[3].split(" | ")[2]
    assert name.startswith(r"=1\+2\|a\_b \& \{c\}\\d") and r"\<b\>\[A\]\(\$x\$\)" in name
    assert lines[4].split(" | ")[3:7] == ["2", "100.0", "0.0", "0.0"]
    assert all(line.replace(r"\|", "").count("|") == 11 for line in lines)


def test_latex_escapes_names_and_sets_signs_as_mathematics():
    text = to_latex(hostile())
    assert r"=1+2\textbar{}a\_b \& \{c\}\textbackslash{}d" in text and r"50 \%" in text and r"\$x\$" in text
    assert "$+$100.0 {[}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {9}
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_replaces_only_what_it_wrote(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parser = Parser(reports=True)
    export.add_arguments(parser)
    out = tmp_path / "out"
    own = parser.parse_args([str(tmp_path), "--format", name, "--out", str(out)])
    write_table(tmp_path, hostile())
    for _ in range(2):
        assert export.run(own) == 0
    with out.open(newline="") as file:
        text = file.read()
    assert text == FORMATS[name](hostile()) and is_export(text.splitlines()[0])
    assert capsys.readouterr().out.splitlines() == [str(out)] * 2
    out.write_text('{"prompt": "mine"}\n')
    with pytest.raises(ConfigError, match="another kind"):
        export.run(own)
