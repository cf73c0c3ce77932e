import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gipo_mc.config import DataConfig
from gipo_mc.data.batches import batch_indices
from gipo_mc.data.loading import load_demonstrations, load_preferences, load_prompts
from gipo_mc.data.named import sources_of
from gipo_mc.data.sets import TokenRows
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.errors import ConfigError, DataError

U, A = "\n\nHuman:", "\n\nAssistant:"
TEXTS = [f"{U} Where is the dog?{A} In the park.{U} And the cat?{A} At home, on the sofa."] * 20
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LOADERS = {"prompts": load_prompts, "demonstrations": load_demonstrations, "preferences": load_preferences}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_bpe_tokenizer(TEXTS, 330, tmp_path_factory.mktemp("bpe"))


def hh(question: str, chosen: str, rejected: str) -> dict:
    return {"chosen": f"{U} {question}{A} {chosen}", "rejected": f"{U} {question}{A} {rejected}"}


def write(path: Path, rows: list) -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


ROWS = [
    hh("Where is the dog?", "In the park.", "No idea."),
    hh("And the cat?", "At home.", "Away."),
    hh("And the cat?", "On the sofa.", "Away."),
]


def test_hh_as_preferences_prompts_and_demonstrations(tmp_path, tokenizer):
    data = DataConfig(preferences=[write(tmp_path / "harmless_base_train.jsonl.gz", ROWS)])
    pairs = load_preferences(data, tokenizer)
    assert len(pairs) == 3 and [pair.index for pair in pairs] == [0, 1, 2]
    pair = pairs[0]
    assert tokenizer.decode(pair.prompt_ids) == f"<s>{U} Where is the dog?{A}"
    assert tokenizer.decode(pair.chosen_ids) == " In the park.</s>"
    assert tokenizer.decode(pair.rejected_ids) == " No idea.</s>"
    assert pair.domain == "harmless_base" and pairs.domains == ("harmless_base",)
    prompts = load_prompts(data, tokenizer)
    assert [p.text for p in prompts] == [f"{U} Where is the dog?{A}", f"{U} And the cat?{A}"]
    assert prompts[0].token_ids == pair.prompt_ids and prompts[1].index == 1
    assert prompts.reports[0].left_out == {"duplicate prompts": 1}
    demonstrations = load_demonstrations(data, tokenizer)
    assert [d.response_ids for d in demonstrations] == [p.chosen_ids for p in pairs]


def test_sets_are_sequences(tmp_path, tokenizer):
    pairs = load_preferences(DataConfig(preferences=[write(tmp_path / "a.jsonl", ROWS)]), tokenizer)
    assert pairs[-1] == pairs[2] and pairs[1:] == [pairs[1], pairs[2]] and list(pairs) == pairs[:]
    with pytest.raises(IndexError, match="no item 3 in a set of 3"):
        pairs[3]
    chosen = [pairs[i].index for i in batch_indices(1, "x", 0, 3, 3)]
    assert sorted(chosen) == [0, 1, 2]
    rows = TokenRows()
    for row in ([1, 2], [], [3]):
        rows.append(row)
    assert [rows[i] for i in range(len(rows))] == [(1, 2), (), (3,)]


def test_domains_come_from_the_configuration_then_the_row_then_the_file(tmp_path, tokenizer):
    rows = [{"prompt": "a", "domain": "own"}, {"prompt": "b"}]
    paths = [write(tmp_path / "one.jsonl", rows), write(tmp_path / "two.jsonl", [{"prompt": "c"}])]
    assert load_prompts(DataConfig(prompts=paths), tokenizer).domain_of == ("own", "one", "two")
    data = DataConfig(prompts=paths, domains=["x", "y"])
    prompts = load_prompts(data, tokenizer)
    assert prompts.domain_of == ("x", "x", "y")
    assert [report.by_domain for report in prompts.reports] == [{"x": 2}, {"y": 1}]


def test_what_is_left_out_is_counted_by_reason(tmp_path, tokenizer):
    rows = [
        *ROWS,
        hh("One?", "", "No."),
        hh("One?", "Yes.", "Yes. "),
        hh("", "Yes.", "No."),
        hh("dog " * 100, "Yes.", "No."),
        {"chosen": f"{U} One?{A} Yes.", "rejected": f"{U} Two?{A} No."},
    ]
    data = DataConfig(preferences=[write(tmp_path / "a.jsonl", rows)], prompt_length=64)
    report = load_preferences(data, tokenizer).reports[0]
    assert (report.read, report.kept, report.format) == (8, 3, "hh")
    assert report.left_out == {
        "empty responses": 1,
        "pairs of equal responses": 1,
        "empty prompts": 1,
        "prompts longer than data.prompt_length=64": 1,
        "pairs of different prompts": 1,
    }
    assert "3 of 8 rows kept [a 3]" in report.describe() and "1 empty prompts" in report.describe()
    prompts = load_prompts(data, tokenizer).reports[0]  # a prompt needs no response
    assert prompts.kept == 3 and prompts.left_out["duplicate prompts"] == 2


