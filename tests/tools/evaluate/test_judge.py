"""`evaluate.py judge` on files: the whole way from responses to games, dry runs, refusals, exit codes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gipo_mc.evaluation.judges.journal import read_setups
from gipo_mc.evaluation.pairs import read_pairs
from gipo_mc.evaluation.reading import games_of
from gipo_mc.tools import command as installed
from gipo_mc.tools.evaluate import generated
from gipo_mc.tools.evaluate.command import main
from tests.evaluation.games import row, write_rows

JUDGES = """
def first(prompts, first, second):
    return ["A"] * len(prompts)

def silent(prompts, first, second):
    return [None] * len(prompts)

def wrong(prompts, first, second):
    return ["A"]

def broken(prompts, first, second):
    return [1 / 0]

def two(prompts, first):
    return []

def more(prompts, first, second, *, by):
    return []

def named(*, by=1):
    return []

async def later(prompts, first, second):
    return []

number = 7

class Rule:
    def __call__(self, prompts, first, second=None):
        return ["tie"] * len(prompts)

rule = Rule()
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The beginning of a command on three files of 20 prompts in two domains."""
    (tmp_path / "my_judges.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_judges", None)
    for who in ("ours", "sft", "ppo"):
        rows = [row(n, f"{who} {n}", domain="ab"[n % 2], group=n % 3, row=f"test:{n}") for n in range(20)]
        write_rows(tmp_path / f"{who}.jsonl", rows)
    against = [f"{who}={tmp_path}/{who}.jsonl" for who in ("sft", "ppo")]
    return ["judge", "--ours", f"{tmp_path}/ours.jsonl", "--against", *against, "--out", f"{tmp_path}/eval"]


def judge_file(folder: Path, function: str, *lines: str) -> list[str]:
    (file := folder / f"{function}.yaml").write_text(
        "\n".join(["kind: python", f"function: my_judges:{function}", *lines])
    )
    return ["--judge", str(file)]


def test_from_files_to_games(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--prompts", "5", *judge_file(tmp_path, "first")]) == 0
    few = {pair.row for pair in read_pairs(tmp_path / "eval")}
    said = capsys.readouterr().out
    assert "10 pairs of 5 prompts" in said and "first: 20 comparisons: 20 verdicts of 20 requests" in said
    assert "gipo-mc evaluate table" in said and len(few) == 5
    assert main([*words, "--prompts", "8", *judge_file(tmp_path, "first")]) == 0
    assert "12 verdicts of 12 requests, 20 were in the journal" in capsys.readouterr().out
    games = games_of(tmp_path / "eval")
    assert few < {pair.row for pair in read_pairs(tmp_path / "eval")} and len(games) == 2 * 2 * 8
    assert {game.domain for game in games} == {"a", "b"} and {game.group for game in games} <= {0, 1, 2}
    assert {game.evaluator for game in games} == {"first"}


def test_no_judge_makes_the_pairs_alone(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    assert len(read_pairs(tmp_path / "eval")) == 40 and games_of(tmp_path / "eval") == []


def test_the_installed_command_is_the_same(words: list[str], tmp_path: Path) -> None:
    assert installed.main(["evaluate", *words]) == 0 and len(read_pairs(tmp_path / "eval")) == 40


def test_a_judge_that_fails_does_not_stop_the_next(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judges = [word for function in ("silent", "broken", "wrong", "first") for word in judge_file(tmp_path, function)]
    assert main([*words, *judges]) == 8, "the first that failed"
    said = capsys.readouterr().err
    assert "silent gave no verdict on 5 of 80 comparisons" in said and "it returned no verdict" in said
    assert "my_judges:broken failed at" in said and "ZeroDivisionError" in said
    assert "my_judges:wrong returned 1 verdicts for 64 pairs" in said
    assert "silent: 75 comparisons have no answer yet" in said
    assert sum(game.evaluator == "first" for game in games_of(tmp_path / "eval")) == 80
    assert main([*words, *judge_file(tmp_path, "silent", "max_invalid: 1")]) == 0


def test_a_function_that_changes_is_another_judge(words: list[str], tmp_path: Path) -> None:
    versions = set()
    for text in (JUDGES, JUDGES, JUDGES.replace('["A"] *', '["B"] *')):
        (tmp_path / "my_judges.py").write_text(text)
        sys.modules.pop("my_judges", None)
        assert main([*words, *judge_file(tmp_path, "first")]) == 0
        versions |= {setup.version for setup in read_setups(tmp_path / "eval")}
    assert len(versions) == 2
    assert all((game.outcome == "theirs") == game.ours_first for game in games_of(tmp_path / "eval"))


def test_a_dry_run_counts_prices_and_asks_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "gpt.yaml").write_text(
        "kind: openai\nbase_url: http://localhost:1/v1\nmodel: m\nkey_variable: NOT_SET\nmax_tokens: 100\n"
        "price_input: 2\nprice_output: 10\nprompt: tldr_forced\n"
    )
    assert main([*words, "--judge", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "40 pairs: 20 prompts against sft, ppo" in said
    assert "gpt (openai, m, prompt tldr_forced): 40 comparisons, one order each, drawn by seed" in said
    assert "at most 4,000 out" in said and "at most $0.04" in said
    assert "in 20 conversations with probability 0.07, at 0.05/2" in said and "takes 258 conversations" in said
    assert not (tmp_path / "eval").exists()
    assert main([*words, *judge_file(tmp_path, "first")]) == 0
    capsys.readouterr()
    assert main([*words, *judge_file(tmp_path, "first"), "--dry-run", "--expect", "50", "0", "50"]) == 0
    said = capsys.readouterr().out
    assert "requests  0; 80 are in the journal" in said and "nothing can show" in said


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (["--judge", "nowhere.yaml"], 2, "there is no such file"),
        (["--set", "rollout.top_k=1"], 2, "all sides are files"),
        (["--against", "sft=x.jsonl"], 2, "the label sft is taken"),
        (["--against", "ours=x.jsonl"], 2, "the label ours is taken"),
        (["--against", "x=absent.jsonl"], 2, "--against x=absent.jsonl: there is no such file"),
        (["--ours", "absent.jsonl"], 2, "--ours=absent.jsonl: there is no such file"),
        (["--against", "x=./nowhere"], 2, "--against x is a model, and no prompts are named for it. Add --set data.ev"),
        (["--against", "x=./nowhere", "--dry-run"], 2, "there are no responses of x yet"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    change: list[str], code: int, said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *change]) == code
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "eval" / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("judge", "code", "said"),
    [
        ("{kind: python, function: 'my_judges:absent'}", 2, "there is no absent in"),
        ("{kind: python, function: 'no_such_module:f'}", 2, "No module named 'no_such_module'"),
        ("{kind: python, function: 'my_judges:number'}", 2, "my_judges:number is a int, not a function"),
        ("{kind: python, function: 'my_judges:two'}", 2, "my_judges:two takes prompts, first; it is called as f(pro"),
        ("{kind: python, function: 'my_judges:more'}", 2, "my_judges:more takes prompts, first, second, by; it is"),
        ("{kind: python, function: 'my_judges:named'}", 2, "my_judges:named takes by; it is called as f(prompts,"),
        ("{kind: python, function: 'my_judges:later'}", 2, "my_judges:later is async, and a judge's function is not"),
        ("{kind: openai, base_url: 'http://localhost:9/v1', model: m, key_variable: NOT_SET}", 2, "NOT_SET"),
        ("{kind: reward, model: ./nowhere}", 2, "model=./nowhere: there is no such folder"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is_generated(
    judge: str,
    code: int,
    said: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "openai" in judge:
        pytest.importorskip("openai", reason="looks at the key")
    monkeypatch.setattr(generated, "generate", lambda *arguments, **options: pytest.fail("this takes hours"))
    (tmp_path / "bad.yaml").write_text(judge)
    judges = [*judge_file(tmp_path, "first"), "--judge", str(tmp_path / "bad.yaml")]
    assert main([*words, "--against", "x=./model", *judges]) == code
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "eval").exists()


def test_a_callable_object_is_a_judge(words: list[str], tmp_path: Path) -> None:
    assert main([*words, *judge_file(tmp_path, "rule")]) == 0
    assert {game.outcome for game in games_of(tmp_path / "eval")} == {"tie"}


@pytest.mark.parametrize(
    "change", [["judge"], ["judges"], [], ["judge", "--ours", "x", "--out", "y", "--against", "x.jsonl"]]
)
def test_what_is_no_command_is_refused(change: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(change)
    assert stop.value.code == 2


def test_two_judges_of_one_name_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = judge_file(tmp_path, "first")
    assert main([*words, *judge, *judge]) == 2 and "Two judges are called first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "domains", "others"),
    [
        ("harmless", ["helpful-base", "harmless-base"], "helpful-base"),
        ("helpful", ["helpful-base", "harmless-base"], "harmless-base"),
        ("tldr_forced", ["cnndm", "helpful"], "helpful"),
        ("helpful", ["tldr", "cnndm"], "cnndm, tldr"),
        ("harmless", ["safe_rlhf", "harmless"], ""),  # as configs/paper/llama2_7b.yaml has them
        ("tldr", ["a", "b"], ""),
    ],
)
def test_a_question_for_other_domains_is_warned_of(
    prompt: str, domains: list[str], others: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for who in ("ours", "sft", "ppo"):
        rows = [row(n, f"{who} {n}", domain=domains[n % 2], row=f"test:{n}") for n in range(4)]
        write_rows(tmp_path / f"{who}.jsonl", rows)
    (file := tmp_path / "local.yaml").write_text(
        f"{{kind: openai, name: local, base_url: 'http://localhost:9/v1', model: m, prompt: {prompt}}}"
    )
    assert main([*words, "--judge", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().err
    warning = f"warning: local asks by its prompt '{prompt}', and there are pairs of the domains {others}: "
    assert (warning in said) if others else ("asks by its prompt" not in said)
