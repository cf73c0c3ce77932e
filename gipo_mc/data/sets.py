"""Tokenized data sets and the report of what loading kept and left out."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import numpy as np

from gipo_mc.errors import did_you_mean
from gipo_mc.types import Demonstration, Message, PreferencePair, Prompt

Item = TypeVar("Item")


class TokenRows:
    """Rows of token ids in one flat int32 array: 100,000 dialogues as Python tuples would take gigabytes a rank."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._ends = array("q", [0])

    def append(self, ids: Sequence[int]) -> None:
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(self._ids[self._ends[index] : self._ends[index + 1]])

    def content(self, start: int, stop: int) -> tuple[memoryview, memoryview]:
        """Ids and lengths of rows `start` to `stop`, as bytes for a hash."""
        ends = np.frombuffer(self._ends, dtype=np.int64)[start : stop + 1]
        ids = np.frombuffer(self._ids, dtype=np.int32)[ends[0] : ends[-1]]
        return ids.data, np.diff(ends).data


#: Problems of a source that its report shows.
_SHOWN = 5


@dataclass(frozen=True)
class Remark:
    """Something about rows that are used, but may not say what their author meant.

    what: in the plural, behind a number. remedy: what it means and what to do, for a warning; empty: no warning.
    share: of the source's rows below which there is no warning (such rows exist in any data).
    """

    what: str
    remedy: str = ""
    share: float = 0.0


