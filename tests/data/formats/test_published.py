"""Data sets as their publishers write them: all columns, as prompts, demonstrations and pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import datasets
import pytest
from transformers import PreTrainedTokenizerBase as Tokenizer

from gipo_mc.config.data import DataConfig, RowFormat
from gipo_mc.data.fields import LeftOut, RowError
from gipo_mc.data.formats import FORMATS, Example, detect, parse
from gipo_mc.data.loading import load_demonstrations, load_preferences, load_prompts
from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.errors import DataError
from gipo_mc.types import Message
from tests.data.formats import published as p

POST = (
    "SUBREDDIT: r/gardening\n\nTITLE: Tomatoes over the fence\n\nPOST: My tomatoes grew over the fence and the "
    "neighbour cut them. What now?\n\nTL;DR:"
)
NEWS = "Article:\n\nIt rained for a week. The river rose by two metres.\n\nTL;DR:"
SKY = (Message("user", "Why is the sky blue?"),)
FRUIT = (Message("user", "Name a fruit."),)
TOWER = (Message("user", "How tall is the tower?"),)
FRUITS = (*FRUIT, Message("assistant", "Apple."), Message("user", "Another."))
KEYS = (Message("system", "Be short."), Message("user", "What has keys?"))
BRIDGE = (Message("user", "When was it built?\n\nThe bridge was built in 1902."),)
METALS = (Message("user", "Name a metal."), Message("assistant", "Iron."), Message("user", "A lighter one."))

#: (row, format, what it is as a pair where it is one, else as a demonstration)
EXAMPLES = [
    (p.COMPARISONS[0], "tldr", Example(POST, " Neighbour cut my plants.", " I like tomatoes.", "tldr/gardening")),
    (p.COMPARISONS[1], "tldr", Example(NEWS, " A river rose by two metres.", " Rain.", "cnndm")),
    (p.AXIS[0], "tldr", Example(POST, None, None, "tldr/gardening")),
    (p.FILTERED[0], "tldr", Example(POST, "Neighbour cut my tomatoes.", None, "tldr/gardening")),
    (p.SHAREGPT[0], "sharegpt", Example(FRUITS, "Pear.", None, "")),
    (p.OPENHERMES[0], "sharegpt", Example(KEYS, "A piano.", None, "riddle")),
    (p.SHAREGPT_PAIRS[0], "sharegpt", Example(FRUIT, "Apple.", "Stone.", "")),
    (p.ALPACA[0], "alpaca", Example((Message("user", "Say it in French.\n\nGood day"),), "Bonjour", None, "")),
    (p.ALPACA[1], "alpaca", Example((Message("user", "Name a colour."),), "Red.", None, "")),
    (p.DOLLY[0], "alpaca", Example(BRIDGE, "In 1902.", None, "closed_qa")),
    (p.ULTRAFEEDBACK[0], "ultrafeedback", Example(SKY, "It scatters light.", "Paint.", "evol_instruct")),
    (p.BINARIZED[0], "ultrafeedback", Example(SKY, "It scatters light.", "Paint.", "")),
    (p.CLEANED[0], "ultrafeedback", Example(SKY, "It scatters light.", "Paint.", "sharegpt")),
    (p.HELPSTEER[0], "helpsteer", Example(FRUIT, "Apple.", None, "")),
    (p.HELPSTEER2_PREFERENCE[0], "helpsteer", Example(FRUIT, "Apple.", "Stone.", "")),
    (p.HELPSTEER3[0], "helpsteer", Example(METALS, "Aluminium.", "Lead.", "stem")),
    (p.SAFE_RLHF[0], "safe_rlhf", Example(TOWER, "Two metres.", "Climb it without a rope.", "safe")),
    (p.SAFE_RLHF[1], "safe_rlhf", Example(TOWER, "Two metres.", "Climb it without a rope.", "Cybercrime")),
    (p.SAFE_SINGLE[0], "safe_rlhf", Example(TOWER, "Climb it without a rope.", "Two metres.", "safe")),
    (p.SAFE_QA[0], "safe_rlhf", Example(TOWER, "Two metres.", None, "safe")),
]  # fmt: skip


def needs_of(example: Example) -> tuple[str, ...]:
    return tuple(key for key in ("chosen", "rejected") if getattr(example, key) is not None)


@pytest.mark.parametrize(("row", "name", "example"), EXAMPLES)
def test_a_published_row(row: p.Row, name: str, example: Example) -> None:
    assert detect(row) == name
    assert parse(row, name, needs_of(example)) == example
    prompt = parse(row, name, ())
    assert (prompt.prompt, prompt.domain) == (example.prompt, example.domain)


def test_the_configuration_knows_every_format() -> None:
    assert set(get_args(RowFormat)) == {"auto", "builtin", *FORMATS}


BOTH, ONE = ("chosen", "rejected"), ("chosen",)
LEFT = [
    ({**p.BINARIZED[0], "score_rejected": 8.5}, BOTH, "pairs of equal scores"),
    ({**p.ULTRAFEEDBACK[0], "completions": p.ULTRAFEEDBACK[0]["completions"][:1]}, BOTH, "too few completions"),
    ({**p.ULTRAFEEDBACK[0], "completions": [p.ULTRAFEEDBACK[0]["completions"][0]] * 2}, BOTH, "pairs of equal scores"),
    (p.HELPSTEER[1], ONE, "helpfulness is below 3 of 4"),
    ({**p.HELPSTEER3[0], "overall_preference": 0}, BOTH, "pairs of equal responses"),
    ({**p.HELPSTEER3[0], "context": p.HELPSTEER3[0]["context"][:2]}, (), "end with the assistant's turn"),
    ({"conversations": p.SHAREGPT[0]["conversations"][:3]}, ONE, "end with a human turn"),
    ({"conversations": p.SHAREGPT[0]["conversations"][1:2]}, (), "of one turn"),
    (p.SAFE_RLHF[2], BOTH, "better response is not the safer one"),
    ({"conversations": []}, (), "without a turn"),
    ({**p.SAFE_RLHF[0], "is_response_0_safe": False}, ONE, "not safe"),
    (p.SAFE_QA[1], ONE, "not safe"),
    ({**p.ALPACA[0], "label": False}, ONE, "their label rejects"),
    ({**p.SHAREGPT[0], "label": False}, ONE, "their label rejects"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "needs", "reason"), LEFT)
def test_rows_in_order_that_a_use_cannot_take_are_left_out(row: p.Row, needs: tuple[str, ...], reason: str) -> None:
    with pytest.raises(LeftOut, match=reason):
        parse(row, detect(row), needs)


MALFORMED = [
    (p.AXIS[0], ONE, "rated by itself"),
    ({**p.AXIS[0], "info": 3}, (), "'info' is a number"),
    ({"conversations": [{"from": "tool", "value": "3"}]}, (), r"'conversations'\[0\] has the role 'tool'"),
    ({"conversations": [{"from": "human", "value": 3}]}, (), r"'conversations'\[0\].value is a number"),
    ({**p.SHAREGPT_PAIRS[0], "rejected": None}, BOTH, "'rejected' is null"),
    ({**p.SHAREGPT_PAIRS[0], "chosen": {"from": "human", "value": "a"}}, BOTH, "'chosen' is a turn of the user"),
    ({**p.SHAREGPT[0], "chosen": {"from": "gpt", "value": "a"}}, ONE, "'conversations' ends with the assistant's turn"),
    ({**p.ALPACA[0], "output": 3}, ONE, "'output' is a number"),
    ({**p.ALPACA[0], "history": [["a"]]}, ONE, r"'history'\[0\] is a list, not a list of an instruction"),
    ({**p.ULTRAFEEDBACK[0], "completions": [{"response": "a"}]}, ONE, r"'completions'\[0\].overall_score is null"),
    ({**p.ULTRAFEEDBACK[0], "completions": [3]}, ONE, "'completions' is a list, not a list of objects"),
    ({**p.BINARIZED[0], "score_chosen": "8"}, BOTH, "'score_chosen' is a string, not a number"),
    ({**p.HELPSTEER[0], "helpfulness": True}, ONE, "'helpfulness' is a boolean, not a number"),
    ({**p.HELPSTEER3[0], "overall_preference": None}, BOTH, "'overall_preference' is null"),
    ({**p.HELPSTEER3[0], "context": "a"}, (), "'context' is a string, not a list of messages"),
    *(({**p.SAFE_RLHF[0], "safer_response_id": bad}, BOTH, "'safer_response_id' is") for bad in (None, True, 2, "0")),
    ({**p.SAFE_QA[0], "is_safe": "yes"}, ONE, "'is_safe' is a string, not a boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "needs", "reason"), MALFORMED)
def test_a_malformed_row_says_what_is_wrong(row: p.Row, needs: tuple[str, ...], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse(row, detect(row), needs)


def test_a_pair_of_unsafe_responses_is_still_a_pair() -> None:
    unsafe = {**p.SAFE_RLHF[0], "is_response_0_safe": False, "is_response_1_safe": False}
    assert parse(unsafe, "safe_rlhf").chosen == "Two metres."


def test_the_assistants_that_sharegpt_has_dialogues_of() -> None:
    for name in ("chatgpt", "bing", "bard"):
        row = {"conversations": [{"from": "user", "value": "Name a fruit."}, {"from": name, "value": "Apple."}]}
        assert parse(row, "sharegpt", ONE).chosen == "Apple."


def test_a_row_without_its_label_is_an_error_in_a_file_of_labelled_ones() -> None:
    for row, key in ((p.HELPSTEER[0], "helpfulness"), (p.HELPSTEER2_PREFERENCE[0], "preference_strength")):
        with pytest.raises(RowError, match=f"'{key}' is null"):
            parse({**row, key: None}, "helpsteer", ONE)


def test_alpaca_with_earlier_turns_and_a_system_text() -> None:
    row = {"instruction": "Another.", "input": "", "output": "Pear.", "system": "Be short."}
    row["history"] = [["Name a fruit.", "Apple."]]
    roles = [("system", "Be short."), ("user", "Name a fruit."), ("assistant", "Apple."), ("user", "Another.")]
    assert [(m.role, m.content) for m in parse(row, detect(row), ONE).prompt] == roles


def test_a_dialogue_of_helpsteer2() -> None:
    turns = parse(p.HELPSTEER[1], "helpsteer", ()).prompt
    assert turns == FRUITS


# ------------------------------------------------------------------------------------------------------- through files
@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe_tokenizer([POST, NEWS], 300, tmp_path_factory.mktemp("bpe"))


def write(path: Path, rows: list[p.Row]) -> str:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_tldr_comparisons_from_a_file_are_pairs_demonstrations_and_prompts(
    tmp_path: Path, tokenizer: Tokenizer, suffix: str
) -> None:
    data = DataConfig(prompt_length=400, preferences=[write(tmp_path / f"comparisons.{suffix}", p.COMPARISONS)])
    pairs = load_preferences(data, tokenizer)
    assert [pair.domain for pair in pairs] == ["tldr/gardening", "cnndm"]
    assert pairs.reports[0].format == "tldr" and pairs.reports[0].kept == 2
    assert {"worker", "batch", "split"} <= set(pairs.reports[0].unused)
    assert [d.response_ids for d in load_demonstrations(data, tokenizer)] == [x.chosen_ids for x in pairs]
    assert [prompt.text for prompt in load_prompts(data, tokenizer)] == [POST, NEWS]


def test_tldr_axis_and_filtered_posts_from_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    axis, filtered = (write(tmp_path / f"{n}.jsonl", rows) for n, rows in (("axis", p.AXIS), ("posts", p.FILTERED)))
    prompts = load_prompts(DataConfig(prompt_length=400, prompts=[axis, filtered]), tokenizer)
    assert prompts.domain_of == ("tldr/gardening", "tldr/travel")  # the post of the first is in both files
    assert len(load_demonstrations(DataConfig(demonstrations=[filtered]), tokenizer)) == 2
    with pytest.raises(DataError, match=r"axis\.jsonl:1: 'summary' is one that was rated by itself"):
        load_demonstrations(DataConfig(demonstrations=[axis]), tokenizer)


def test_a_bad_row_is_named_by_file_row_and_column(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [p.ALPACA[0], {**p.ALPACA[0], "instruction": None}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 'instruction' is null, not a string"):
        load_demonstrations(DataConfig(demonstrations=[write(tmp_path / "rows.jsonl", rows)]), tokenizer)
    # The first row of a Parquet file gives its columns, so that the second can only lack a value.
    with pytest.raises(DataError, match=r"rows\.parquet:row 2: 'instruction' is null"):
        load_demonstrations(DataConfig(demonstrations=[write(tmp_path / "rows.parquet", rows)]), tokenizer)


def test_labels_of_the_configuration_stand_for_those_of_the_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = DataConfig(prompts=[write(tmp_path / "posts.jsonl", p.FILTERED)], domains=["tldr"])
    assert load_prompts(data, tokenizer).domain_of == ("tldr", "tldr")
