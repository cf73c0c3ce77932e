"""Files of responses: what is read, what is refused, and that prompts are matched whatever wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_mc.errors import DataError
from gipo_mc.evaluation.pairs import FILE, make_pairs, read_pairs, write_pairs
from gipo_mc.evaluation.responses import Response, chosen_prompts, conversation_of, read_responses, turns
from tests.evaluation.games import pairs_of, row, write_rows

TALK = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why\n\nAssistant:"


def test_a_dialogue_is_the_same_prompt_in_every_rendering() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "why"},
    ]
    plain = Response(TALK, "r", "", 1, False)
    templated = Response("<|user|>hi<|bot|>yes?<|user|>why<|bot|>", "r", "", 1, False, messages)
    assert templated.dialogue == TALK and templated.prompt_hash == plain.prompt_hash
    assert (
        Response("hi", "r", "", 1, False).prompt_hash
        == Response("\n\nHuman: hi\n\nAssistant:", "", "", 0, False).prompt_hash
    )
    assert Response("hi ho", "r", "", 1, False).prompt_hash != Response("hi", "ho", "", 1, False).prompt_hash
    assert turns(TALK) == [("user", "hi"), ("assistant", "yes?"), ("user", "why")]
    assert turns("SUBREDDIT: r/x\n\nTL;DR:") == [("user", "SUBREDDIT: r/x\n\nTL;DR:")]


def test_a_conversation_is_named_by_the_data_or_by_its_first_turn() -> None:
    first = "\n\nHuman: hi\n\nAssistant:"
    assert conversation_of(TALK) == conversation_of(first) != conversation_of("\n\nHuman: why\n\nAssistant:")
    assert conversation_of(TALK, "c7") == "c7"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"prompt": "a"}\n', "1: not a response: there is no response, tokens"),
        ("[1]\n", "1: not a response: a JSON object is expected"),
        ('{"prompt": "a", "response": "b", "tokens": -1}\n', "tokens is no count"),
        ('{"prompt": "a", "response": 3, "tokens": 1}\n', "response is no str"),
        ('{"prompt": " ", "response": "b", "tokens": 1}\n', "the prompt is empty"),
        ('{"prompt": "a", "response": "b", "tokens": 1, "group": true}\n', "group is neither"),
        ('{"prompt": "a", "response": "b", "tokens": 1}\n' * 2, "2: line 1 has a response to the same prompt"),
        ("\n", "holds no responses"),
        ("{\n", "1: not a response"),
    ],
)
def test_what_is_no_response_is_named_by_its_line(lines: str, words: str, tmp_path: Path) -> None:
    (file := tmp_path / "r.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"r\.jsonl") as caught:
        read_responses(file)
    assert words in str(caught.value)


@pytest.mark.parametrize("shorter", ["ours", "sft"])
def test_files_of_other_prompts_are_refused_and_never_joined(shorter: str, tmp_path: Path) -> None:
    texts = {"ours": ["a", "b"], "sft": ["c", "d"]}
    texts[shorter] = texts[shorter][:1]
    with pytest.raises(DataError, match=rf"{shorter}\.jsonl has no response to 1 of the 2 prompts of .*question 1"):
        pairs_of(tmp_path, texts["ours"], sft=texts["sft"])


def test_the_order_of_a_file_does_not_matter(tmp_path: Path) -> None:
    ours = read_responses(write_rows(tmp_path / "o", [row(n, f"ours {n}") for n in (0, 1, 2)]))
    theirs = read_responses(write_rows(tmp_path / "t", [row(n, f"theirs {n}") for n in (2, 0, 1)]))
    pairs = make_pairs(ours, {"sft": theirs}, {"ours": "o", "sft": "t"})
    assert [(pair.ours, pair.theirs) for pair in pairs] == [(f"ours {n}", f"theirs {n}") for n in (0, 1, 2)]


def test_more_prompts_hold_the_fewer() -> None:
    keys = [f"k{n}" for n in range(50)]
    few, many = chosen_prompts(keys, 10, 3), chosen_prompts(keys, 20, 3)
    assert len(few) == 10 and few < many and few != chosen_prompts(keys, 10, 4)
    assert chosen_prompts(keys, 0, 1) == set(keys)


def test_pairs_are_written_and_read(tmp_path: Path) -> None:
    odd = "\x1b[31m \u2028 \ud800 </script> {x} [[A]] \n\n"
    pairs = pairs_of(tmp_path, [odd, "same"], sft=["b", "same"], ppo=["c", "d"])
    write_pairs(tmp_path, pairs)
    assert read_pairs(tmp_path) == pairs
    assert [pair.identical for pair in pairs] == [False, True, False, False]
    assert len({pair.pair for pair in pairs}) == 4 and len({pair.conversation for pair in pairs}) == 2
    told: list[str] = []
    write_pairs(tmp_path, pairs[:2], told.append)
    assert "held pairs with ppo, which --against does not name now" in told[0]


def test_damaged_pairs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no evaluation"):
        read_pairs(tmp_path)
    write_pairs(tmp_path, pairs_of(tmp_path, ["a"], sft=["b"]))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"pair": "x"}\n')
    with pytest.raises(DataError, match=r"pairs.jsonl:2: not a pair"):
        read_pairs(tmp_path)


def test_a_stop_string_is_no_part_of_what_is_judged() -> None:
    stopped = Response("p", " yes.\n\nHuman: and", "", 9, False, sampling={"stop": ["\n\nHuman:"]})
    assert stopped.text == " yes."
    assert Response("p", " yes.\n\nHuman: and", "", 9, True, sampling={"stop": ["\n\nHuman:"]}).text.endswith("and")
