"""Fields of other names: data.columns, and what is said where nothing tells which field is which."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig
from gipo_mc.data.loading import load_demonstrations, load_preferences, load_prompts
from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return train_bpe_tokenizer(["And the cat? At home. Away."] * 20, 300, tmp_path_factory.mktemp("bpe"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_unknown_format_is_no_fault_of_a_row(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every row is like the first: none is to be corrected or removed."""
    data = DataConfig(prompts=[write(tmp_path / "a.jsonl", [{"conversation": "a"}, {"conversation": "b"}])])
    with pytest.raises(DataError, match=r"are of no known format: .*data\.columns=") as error:
        load_prompts(data, tokenizer)
    assert "Correct or remove" not in str(error.value)


TALK = {"chosen": "At home.", "rejected": "Away."}


@pytest.mark.parametrize(
    ("load", "row", "settings", "said"),
    [
        (
            load_demonstrations,
            {"question": "And the cat?", **TALK, "domain": "x"},
            {},
            ["no column 'prompt'", "has question, chosen, rejected, domain:", " data.columns.prompt=question."],
        ),
        (load_preferences, {**TALK, "id": "7"}, {}, ["no column 'prompt'", "data.columns.prompt=NAME."]),
        (load_preferences, {"frage": "And the cat?", "id": "7", **TALK}, {}, [" data.columns.prompt=frage."]),
        (load_prompts, {"query": "And?", "id": "7"}, {}, ["no known format", "data.columns.prompt=query,"]),
        (load_prompts, {"query": "And?"}, {"format": "pairs"}, ["no 'prompt'; the row has query: ", ".prompt=query."]),
        (load_demonstrations, {"prompt": "And?", "answer": "Away."}, {}, ["has prompt, answer: ", ".chosen=answer."]),
        (load_demonstrations, {"instruction": "And?", "target": "Away."}, {}, ["format alpaca", ".chosen=target."]),
        (
            load_preferences,
            {"input": "And?", "better": "a", "worse": "b"},
            {},
            ["'data.columns={prompt: input, chosen: better, rejected: worse}'"],
        ),
    ],
)
def test_the_first_row_tells_which_column_is_the_field_that_it_lacks(
    load: Any,
    row: dict[str, Any],
    settings: dict[str, Any],
    said: list[str],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    data = DataConfig(prompts=[path], demonstrations=[path], preferences=[path], **settings)
    with pytest.raises(DataError) as error:
        load(data, tokenizer)
    assert all(part in str(error.value) for part in said), error.value
    assert "HH" not in str(error.value) or "are no HH dialogues" in str(error.value)
    assert "Correct or remove" not in str(error.value), "every row is like the first"
    if "NAME" not in str(error.value):
        found = re.search(r"data\.columns[.=](?:(\w+)=(\w+)|\{(.+)\})", str(error.value))
        assert found
        named = {found[1]: found[2]} if found[1] else dict(pair.split(": ") for pair in found[3].split(", "))
        assert load(data.model_copy(update={"columns": named}), tokenizer), "the example works"


def test_rows_that_are_hh_dialogues_or_lack_a_field_once_are_malformed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Nothing to guess: the remedy is that of a row."""
    bad = {"chosen": "At home.", "rejected": "\n\nHuman: a\n\nAssistant: b", "source": "And the cat?"}
    later = [{"prompt": "a", "chosen": "b", "answer": "c"}, {"prompt": "a", "answer": "c"}]
    for name, rows, said in (("a", [bad], "'chosen' does not begin with"), ("b", later, ":2: there is no chosen")):
        data = DataConfig(demonstrations=[write(tmp_path / f"{name}.jsonl", rows)])
        with pytest.raises(DataError, match=f"{said}(.|\n)*Correct or remove the row") as error:
            load_demonstrations(data, tokenizer)
        assert "data.columns" not in str(error.value)


def test_columns_of_other_names_are_read_as_the_fields_they_stand_for(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    row = {"question": "And the cat?", "better": "At home.", "worse": "Away.", "topic": "pets", "prompt": "not meant"}
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse", "domain": "topic"}
    data = DataConfig(preferences=[write(tmp_path / "a.jsonl", [row])], columns=columns)
    pairs = load_preferences(data, tokenizer)
    assert [tokenizer.decode(ids) for ids in (pairs[0].prompt_ids, pairs[0].rejected_ids)] == [
        "<s>And the cat?", " Away.</s>"
    ]  # fmt: skip
    assert pairs[0].domain == "pets" and pairs.reports[0].format == "pairs"
    assert pairs.reports[0].unused == {"prompt": 1}, "it gave way to the column that is named for it"
    prompts = load_prompts(data, tokenizer, columns=True)
    assert dict(prompts[0].columns) == row, "a reward is given the file's own names"
    talk = {"talk": [{"role": "user", "content": "And the cat?"}, {"role": "assistant", "content": "At home."}]}
    data = DataConfig(demonstrations=[write(tmp_path / "b.jsonl", [talk])], columns={"messages": "talk"})
    assert load_demonstrations(data, tokenizer).reports[0].format == "messages"


def test_a_column_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "a", "topic": "b"}])
    for on_error in ("strict", "quarantine"):
        data = DataConfig(prompts=[path], columns={"prompt": "qestion", "domain": "topic"}, on_error=on_error)
        with pytest.raises(
            DataError,
            match=rf"{path}:1: data\.columns names qestion \(for prompt\).* topic; did you mean question\? Correct",
        ):
            load_prompts(data, tokenizer)


def test_names_hold_for_every_source(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    own = write(tmp_path / "a.jsonl", [{"question_text": "a", "better": "b", "worse": "c"}])
    other = write(tmp_path / "b.jsonl", [TALK])
    columns = {"prompt": "question_text", "chosen": "better", "rejected": "worse"}
    with pytest.raises(DataError) as error:
        load_preferences(DataConfig(preferences=[own, other], columns=columns), tokenizer)
    said = "The names hold for every source: where another one has them, rewrite its rows with the fields' own names "
    assert str(error.value).endswith(f"rejected: correct the name, or leave it out. {said}(prompt).")
    with pytest.raises(DataError) as error:
        load_preferences(DataConfig(preferences=[other], columns=columns), tokenizer)
    assert str(error.value).endswith("leave it out.")


def test_only_what_the_use_needs_must_be_there(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Prompts beside the pairs of eval.pairs; an optional column that comes later, or in no row at all."""
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse", "domain": "topic"}
    prompts = write(tmp_path / "a.jsonl", [{"question": "a"}, {"question": "b", "topic": "pets"}])
    pairs = write(tmp_path / "b.jsonl", [{"question": "a", "better": "b", "worse": "c"}])
    data = DataConfig(prompts=[prompts], preferences=[pairs], columns=columns)
    found, preferences = load_prompts(data, tokenizer), load_preferences(data, tokenizer)
    assert [prompt.domain for prompt in found] == ["a", "pets"] and len(preferences) == 1
    assert found.warnings() == [], "RL reads no response of a file"
    assert preferences.warnings() == [
        f"{pairs}: no row has the column topic, which data.columns names for domain: correct the name there if these "
        "rows should have it."
    ]
    assert not load_preferences(data.model_copy(update={"domains": ["pets"]}), tokenizer).warnings(), "is not asked for"
    assert "if these rows should have it; did you mean topics?" in _typo(tmp_path, tokenizer)
    with pytest.raises(DataError, match=r"data\.columns names better \(for chosen\), worse \(for rejected\)"):
        load_preferences(data.model_copy(update={"preferences": [prompts]}), tokenizer)


@pytest.mark.parametrize(
    ("load", "columns", "absent"),
    [
        (load_prompts, {"prompt": "question", "messages": "talk", "rejected": "worse"}, {}),
        (load_prompts, {"prompt": "qestion"}, {"qestion": "prompt"}),  # the file's own prompt is read in its place
        (load_demonstrations, {"chosen": "bettr", "rejected": "worse"}, {"bettr": "chosen"}),
        (load_preferences, {"chosen": "bettr", "rejected": "wrse"}, {"bettr": "chosen", "wrse": "rejected"}),
        (load_preferences, {"system": "persona"}, {"persona": "system"}),
    ],
)
def test_an_absent_column_is_told_where_the_use_would_read_it(
    load: Any,
    columns: dict[str, str],
    absent: dict[str, str],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "And?", "question": "And the cat?", **TALK}])
    data = DataConfig(prompts=[path], demonstrations=[path], preferences=[path], columns=columns)
    assert load(data, tokenizer).reports[0].absent == absent