@dataclass
class SourceReport:
    """What became of one source: `read` rows + `more` = `kept` + the sum of `left_out`.

    format: the row format, given or found. left_out: count by reason. by_domain: kept rows by label.
    truncated: responses cut to data.sequence_length (they end without EOS). problems: the first malformed rows,
    "file:line: reason". more: items beyond one for each row (data.turns=all). unused: columns that hold something and
    are not used, with the number of such rows. remarks: what is odd, and in how many rows.
    absent: columns of data.columns that no row has and the use would read, with the field that each stands for.
    """

    source: str
    format: str = ""
    read: int = 0
    kept: int = 0
    truncated: int = 0
    more: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    by_domain: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    remarks: Counter[Remark] = field(default_factory=Counter)
    absent: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One paragraph for the console."""
        domains = ", ".join(f"{name} {count}" for name, count in sorted(self.by_domain.items()))
        rows = f"{self.read + self.more} turns of {self.read} rows" if self.more else f"{self.read} rows"
        how = f"format {self.format}" if self.format else "no rows"
        text = f"{self.source} ({how}): {self.kept} of {rows} kept [{domains}]"
        if self.left_out:
            text += "; left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        if self.truncated:
            text += f"; {self.truncated} responses cut to data.sequence_length"
        if self.unused:
            text += "; columns not used: " + ", ".join(sorted(self.unused))
        text += "".join(f"; {count} {remark.what}" for remark, count in self.remarks.items())
        return text + "".join(f"\n  {problem}" for problem in self.problems)

    def warnings(self) -> list[str]:
        """What a person should know before training on these rows, a sentence each."""
        absent = [
            f"{self.source}: no row has the column {column}, which data.columns names for {field}: correct the name "
            f"there if these rows should have it{did_you_mean(column, self.unused, most=1) or '.'}"
            for column, field in self.absent.items()
        ]
        return absent + [
            f"{self.source}: {count} {remark.what}: {remark.remedy}."
            for remark, count in self.remarks.items()
            if remark.remedy and count >= remark.share * self.read
        ]

    def add_problem(self, text: str) -> None:
        """Keep it, if it is new and there are not too many."""
        if len(self.problems) < _SHOWN and text not in self.problems:
            self.problems.append(text)


class DataSet(Sequence[Item], Generic[Item]):
    """An immutable sequence of items; item i has `index` i. Items are built when asked for, from flat arrays.

    reports: one SourceReport for each source, in order.
    """

    def __init__(self, columns: Sequence[TokenRows], domains: Sequence[str], reports: Sequence[SourceReport]) -> None:
        self._columns = tuple(columns)
        self._domains = tuple(domains)
        self.reports = tuple(reports)

    @property
    def domains(self) -> tuple[str, ...]:
        """The labels that occur, in order of first appearance."""
        return tuple(dict.fromkeys(self._domains))

    @property
    def domain_of(self) -> tuple[str, ...]:
        """The label of every item."""
        return self._domains

    def describe(self) -> str:
        """What was read, kept and left out, one paragraph a source."""
        return "\n".join(report.describe() for report in self.reports)

    def warnings(self) -> list[str]:
        """What is odd about the rows, a sentence each."""
        return [text for report in self.reports for text in report.warnings()]

    def sources(self, *, named_domains: bool = False) -> list[dict[str, Any]]:
        """What each source holds, in order: {"source": its name, "rows": how many, "sha256": 16 digits}.

        The hash is of the rows as they are trained on, not of the files: it takes hub data sets and the built-in task,
        too, and differs where tokenizer or format read a file in another way. Of 100,000 rows with 500 tokens it takes
        0.2 s. Domains count by which rows share one and by their sorted order; by name only if `named_domains`.
        """
        order = {name: number for number, name in enumerate(sorted(self.domains))}
        found, stop = [], 0
        for report in self.reports:
            start, stop = stop, stop + report.kept
            digest = hashlib.sha256()
            for column in self._columns:
                for part in column.content(start, stop):
                    digest.update(part)
            own = self._domains[start:stop]
            digest.update(repr(own if named_domains else [order[name] for name in own]).encode())
            found.append({"source": report.source, "rows": report.kept, "sha256": digest.hexdigest()[:16]})
        return found

    def rows_in(self, other: DataSet[Item]) -> int:
        """How many of these rows `other` holds, too, with the same ids in every column."""
        own = {tuple(column[row] for column in self._columns) for row in range(len(self))}
        # Few rows of the other have lengths that occur here: only those are read.
        lengths = {tuple(map(len, ids)) for ids in own}
        columns = [np.frombuffer(column.content(0, len(other))[1], dtype=np.int64) for column in other._columns]
        alike = [row for row, found in enumerate(zip(*(c.tolist() for c in columns), strict=True)) if found in lengths]
        there = own & {tuple(column[row] for column in other._columns) for row in alike}
        return sum(tuple(column[row] for column in self._columns) in there for row in range(len(self)))

    def __len__(self) -> int:
        return len(self._domains)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"there is no item {index} in a set of {len(self)}")
        return self._item(int(position))

    def _item(self, index: int) -> Item:
        raise NotImplementedError


def seen_in_training(train: DataSet[Item], held_out: DataSet[Item]) -> str:
    """A sentence where held-out rows are rows that are trained on, else "". The built-in task draws its rows
    independently: equal ones are what its mixture says."""
    if all(report.format == "builtin" for report in held_out.reports) or not (shared := held_out.rows_in(train)):
        return ""
    return (
        f"{shared} of {len(held_out)} held-out rows are trained on, too: an evaluation on them does not show how the "
        "model does on new ones. Take them out of data.evaluation, or out of the training files."
    )


#: What a prompt has besides its ids and its domain: text, messages, row, conversation, columns.
Text = tuple[str, tuple[Message, ...], str, str, Mapping[str, Any]]


class PromptSet(DataSet[Prompt]):
    """Prompts for reinforcement learning."""

    def __init__(
        self,
        prompts: TokenRows,
        texts: Sequence[Text],
        domains: Sequence[str],
        reports: Sequence[SourceReport],
    ) -> None:
        super().__init__((prompts,), domains, reports)
        self._texts = tuple(texts)

    def columns_hash(self) -> str:
        """Of every column of the rows, where they were kept."""
        digest = hashlib.sha256()
        for *_, columns in self._texts:
            row = repr(sorted(columns.items(), key=lambda item: str(item[0])))
            digest.update(row.encode("utf-8", "backslashreplace"))
        return digest.hexdigest()[:16]

    def _item(self, index: int) -> Prompt:
        return Prompt(index, self._columns[0][index], self._domains[index], *self._texts[index])


class DemonstrationSet(DataSet[Demonstration]):
    """Prompts with a response to imitate; columns: prompt, response."""

    def _item(self, index: int) -> Demonstration:
        prompt, response = (column[index] for column in self._columns)
        return Demonstration(index, prompt, response, self._domains[index])


class PreferenceSet(DataSet[PreferencePair]):
    """Prompts with two responses; columns: prompt, chosen, rejected."""

    def _item(self, index: int) -> PreferencePair:
        prompt, chosen, rejected = (column[index] for column in self._columns)
        return PreferencePair(index, prompt, chosen, rejected, self._domains[index])
