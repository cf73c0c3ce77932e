"""Files of JSON lines: whole lines only, damage named by file and line, a disk that refuses."""

import resource
import signal

import pytest

from gipo_mc.errors import DataError, StorageError
from gipo_mc.run.jsonl import JsonLines, one_line, printable, read_jsonl, write_atomically


def test_printable_is_one_safe_line():
    assert printable("a\nb\x1b\x9b\u202e\ud800é") == "a\\nb\\x1b\\x9b\\u202e\\ud800é"


def test_a_list_becomes_one_line():
    assert one_line("It has problems:\n  - a: b\n\n  - c\x1b") == "It has problems: a: b; c\x1b"
    assert one_line("It failed.\nIt begins again.") == "It failed. It begins again." and one_line("\n") == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": 2, "a": }', "Expecting value"),
        (b"[1]", "this is a list"),
        (b'{"a": 1}', '"step" must be an integer'),
        (b'{"step": "2"}', '"step" must be an integer'),
        (b'{"step": 2, "a": NaN}', "NaN is not JSON"),
        (b"\xff\xfe", "codec can't decode"),
        (b'{"step": 2\x00}', "delimiter"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path, line, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=rf"metrics\.jsonl:2: .*{reason}"):
        read_jsonl(path)


def test_only_an_open_last_line_is_forgiven(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "rew')
    found = read_jsonl(path)
    assert [row["step"] for row in found.rows] == [1]
    assert "metrics.jsonl:2" in found.note and "left out" in found.note
    path.write_bytes(b'{"step": 1}\n{"step": 2, "rew\n')
    with pytest.raises(DataError, match=r":2: "):
        read_jsonl(path)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_jsonl(tmp_path / "none.jsonl")


# --- a disk that refuses -----------------------------------------------------------------------------------------


def limit_file_size(size):
    """Make writes past `size` bytes fail with EFBIG, as a full disk makes them fail with ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def test_a_refused_append_leaves_whole_lines_and_says_the_free_bytes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    file.append({"step": 1})
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_file_size(len(before) + 10)  # ten bytes of the next line still fit
    try:
        with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written: .*[\d,]+ bytes are free .*needed"):
            file.append({"step": 2, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before


def test_a_refused_replacement_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "run_status.json"
    write_atomically(path, "old")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_file_size(10)
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write_atomically(path, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["run_status.json"]
