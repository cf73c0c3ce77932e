"""The fields of one row: typed reading with sentences for errors, and which of them nobody read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gipo_mc.config.data import RowField


class RowError(ValueError):
    """A malformed row; the message is the reason. The caller knows file and line. lacks: fields that are not there."""

    def __init__(self, reason: str, lacks: Iterable[str] = ()) -> None:
        super().__init__(reason)
        self.lacks = tuple(lacks)


class UnknownFormat(RowError):
    """A row whose fields are those of no format: as are most likely all of its source."""


class LeftOut(Exception):
    """A row in order that is not used; the message is what such rows are called in the report."""


class Fields(Mapping[str, Any]):
    """A row that remembers what was read of it, so that a column which nothing reads can be named.

    Null is what Parquet and many writers put where a row has no value: `has` takes it for absent.
    row: as it stands in its file. columns: field -> its name there, where that is another; a column that has a field's
    name itself gives way to the one named for that field, where the row has that.
    """

    def __init__(self, row: Mapping[str, Any], columns: Mapping[RowField, str] | None = None) -> None:
        self._of_file = row
        self._columns: dict[str, str] = {field: name for field, name in (columns or {}).items() if name in row}
        taken = {*self._columns, *self._columns.values()}
        others = {key: value for key, value in row.items() if key not in taken}
        self._row = others | {field: row[name] for field, name in self._columns.items()}
        self._read: set[str] = set()
        self._ignored: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self._row[key]
        self._read.add(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, key: object) -> bool:
        return key in self._row  # Mapping's own would count as reading

    def has(self, key: str) -> bool:
        """Does the row hold a value there? Asking is not reading."""
        return self._row.get(key) is not None

    def peek(self, key: str) -> Any:
        """The value or None, without reading it."""
        return self._row.get(key)

    @property
    def names(self) -> tuple[str, ...]:
        """What its columns are called in its file."""
        return tuple(map(str, self._of_file))

    def ignore(self, key: str, below: str) -> None:
        """Something below a field that was read is of no use here, such as a message's "name"."""
        self._ignored.add(f"{self._columns.get(key, key)}.{below}")

    def unused(self) -> set[str]:
        """Columns with a value that nobody has read, as their file calls them."""
        read = {self._columns.get(key, key) for key in self._read}
        return self._ignored | {str(key) for key, value in self._of_file.items() if key not in read and says(value)}


def says(value: Any) -> bool:
    """Is there anything in a value? Null, and empty texts, lists and objects are how files say that there is not."""
    return value is not None and value not in ("", [], {})


def string(row: Mapping[str, Any], key: str, name: str = "") -> str:
    """The text of a field. name: what to call it in an error. Raises RowError."""
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError(wrong(row, key, "a string", name), lacks=[key] * (key not in row))
    if "\0" in value:
        raise RowError(f"{name or repr(key)} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(f"{name or repr(key)} holds half of a surrogate pair, which is no character")
    return value


def optional(row: Mapping[str, Any], key: str) -> str | None:
    """The text of a field that the row may lack."""
    return string(row, key) if row.get(key) is not None else None


def first(row: Mapping[str, Any], *keys: str) -> str | None:
    """The text of the first of these fields that the row has."""
    return next((text for key in keys if (text := optional(row, key)) is not None), None)


def wrong(row: Mapping[str, Any], key: str, wanted: str, name: str = "") -> str:
    """The sentence for a field that is absent or of another type."""
    if key not in row:
        return f"there is no {name or repr(key)}; the row has {', '.join(names_of(row)) or 'no fields'}"
    return f"{name or repr(key)} is {kind(row[key])}, not {wanted}"


def names_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the columns of a row are called where it comes from."""
    return row.names if isinstance(row, Fields) else tuple(map(str, row))


def kind(value: Any) -> str:
    """What a value is, in words."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        bytes: "bytes",
    }
    if isinstance(value, (list, dict)) and not value:
        return "empty"
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


#: What publishers call the fields that data.columns may find under another name, the likeliest first.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "instruction", "query", "input", "problem", "context", "article", "document", "text"),
    "chosen": ("answer", "completion", "response", "output", "better", "solution", "target", "reference", "summary"),
    "rejected": ("worse", "negative", "bad", "other_response"),
}
_WORDS = {"prompt": "the prompt", "chosen": "the response", "rejected": "the worse one"}


def other_names(row: Mapping[str, Any], fields: Iterable[str]) -> str:
    """How to name the columns that stand for these fields, which a row lacks, with the likeliest of its text columns
    as an example; "" where it has no text that no field has taken, or a field goes by no other name."""
    wanted = [field for field in fields if field in _WORDS]
    taken = {"prompt", "chosen", "rejected", "messages", "domain", "system", "conversation", "label"}
    texts = [key for key in row if isinstance(_held(row, key), str) and key not in taken]
    if not wanted or not texts:
        return ""
    usual = {name for names in _OTHER_NAMES.values() for name in names}
    guesses: dict[str, str] = {}
    for field in wanted:
        known = [name for name in _OTHER_NAMES[field] if name in texts]
        # A sentence rather than an id or a label.
        others = [key for key in texts if len(_held(row, key).split()) > 1 and key not in usual]
        guesses[field] = next((key for key in (*known, *others) if key not in guesses.values()), "NAME")
    which = " and ".join(_WORDS[field] for field in wanted)
    which = which.replace("response and", "better response and")
    if len(wanted) == 1:
        return f"say which column is {which}, for example data.columns.{wanted[0]}={guesses[wanted[0]]}"
    shown = ", ".join(f"{field}: {name}" for field, name in guesses.items())
    return f"say which columns are {which}, for example 'data.columns={{{shown}}}'"


def _held(row: Mapping[str, Any], key: str) -> Any:
    return row.peek(key) if isinstance(row, Fields) else row[key]
