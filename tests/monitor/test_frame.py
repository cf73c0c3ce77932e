"""What a terminal shows: the most telling first, nothing wider or higher than the terminal, whatever its letters."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from gipo_mc.monitor.follow import followers
from gipo_mc.monitor.frame import Look, frame
from gipo_mc.monitor.terminal import snapshot
from tests.monitor.folders import append, run, status


def _text(paths: list[Path], look: Look) -> str:
    return "\n".join(line.plain for line in frame([each.refresh() for each in followers(paths)], look, "q: end"))


def test_a_screen_shows_curves_phases_groups_alarms_and_samples(tmp_path: Path) -> None:
    text = _text([run(tmp_path / "gi")], Look(80, 24))
    lines = text.split("\n")
    assert len(lines) == 24 and lines[-1] == "q: end"
    for words in (
        "gi  running  GI-PPO  step 40/80", "3.50 s each  2 min 20 s left", " 50%", "mean 0.400 worst domain 0.100",
        "update policy 57%", "group 0, higher reward 0.642 (was 0.042) 70% · prompts with", "“capital”", "“lemma”",
        "Alarms", "repeat themselves", "step 40 best 2.30",
    ):  # fmt: skip
        assert words in text, words
    assert any(0x2800 < ord(letter) < 0x2900 for letter in text)


@pytest.mark.parametrize("width", [20, 37, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 9, 24, 60])
def test_nothing_is_wider_or_higher_than_the_terminal(tmp_path: Path, width: int, height: int) -> None:
    paths = [run(tmp_path / name) for name in ("日本語の長い名前の実験", "b" * 60)]
    views = [each.refresh() for each in followers([*paths, tmp_path / "none"])]
    for shown in (views, views[:1], views[2:]):
        lines = frame(shown, Look(width, height), "footer " * 40)
        assert len(lines) == height and all(cell_len(line.plain) <= width for line in lines)


def test_a_terminal_without_those_letters_has_others(tmp_path: Path) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    snapshot(followers([run(tmp_path / "gi")]), out, width=80)
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "step 40/80" in text and "*" in text and "update policy" in text


def test_without_colours_no_escape_is_written_and_parts_have_edges(tmp_path: Path) -> None:
    out = io.StringIO()
    snapshot(followers([run(tmp_path / "gi")]), out, width=90)
    assert "\x1b" not in out.getvalue() and "update policy" in out.getvalue() and "|" in out.getvalue()


def test_a_message_of_several_lines_is_a_sentence(tmp_path: Path) -> None:
    path = run(tmp_path / "gi")
    status(path, "failed", 40, exit_code=2, message="It has problems:\n  - one\x07\n  - two")
    text = _text([path], Look(100, None))
    assert (
        "It failed with exit code 2. It has problems: one\N{REPLACEMENT CHARACTER}; two" in text and "\\n" not in text
    )


def test_text_of_others_cannot_command_the_terminal(tmp_path: Path) -> None:
    path = run(tmp_path / "gi")
    evil = "\x1b[2J\x1b]0;x\x07\u202e[bold red]"
    append(path / "samples.jsonl", [{"step": 40, "prompt": evil, "response": evil, "reward": 99.0, "domain": evil}])
    append(path / "warnings.jsonl", [{"step": 40, "text": evil}])
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system="truecolor", soft_wrap=True)
    for line in frame([each.refresh() for each in followers([path])], Look(100, None)):
        console.print(line)
    assert "\x1b[2J" not in out.getvalue() and "\x1b]0" not in out.getvalue() and "\u202e" not in out.getvalue()
    assert "[bold red]" in out.getvalue(), "markup is text"


def test_several_runs_share_axes(tmp_path: Path) -> None:
    text = _text([run(tmp_path / "ppo", 30, "done"), run(tmp_path / "gi")], Look(120, 40))
    assert "■ ppo  done" in text and "■ gi  running" in text and "Reward 0.300 0.400" in text
    assert "ppo: group 0, higher reward" in text and "easy" not in text and "ppo step 30 best" in text


def test_a_run_without_a_first_iteration_says_what_it_waits_for(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    text = _text([tmp_path / "new", tmp_path / "none"], Look(60, 12))
    assert "waiting" in text and "Nothing was logged yet." in text and "not there (yet)" in text