def test_an_absent_column_of_a_response_is_no_matter_where_a_dialogue_has_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    talk = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Away.", "name": "cat"}]
    row = {"talk": talk, "id": 7, "messages": [1], "persona": "a cat", "score": 2.0}
    columns = {"messages": "talk", "prompt": "question", "chosen": "better", "system": "persona"}
    data = DataConfig(demonstrations=[write(tmp_path / "a.jsonl", [row])], columns=columns)
    report = load_demonstrations(data, tokenizer).reports[0]
    assert report.absent == {}
    assert set(report.unused) == {"talk.name", "id", "messages", "score"}, "by the file's own names"


def _typo(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    rows = write(tmp_path / "typo.jsonl", [{"prompt": "a", "topics": "pets"}])
    return " ".join(load_prompts(DataConfig(prompts=[rows], columns={"domain": "topic"}), tokenizer).warnings())


def test_a_column_with_a_fields_own_name_gives_way_only_to_the_one_that_is_there(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"question": "And the cat?", "domain": "pets"}, {"question": "a", "domain": "b", "topic": "c"}]
    columns = {"prompt": "question", "domain": "topic"}
    data = DataConfig(prompts=[write(tmp_path / "a.jsonl", rows)], columns=columns)
    assert [prompt.domain for prompt in load_prompts(data, tokenizer)] == ["pets", "c"]
    data = DataConfig(
        prompts=[write(tmp_path / "b.jsonl", [{"query": "a", "topic": "b"}])], columns={"domain": "topic"}
    )
    with pytest.raises(DataError, match="the fields query, topic are of no known format"):
        load_prompts(data, tokenizer)
    data = DataConfig(prompts=data.prompts, columns={"domain": "topic"}, format="pairs")
    with pytest.raises(DataError, match=r"there is no 'prompt'; the row has query, topic"):
        load_prompts(data, tokenizer)
