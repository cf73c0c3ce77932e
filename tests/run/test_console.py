"""The console: one line an iteration that fits, plain without a terminal, no control characters from data."""

import io
import re
from contextlib import contextmanager

import pytest

from gipo_mc.run import console as console_module
from gipo_mc.run.console import Console, duration, iteration_segments, number

RL = {
    "reward/mean": 0.5321,
    "reward/std": 0.41,
    "reward/domain/easy": 0.6,
    "reward/domain/hard": 0.22,
    "kl/mean": 3.21,
    "group/0/mass": 0.78,
    "group/1/mass": 0.22,
    "group/variance": 0.0123,
    "group/entropy": 0.5,
    "critic/explained_variance": 0.456,
    "policy/clip_fraction": 0.08,
    "time/total": 3.21,
    "throughput/tokens_per_second": 1234.0,
}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class AsciiFile(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("ascii")


def plain_lines(use) -> list[str]:
    file = io.StringIO()
    use(Console("toy", 50, file=file))
    return file.getvalue().splitlines()


def test_an_iteration_is_one_plain_line_without_a_terminal():
    (line,) = plain_lines(lambda c: c.iteration(3, RL))
    assert "\x1b" not in line
    assert line.startswith("[ 3/50] reward 0.532 ±0.410 · easy 0.600 hard 0.220 · KL 3.21 · groups 0.78/0.22")
    assert "R_var 0.012" in line and "value EV 0.456" in line and "clip 0.080" in line
    assert line.endswith("3.21 s · 1.23k tok/s")


def test_an_iteration_that_trains_no_policy_says_so():
    critic = RL | {"time/update_critic": 1.0}
    (waiting,) = plain_lines(lambda c: c.iteration(3, critic))
    (trained,) = plain_lines(lambda c: c.iteration(3, critic | {"time/update_policy": 1.0}))
    assert " · policy waits for the critic · " in waiting and "waits" not in trained


def test_supervised_metrics_have_their_line():
    (line,) = plain_lines(lambda c: c.iteration(7, {"loss": 0.69, "accuracy": 0.5, "lr": 2e-5, "grad_norm": 1.5}))
    assert line == "[ 7/50] loss 0.690 · accuracy 0.500 · lr 2.0e-05 · grad norm 1.50"


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({"eval/reward/mean": 3.61, "pairs/accuracy": 0.75}, "held-out 3.61"),
        ({"eval/reward/mean": 3.61, "gold/mean": 0.5}, "gold 0.500"),
        ({"pairs/accuracy": 0.75}, "pairs right 0.750"),
    ],
)
def test_an_evaluation_is_told_by_its_truest_figure(found, shown):
    before, after = plain_lines(lambda c: (c.iteration(0, found), c.iteration(4, RL | found)))
    assert before == f"[ 0/50] {shown}" and f"hard 0.220 · {shown} · KL 3.21" in after


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_terminal_line_never_wraps(width):
    file = Terminal()
    Console("toy", 50, file=file, width=width).iteration(3, {**RL, "reward/domain/a very long domain name": 1.0})
    lines = [rich_free(line) for line in file.getvalue().splitlines()]
    assert len(lines) == 1
    assert len(lines[0]) <= width
    assert "reward 0.532" in lines[0]
    assert ("tok/s" in lines[0]) == (width == 200)


def rich_free(line: str) -> str:
    from rich.text import Text

    return Text.from_ansi(line).plain


def test_control_characters_and_markup_of_data_do_not_reach_the_terminal():
    file = Terminal()
    console = Console("toy\x1b]0;owned\x07", 50, file=file, width=200)
    console.header([("data", "a\x1b[2Jb\u202ec\r"), "[bold]not markup[/bold]"])
    console.warn("x\x9b31m")
    console.iteration(1, {**RL, "reward/domain/\x1b[5mblink": 1.0})
    with console.share("roll\x07out", 3) as tell:
        tell(1, 3)
    shown = file.getvalue()
    for bad in ("\x1b]0", "\x07", "\x1b[2J", "\u202e", "\x9b", "\x1b[5m"):
        assert bad not in shown
    assert "\\x1b[2Jb\\u202ec\\r" in shown
    assert "[bold]not markup[/bold]" in shown