def test_the_longest_prompt_allowed_is_kept(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"prompt": "dog dog dog"}])
    length = len(load_prompts(DataConfig(prompts=[path]), tokenizer)[0].token_ids)
    assert len(load_prompts(DataConfig(prompts=[path], prompt_length=length), tokenizer)) == 1
    with pytest.raises(DataError, match=rf"(?s)No prompts remain.*longer than data\.prompt_length={length - 1}"):
        load_prompts(DataConfig(prompts=[path], prompt_length=length - 1), tokenizer)


def test_responses_are_cut_to_the_sequence_and_lose_their_eos(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"prompt": "dog", "chosen": "the cat at home " * 10, "rejected": "no"}])
    whole = load_preferences(DataConfig(preferences=[path]), tokenizer)[0]
    n = len(whole.prompt_ids)
    cut = load_preferences(DataConfig(preferences=[path], sequence_length=n + 8), tokenizer)
    assert cut[0].chosen_ids == whole.chosen_ids[:8] and cut[0].chosen_ids[-1] != tokenizer.eos_token_id
    assert cut[0].rejected_ids == whole.rejected_ids and cut.reports[0].truncated == 1
    exact = load_preferences(DataConfig(preferences=[path], sequence_length=n + len(whole.chosen_ids)), tokenizer)
    assert exact[0] == whole and exact.reports[0].truncated == 0
    with pytest.raises(DataError, match=r"1 prompts that fill data\.sequence_length"):
        load_preferences(DataConfig(preferences=[path], sequence_length=n), tokenizer)
    same = write(tmp_path / "b.jsonl", [{"prompt": "dog", "chosen": "the cat home", "rejected": "the cat away"}])
    with pytest.raises(DataError, match="1 pairs of equal responses"):
        load_preferences(DataConfig(preferences=[same], sequence_length=n + 2), tokenizer)


def test_strict_stops_at_the_row_and_quarantine_skips_and_reports(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [*ROWS, "{", hh("Who?", "Me.", "You."), {"chosen": 1, "rejected": 2}])
    with pytest.raises(DataError, match=rf"{path}:4: not valid JSON: .*at column 2\.\nCorrect or remove") as error:
        load_preferences(DataConfig(preferences=[path]), tokenizer)
    assert error.value.exit_code == 3
    pairs = load_preferences(DataConfig(preferences=[path], on_error="quarantine"), tokenizer)
    report = pairs.reports[0]
    assert len(pairs) == 4 and report.left_out == {"malformed rows": 2} and report.read == 6
    assert [problem.split(": ")[0] for problem in report.problems] == [f"{path}:4", f"{path}:6"]
    assert f"{path}:6: 'chosen' is a number" in report.describe()


def test_quarantine_has_a_limit(tmp_path, tokenizer):
    few = write(tmp_path / "few.jsonl", [*ROWS, *["{"] * 10])
    assert len(load_preferences(DataConfig(preferences=[few], on_error="quarantine"), tokenizer)) == 3
    many = write(tmp_path / "many.jsonl", [*ROWS, *["{"] * 11])
    with pytest.raises(DataError, match=r"11 of 14 rows are malformed, more than 5%"):
        load_preferences(DataConfig(preferences=[many], on_error="quarantine"), tokenizer)
    mostly_good = write(tmp_path / "good.jsonl", [*ROWS * 100, *["{"] * 11])
    assert len(load_preferences(DataConfig(preferences=[mostly_good], on_error="quarantine"), tokenizer)) == 300


def test_a_first_row_that_is_taken_for_another_format_says_which(tmp_path, tokenizer):
    """PKU-SafeRLHF's pairs, the first with a null: what is left of it looks like pairs of another format."""
    full = {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 0, "safer_response_id": 0}
    rows = [full | {"response_1": None, "better_response_id": None, "safer_response_id": None}, *[full] * 20]
    data = DataConfig(preferences=[write(tmp_path / "a.jsonl", rows)])
    with pytest.raises(DataError, match=r"Auto takes it for pairs: set data.format where it is another"):
        load_preferences(data, tokenizer)
    data = data.model_copy(update={"on_error": "quarantine"})
    with pytest.raises(DataError, match=r"the wrong data.format \(pairs, by the first row\)"):
        load_preferences(data, tokenizer)


