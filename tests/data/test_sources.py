import gzip
import json

import datasets
import pytest

from gipo_mc.data import sources
from gipo_mc.data.sources import BadRow, RawRow, domain_of_source, read_rows
from gipo_mc.errors import DataError

GOOD = b'{"prompt": "a"}\n'


def write(tmp_path, content: bytes, name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.txt.gz"])
@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "\xc3\xa9"}\n{"prompt": "b"}\n',
        b'{"prompt": "\xc3\xa9"}\r\n\r\n{"prompt": "b"}',  # blank line, no line break at the end
        b'\xef\xbb\xbf{"prompt": "\\u00e9"}\n{"prompt": "b"}\n',  # BOM
        b'[{"prompt": "\xc3\xa9"},\n {"prompt": "b"}]',
        b'\xef\xbb\xbf \n[\n{"prompt":\n"\xc3\xa9"}\n,\n{"prompt": "b"}\n]\n',
    ],
)
def test_json_lines_and_lists_plain_and_zipped(tmp_path, name, content):
    rows = list(read_rows(write(tmp_path, content, name)))
    assert [row.fields for row in rows] == [{"prompt": "é"}, {"prompt": "b"}]


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{", "not valid JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"prompt": "a"} x', "not valid JSON: Extra data at column 17"),
        (b'"text"', "the row is a str, not an object"),
        (b"[1]", "the row is a list, not an object"),
        (b"null", "the row is a NoneType, not an object"),
        (b'{"prompt": "a\x00"}', "a NUL byte at column 14"),
        (b'{"prompt": "\xff"}', "byte 13 of the line is not UTF-8 (invalid start byte)"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": ' + b"1" * 10_000 + b"}", "not valid JSON: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named_with_line_and_reason_and_the_others_are_read(tmp_path, line, reason):
    path = write(tmp_path, GOOD + line + b"\n" + GOOD)
    first, bad, last = read_rows(path)
    assert isinstance(bad, BadRow) and bad.where == f"{path}:2" and reason in bad.reason
    assert first == RawRow(f"{path}:1", {"prompt": "a"}) and last == RawRow(f"{path}:3", {"prompt": "a"})


@pytest.mark.parametrize("end", [b"\n" + GOOD, b""])
def test_a_line_beyond_the_limit_is_skipped_without_being_held(tmp_path, monkeypatch, end):
    monkeypatch.setattr(sources, "MAX_LINE", 2**20)
    path = write(tmp_path, GOOD + b'{"prompt": "' + b"x" * (3 * 2**20) + b'"}' + end)
    rows = list(read_rows(path))
    assert rows[1] == BadRow(f"{path}:2", "the line is longer than 1 MiB")
    assert [row.where for row in rows[2:]] == ([f"{path}:3"] if end else [])


def test_a_line_of_exactly_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE", len(GOOD) - 1)
    assert all(isinstance(row, RawRow) for row in read_rows(write(tmp_path, GOOD + GOOD)))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b'[{"prompt": "a"},\n{"prompt" "b"}]', r":2: not valid JSON: Expecting ':' delimiter"),
        (b'[{"prompt": "a"}\n{"prompt": "b"}]', r":2: not valid JSON: a comma or \] is missing"),
        (b'[{"prompt": "a"},\n', r":2: not valid JSON: Expecting value"),
        (b'[\n{"prompt": "\xff"}]', r":2: byte 15 of the file is not UTF-8"),
        (b"[" * 100_000, r":1: not valid JSON"),
    ],
)
def test_a_broken_list_stops_at_the_line(tmp_path, content, reason):
    with pytest.raises(DataError, match=reason):
        list(read_rows(write(tmp_path, content, "rows.json")))


def test_rows_of_a_list_know_their_line(tmp_path):
    path = write(tmp_path, b'[\n{"a": 1},\n\n3,\n{"b":\n2}, {}\n]', "rows.json")
    assert [row.where for row in read_rows(path)] == [f"{path}:{line}" for line in (2, 4, 5, 6)]


def test_whole_files_that_cannot_be_read(tmp_path):
    cases = {
        "is empty": write(tmp_path, b"", "empty.jsonl"),
        "is UTF-16": write(tmp_path, '{"a": 1}'.encode("utf-16"), "utf16.jsonl"),
        "damaged .gz": write(tmp_path, b"", "cut.jsonl"),
        "no readable Parquet": write(tmp_path, b"nonsense", "bad.parquet"),
        "holds no JSON: data is JSON lines": write(tmp_path, b"prompt,chosen\na,b\n", "table.csv"),
        "no JSON: data is": write(tmp_path, b"\x28\xb5\x2f\xfd nonsense", "rows.jsonl.zst"),
        "is a folder": str(tmp_path),
        "There is no file": str(tmp_path / "missing.jsonl"),
    }
    (tmp_path / "cut.jsonl").write_bytes(gzip.compress(GOOD * 1000)[:-20])
    for reason, path in cases.items():
        with pytest.raises(DataError, match=reason):
            list(read_rows(path))
    assert list(read_rows(write(tmp_path, b"\n \n", "blank.jsonl"))) == []
    assert len(list(read_rows(write(tmp_path, GOOD, "rows.txt")))) == 1, "JSON lines whatever their name"