def test_an_ascii_stream_gets_ascii():
    file = AsciiFile()
    console = Console("toy", 50, file=file)
    console.iteration(3, {**RL, "reward/domain/Grüße": 1.0})
    console.header([("layout", "TP2 × PP2")])
    shown = file.text()
    assert "reward 0.532 +-0.410 | Gr\\xfc\\xdfe 1.00" in shown
    assert "TP2 x PP2" in shown


def test_a_disabled_console_is_silent():
    file = io.StringIO()
    console = Console("toy", 50, enabled=False, file=file)
    console.header(["a"])
    with console.share("rollout", 8) as tell:
        tell(8, 8)
    console.iteration(1, RL)
    console.warn("w")
    console.done(["d"])
    assert file.getvalue() == ""


def test_without_a_terminal_progress_is_a_line_now_and_then_in_the_units_of_all_replicas(monkeypatch):
    said, counted = [], []

    @contextmanager
    def heard(what, *, told, logged):
        said.append((what, told, logged))
        yield lambda done, of: counted.append((done, of))

    monkeypatch.setattr(console_module, "waiting", heard)
    console = Console("toy", 50, file=io.StringIO())
    console.iteration(1, {})
    with console.share("rollout", 100) as tell:
        tell(1, 4)
    with console.share("saving", logged=False) as tell:
        tell(2, 5)
    with Console("toy", 50, enabled=False, file=io.StringIO()).share("rollout", 100):
        pass
    assert said == [("[2/50] rollout", True, True), ("[2/50] saving", True, False), ("rollout", False, True)]
    assert counted == [(25, 100), (2, 5)]


def test_a_bar_counts_only_what_is_told():
    file = Terminal()
    console = Console("toy", 5, file=file, width=80)
    with console.share("saving"):
        console.warn("said meanwhile")
    shown = _without_escapes(file.getvalue())
    assert "saving" in shown and "/" not in shown and "left" not in shown
    with console.share("rollout", 64) as tell:
        tell(1, 8)
        assert console._progress is not None
        console._progress.refresh()  # as it does ten times a second
    assert "8/64" in _without_escapes(file.getvalue())


def _without_escapes(text: str) -> str:
    """All that was drawn, also what was drawn over."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_progress_bars_nest_and_end_with_an_exception():
    file = Terminal()
    console = Console("toy", 5, file=file, width=80)
    with pytest.raises(RuntimeError), console.share("outer", 2) as outer:
        outer(1, 2)
        with console.share("inner", 2) as inner:
            inner(2, 2)
            console.warn("said meanwhile")
        raise RuntimeError
    with console.share("again", 1) as tell:
        tell(1, 1)
    assert "outer" in file.getvalue() and "inner" in file.getvalue() and "said meanwhile" in file.getvalue()


def test_time_left_follows_the_pace(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    console = Console("toy", 50, file=file)
    console.iteration(10, {})
    clock[0] += 6.0
    console.iteration(13, {})
    assert file.getvalue().splitlines() == ["[10/50]", "[13/50] 1 min 14 s left"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (0.5321, "0.532"), (-0.5321, "-0.532"), (0.9996, "1.00"), (9.996, "10.0"), (99.96, "100"),
        (123.4, "123"), (999.6, "1k"), (4123.0, "4.12k"), (2.5e6, "2.5M"), (3.2e-5, "3.2e-05"), (1e30, "1.00e+30"),
        (float("nan"), "nan"), (float("-inf"), "-inf"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, shown):
    assert number(value) == shown


def test_durations_read_as_said():
    assert [duration(s) for s in (0, 42.4, 59.6, 200, 7500)] == [
        "0 s",
        "42 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


def test_missing_metrics_leave_no_trace():
    assert [segment.text for segment in iteration_segments(1, 9, {})] == ["[1/9]"]