def test_a_use_that_the_rows_cannot_serve_is_an_error(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b"}])
    with pytest.raises(DataError, match=":1: there is no rejected response in this row of format pairs"):
        load_preferences(DataConfig(preferences=[path]), tokenizer)
    assert len(load_demonstrations(DataConfig(preferences=[path]), tokenizer)) == 1
    with pytest.raises(DataError, match="'chosen' does not begin with"):
        load_demonstrations(DataConfig(preferences=[path], format="hh"), tokenizer)


def test_max_rows_reads_no_further(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [*ROWS[:2], "{"])
    assert len(load_preferences(DataConfig(preferences=[path], max_rows=2), tokenizer)) == 2


def test_columns_that_are_not_used_are_named_once(tmp_path, tokenizer):
    rows = [{"prompt": f"dog {i}", "response": "cat", "tools": [{"name": "f"}], "label": i} for i in range(3)]
    data = DataConfig(demonstrations=[write(tmp_path / "a.jsonl", rows)])
    report = load_demonstrations(data, tokenizer).reports[0]
    assert report.unused == {"tools": 3, "label": 3} and report.describe().count("columns not used: label, tools") == 1
    assert load_prompts(data, tokenizer).reports[0].unused == report.unused, "a response is not named: nobody misses it"


def test_parquet_with_the_nulls_of_a_wider_table(tmp_path, tokenizer):
    message = {"role": "user", "content": "dog", "tool_calls": None}
    rows = [{"prompt": [message], "messages": None, "chosen": None, "rejected": None, "system": None}] * 2
    path = str(tmp_path / "a.parquet")
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path)
    prompts = load_prompts(DataConfig(prompts=[path]), tokenizer)
    assert len(prompts) == 1 and prompts.reports[0].unused == {}


def test_parquet_and_separator(tmp_path, tokenizer):
    path = str(tmp_path / "pairs.parquet")
    datasets.Dataset.from_list([{"prompt": "dog", "chosen": " cat ", "rejected": "no"}]).to_parquet(path)
    for separator, text in (("", " cat</s>"), ("\n", "\ncat</s>")):
        pair = load_preferences(DataConfig(preferences=[path], response_separator=separator), tokenizer)[0]
        assert tokenizer.decode(pair.chosen_ids) == text


def test_plain_and_templated_dialogues(tmp_path, tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Where is the dog? "},
        {"role": "assistant", "content": "In the park."},
    ]
    path = write(tmp_path / "a.jsonl", [{"messages": messages}])
    plain = load_demonstrations(DataConfig(demonstrations=[path]), tokenizer)[0]
    text = "<s>\n\nSystem: Be kind.\n\nHuman: Where is the dog?\n\nAssistant: In the park.</s>"
    assert tokenizer.decode(plain.prompt_ids + plain.response_ids) == text
    with pytest.raises(ConfigError, match="has no chat template"):
        load_demonstrations(DataConfig(demonstrations=[path], chat_template=True), tokenizer)


@pytest.fixture
def chat_tokenizer(tmp_path):
    tokenizer = train_bpe_tokenizer(TEXTS, 330, tmp_path / "chat")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_chat_template_brings_its_own_special_tokens(tmp_path, chat_tokenizer):
    rows = [
        {"prompt": [{"role": "user", "content": "dog"}], "completion": [{"role": "assistant", "content": "cat"}]},
        {"prompt": "dog", "completion": "cat"},
        {"prompt": "a</s>b", "completion": "cat"},
        {"prompt": "dog", "completion": "<s>"},
    ]
    sets = []
    for name, part in (("messages", rows[:1]), ("pairs", rows[1:])):
        data = DataConfig(demonstrations=[write(tmp_path / f"{name}.jsonl", part)], chat_template=True)
        sets.append(load_demonstrations(data, chat_tokenizer))
    for demonstrations in sets:
        d = demonstrations[0]
        assert chat_tokenizer.decode(d.prompt_ids) == "<s><|user|>dog</s><|assistant|>"
        assert d.prompt_ids.count(chat_tokenizer.bos_token_id) == 1
        assert chat_tokenizer.decode(d.response_ids) == "cat</s>"
    assert sets[1].reports[0].left_out == {
        "messages that hold the special token </s>": 1,
        "messages that hold the special token <s>": 1,
    }


