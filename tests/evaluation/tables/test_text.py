"""The printed table: it fits, says what matters, and prints no control character."""

from __future__ import annotations

import pytest

from gipo_mc.errors import DataError
from gipo_mc.evaluation.tables.build import build_table
from gipo_mc.evaluation.tables.model import read_table
from gipo_mc.evaluation.tables.text import points, show
from tests.evaluation.made_games import pair, tournament


def test_a_large_table_fits_a_hundred_columns():
    text = show(build_table(tournament(200, ("dpo", "ppo_kl", "sft", "self")), 200))
    assert max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    assert lines[0].startswith("judge: every pair in both orders; 7")
    (title,) = (line for line in lines if line.startswith("against  part"))
    assert " ".join(title.split()) == "against part pairs win tie lose margin [95 %] at equal length p"
    for words in ("group 0", "harmless", "itself", "worst", "first shown wins", "flipped", "strength", "200 draws of"):
        assert words in text
    # An opponent's name stands once, before all of its rows.
    assert sum(line.startswith("ppo_kl") for line in lines) == 6


def test_the_figures_of_a_row():
    games = [own for place in range(40) for own in pair(("ww", "wt", "wl", "ll")[place % 4], f"p{place}")]
    text = show(build_table(games, 200))
    row = next(line for line in text.splitlines() if line.startswith("sft"))
    assert row.split()[:7] == ["sft", "all", "40", "25.0", "50.0", "25.0", "+12.5"]
    assert "! No margin at equal length against sft: both responses have the same length" in text


def test_names_from_files_are_printed_safely_and_cut():
    name = "a\x1b[31m\u202e|very long name of a domain"
    games = [own for place in range(4) for own in pair("ww", f"p{place}", domain=(name, "[bold]b")[place % 2])]
    text = show(build_table(games, 100))
    assert "\x1b" not in text and "\u202e" not in text
    assert "…" in text and "[bold]b" in text and "\\x1b[31m" in text
    assert max(map(len, text.splitlines())) <= 100


def test_no_valid_pair_and_no_cell():
    text = show(build_table([*pair("xx", "a", opponent="ppo"), *pair("ww", "b")], 100))
    assert "no valid pair" in text and "! 2 of 4 games have no valid verdict" in text
    nothing = show(build_table(pair("xx"), 100))
    assert "no valid pair" in nothing


def test_points():
    assert [points(value) for value in (0.1449, -0.0001, 0.0, 1.0, -0.5)] == ["+14.5", "0.0", "0.0", "+100.0", "-50.0"]


def test_no_order_is_spoken_of_where_there_is_none():
    games = [game for place in range(40) for game in pair("wtx"[place % 3], f"p{place}", evaluator="reward")]
    text = show(build_table(games, 100, designs={"reward": "no order"}))
    assert "reward: every response scored alone" in text and "equal scores" in text
    words = ("first shown", "flipped", "both", "one ties", "split", "they were an order")
    assert not any(word in text for word in words)


def test_the_causes_of_ties_are_those_of_the_evaluator():
    games = [game for place in range(4) for game in pair("t", f"p{place}", evaluator="seeded")]
    games += [game for place in range(4) for game in pair("t", f"p{place}", evaluator="people:Ann")]
    seeded, people = show(build_table(games, 100)).split("People:")
    assert "tied" in seeded and "flipped" not in seeded and "both tie" not in seeded and "first shown wins" in seeded
    assert "all tie" in people and "split" in people and "flipped" not in people


def test_a_share_with_too_few_pairs_is_named():
    games = [own for place in range(60) for own in pair("ll" if place < 2 else "ww", f"p{place}")]
    text = " ".join(show(build_table(games, 100)).split())
    assert "! Pairs 2 lost against sft: intervals of shares with so few pairs" in text
    flips = [own for place in range(60) for own in pair("wl", f"p{place}")]
    assert "so few pairs" not in show(build_table(flips, 100))


def test_the_command_to_run_first_can_be_pasted(tmp_path):
    with pytest.raises(DataError, match=r"gipo-mc evaluate table '.*/my eval'` first"):
        read_table(tmp_path / "my eval")