def test_parquet(tmp_path):
    path = str(tmp_path / "rows.parquet")
    rows = [{"prompt": "a", "nested": {"list": [1, 2]}}, {"prompt": "b", "nested": None}]
    datasets.Dataset.from_list(rows).to_parquet(path)
    read = list(read_rows(path))
    assert [row.where for row in read] == [f"{path}:row 1", f"{path}:row 2"]
    assert read[0].fields == rows[0] and read[1].fields["prompt"] == "b"


def test_a_local_parquet_file_is_nobodys_business(tmp_path, monkeypatch):
    """`datasets.load_dataset` tells the hub that a Parquet file is read, and waits for it where it does not answer."""
    path = str(tmp_path / "rows.parquet")
    datasets.Dataset.from_list([{"prompt": "a"}]).to_parquet(path)
    asked = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.load, "get_session", lambda: asked.append("the hub"))
    assert len(list(read_rows(path))) == 1 and asked == []


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository layout that `datasets` finds as "owner/name" from the current folder, as it would on the hub."""
    root = tmp_path / "owner" / "name"
    for folder in ("harmless-base", "helpful-base"):
        (root / folder).mkdir(parents=True)
        for split in ("train", "test"):
            (root / folder / f"{split}.jsonl").write_text(json.dumps({"prompt": f"{folder} {split}"}) + "\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return root


def test_hub_names_reach_the_folder_and_the_split(repository):
    for split in ("train", "test"):
        rows = list(read_rows(f"owner/name/harmless-base@{split}"))
        assert rows == [
            RawRow(f"owner/name/harmless-base@{split}:row 1", {"prompt": f"harmless-base {split}"}),
        ]
    with pytest.raises(DataError, match='no hub data set of this name can be loaded: Unknown split "nope"'):
        list(read_rows("owner/name/harmless-base@nope"))
    with pytest.raises(DataError, match="There is no file other/name, and no hub data set"):
        list(read_rows("other/name"))


def test_a_repository_with_a_loading_script_is_read_from_the_hubs_parquet_copy(monkeypatch):
    calls = []

    def load_dataset(path, **options):
        calls.append((path, options))
        if "revision" not in options:
            raise RuntimeError("Dataset scripts are no longer supported, but found name.py")
        return [{"prompt": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.fields for row in read_rows("owner/name:comparisons@validation")] == [{"prompt": "a"}]
    assert calls == [
        ("owner/name", {"name": "comparisons", "split": "validation"}),
        ("owner/name", {"data_dir": "comparisons", "split": "validation", "revision": "refs/convert/parquet"}),
    ]


@pytest.mark.parametrize(
    "source, label",
    [
        ("a/harmless_base_train.jsonl.gz", "harmless_base"),
        ("a/helpful-base/test.jsonl", "helpful-base"),
        ("pairs.parquet", "pairs"),
        ("comparisons.validation.json", "comparisons"),
        ("Anthropic/hh-rlhf/harmless-base@test", "harmless-base"),
        ("openai/summarize_from_feedback:comparisons@train", "comparisons"),
        ("trl-lib/tldr", "tldr"),
    ],
)
def test_a_label_from_the_name(source, label):
    assert domain_of_source(source) == label


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path, separator):
    """Python's splitlines, and readers that use it, cut a row in two at characters that people paste."""
    row = json.dumps({"prompt": f"a{separator}b"}, ensure_ascii=separator < " ").encode()
    rows = list(read_rows(write(tmp_path, row + b"\r\n" + GOOD)))
    assert [row.fields for row in rows] == [{"prompt": f"a{separator}b"}, {"prompt": "a"}]


@pytest.mark.parametrize("rest", [b'\n[{"prompt": "b"}]\n', b'\n{"prompt": "b"}', b"]", b"\n\n\nx"])
def test_what_stands_behind_a_list_is_not_lost(tmp_path, rest):
    """Two .json files that were put together with cat."""
    path = write(tmp_path, b'[{"prompt": "a"},\n {"prompt": "b"}]' + rest, "rows.json")
    line = 2 + rest.rstrip().count(b"\n")
    with pytest.raises(DataError, match=rf"rows\.json:{line}: there is more behind the list"):
        list(read_rows(path))