def test_dialogues_that_a_template_refuses_are_left_out(tmp_path, chat_tokenizer):
    chat_tokenizer.chat_template = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + TEMPLATE
    rows = [
        {"messages": [{"role": "user", "content": "dog"}] * count + [{"role": "assistant", "content": "cat"}]}
        for count in (1, 3)
    ]
    data = DataConfig(demonstrations=[write(tmp_path / "a.jsonl", rows)], chat_template=True)
    demonstrations = load_demonstrations(data, chat_tokenizer)
    assert len(demonstrations) == 1
    assert demonstrations.reports[0].left_out == {"dialogues that the chat template refuses": 1}


def test_sources_fall_back_in_a_stated_order():
    assert sources_of(DataConfig(), "prompts") == ["builtin"]
    assert sources_of(DataConfig(), "prompts", "evaluation") == ["builtin:easy", "builtin:hard", "builtin:ood"]
    data = DataConfig(preferences=["p"], demonstrations=["d"])
    assert [sources_of(data, kind) for kind in LOADERS] == [["p"], ["d"], ["p"]]
    with pytest.raises(ConfigError, match=r"data\.preferences names no source"):
        sources_of(DataConfig(prompts=["x"]), "preferences")
    with pytest.raises(ConfigError, match=r"data\.evaluation names no source"):
        load_prompts(data, builtin_tokenizer(), part="evaluation")


@pytest.mark.parametrize("kind", LOADERS)
def test_the_builtin_task_comes_in_the_same_sets(kind):
    tokenizer = builtin_tokenizer()
    load = LOADERS[kind]
    rows = load(DataConfig(max_rows=50), tokenizer, seed=3)
    assert len(rows) == 50 and rows[:10] == load(DataConfig(max_rows=10), tokenizer, seed=3)[:]
    assert rows[:] != load(DataConfig(max_rows=50), tokenizer, seed=4)[:]
    held_out = load(DataConfig(), tokenizer, seed=3, part="evaluation")
    assert held_out.domains == (("easy", "hard", "ood") if kind == "prompts" else ("easy", "hard"))
    if kind == "prompts":
        for prompt in rows:
            assert tuple(tokenizer(prompt.text).input_ids) == prompt.token_ids
    hard = load(DataConfig(**{kind: ["builtin:hard"]}), tokenizer)
    assert hard.domains == ("hard",) and len(hard) == 256


def test_the_builtin_task_needs_its_own_tokenizer_and_a_split_that_exists(tokenizer):
    with pytest.raises(ConfigError, match="needs the built-in task's own tokenizer"):
        load_prompts(DataConfig(), tokenizer)
    with pytest.raises(ConfigError, match="There is no source 'builtin:test'"):
        load_prompts(DataConfig(prompts=["builtin:test"]), builtin_tokenizer())
    with pytest.raises(ConfigError, match="cannot rename the built-in task's domains"):
        load_prompts(DataConfig(prompts=["builtin"], domains=["x"]), builtin_tokenizer())
    with pytest.raises(ConfigError, match=r"data\.format=builtin is for the source 'builtin', not for a\.jsonl"):
        load_prompts(DataConfig(prompts=["a.jsonl"], format="builtin"), builtin_tokenizer())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_end_in_anything_but_a_data_error(tmp_path, tokenizer, data):
    content = bytearray("".join(json.dumps(row) + "\n" for row in ROWS * 3).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes(content))
    for on_error in ("strict", "quarantine"):
        config = DataConfig(preferences=[str(path)], on_error=on_error)
        try:
            pairs = load_preferences(config, tokenizer)
        except DataError as error:
            assert str(path) in str(error)
        else:
            report = pairs.reports[0]
            assert report.read == report.kept + sum(report.left_out.values())


@pytest.mark.skipif("GIPO_MC_HH_DATA" not in os.environ, reason="GIPO_MC_HH_DATA names no folder of HH-RLHF files")
def test_the_published_hh_rows_load_without_a_malformed_one(tmp_path):
    files = sorted(Path(os.environ["GIPO_MC_HH_DATA"]).glob("*.jsonl.gz"))
    assert files, "GIPO_MC_HH_DATA names a folder without .jsonl.gz files"
    texts = [json.loads(line)["chosen"] for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
    tokenizer = train_bpe_tokenizer(texts, 1024, tmp_path)
    data = DataConfig(preferences=[str(file) for file in files], prompt_length=8192, sequence_length=8192)
    pairs = load_preferences(data, tokenizer)
    assert {report.format for report in pairs.reports} == {"hh"}
    for report in pairs.reports:
        assert report.kept > 0.95 * report.read and "malformed rows" not in report.left_out
