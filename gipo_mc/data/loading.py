"""The data sets of a configuration: sources -> rows -> examples -> token ids, with a report of what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig
from gipo_mc.data import synthetic
from gipo_mc.data.chat import Rendered, Renderer
from gipo_mc.data.encode import Encoder
from gipo_mc.data.examples import examples
from gipo_mc.data.fields import LeftOut
from gipo_mc.data.formats import Example
from gipo_mc.data.named import BUILTIN, Kind, Part, sources_of
from gipo_mc.data.sets import DemonstrationSet, PreferenceSet, PromptSet, SourceReport, Text, TokenRows
from gipo_mc.data.templates import Refused
from gipo_mc.errors import ConfigError, DataError

#: Rows tokenized at a time: enough for the tokenizer's threads, little memory.
_CHUNK = 1024


def load_prompts(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 1,
    part: Part = "train",
    columns: bool = False,
) -> PromptSet:
    """Prompts of data.prompts (part "train") or data.evaluation, each once, none longer than data.prompt_length.

    seed: of the built-in task's rows; files ignore it. columns: keep every column of each row, for a reward that asks.
    Raises DataError and ConfigError.
    """
    ids, texts, domains, reports = _load("prompts", data, tokenizer, seed, part, keep=columns)
    return PromptSet(ids[0], texts, domains, reports)


def load_demonstrations(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int = 1, part: Part = "train"
) -> DemonstrationSet:
    """Demonstrations of data.demonstrations or data.evaluation; of preference pairs the chosen response.

    With data.turns=all each assistant turn of a dialogue is one, behind all that comes before it. Prompt + response
    hold at most data.sequence_length tokens: longer responses are cut, and then have no EOS.
    """
    columns, _, domains, reports = _load("demonstrations", data, tokenizer, seed, part)
    return DemonstrationSet(columns, domains, reports)


def load_preferences(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int = 1, part: Part = "train"
) -> PreferenceSet:
    """Preference pairs of data.preferences or data.evaluation, cut like demonstrations."""
    columns, _, domains, reports = _load("preferences", data, tokenizer, seed, part)
    return PreferenceSet(columns, domains, reports)


def _load(
    kind: Kind, data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int, part: Part, keep: bool = False
) -> tuple[list[TokenRows], list[Text], list[str], list[SourceReport]]:
    sources = sources_of(data, kind, part)
    if not sources:
        raise ConfigError(f"data.evaluation names no source, so there are no held-out {kind}: give files or hub names.")
    labels: Sequence[str] = data.domains if len(data.domains) == len(sources) else [""] * len(sources)
    columns = [TokenRows() for _ in range({"prompts": 1, "demonstrations": 2, "preferences": 3}[kind])]
    texts: list[Text] = []
    domains: list[str] = []
    reports: list[SourceReport] = []
    seen: set[str] = set()
    encoder = Encoder(tokenizer)
    for source, label in zip(sources, labels, strict=True):
        report = SourceReport(source)
        reports.append(report)
        if source.partition(":")[0] == BUILTIN:
            if label:
                raise ConfigError("data.domains cannot rename the built-in task's domains: its rewards go by them.")
            rows = _builtin_rows(kind, source, data, tokenizer, seed, report)
        else:
            rows = _file_rows(kind, source, label, data, encoder, report, seen)
        for ids, text, domain in rows:
            for column, row in zip(columns, ids, strict=True):
                column.append(row)
            if kind == "prompts":
                texts.append(text if keep else (*text[:-1], NO_COLUMNS))
            domains.append(label or domain)
            report.kept += 1
            report.by_domain[domains[-1]] += 1
        if keep:
            report.unused.clear()
    if not domains:
        raise DataError(f"No {kind} remain to use:\n" + "\n".join(report.describe() for report in reports))
    return columns, texts, domains, reports


NO_COLUMNS: Mapping[str, Any] = {}
NO_TEXT: Text = ("", (), "", "", NO_COLUMNS)
Row = tuple[tuple[Sequence[int], ...], Text, str]  # (the columns' token ids, prompt, domain)


def _builtin_rows(
    kind: Kind, source: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int, report: SourceReport
) -> Iterator[Row]:
    """Rows of the built-in task, independent draws: equal prompts are kept, they are what the mixture says."""
    split = source.partition(":")[2] or "train"
    if split not in synthetic.SPLITS:
        raise ConfigError(
            f"There is no source {source!r}: write builtin, or builtin:" + ", builtin:".join(synthetic.SPLITS)
        )
    if tokenizer.get_vocab() != {word: index for index, word in enumerate(synthetic.VOCABULARY)}:
        raise ConfigError(
            f"The source {source!r} needs the built-in task's own tokenizer, not {tokenizer.name_or_path!r}: leave "
            "model.policy and model.tokenizer empty, or name files in data."
        )
    report.format = BUILTIN
    for index in range(data.max_rows or synthetic.ROWS[split]):
        report.read += 1
        if kind == "prompts":
            prompt_ids, domain = synthetic.prompt(seed, split, index)
            text = synthetic.prompt_text(prompt_ids)
            yield (prompt_ids,), (text, (), f"{source}:{index + 1}", "", NO_COLUMNS), domain
        elif kind == "demonstrations":
            prompt_ids, response_ids, domain = synthetic.demonstration(seed, split, index)
            yield (prompt_ids, response_ids), NO_TEXT, domain
        else:
            prompt_ids, chosen_ids, rejected_ids, domain = synthetic.preference(seed, split, index)
            yield (prompt_ids, chosen_ids, rejected_ids), NO_TEXT, domain


def _file_rows(
    kind: Kind,
    source: str,
    label: str,
    data: DataConfig,
    encoder: Encoder,
    report: SourceReport,
    seen: set[str],
) -> Iterator[Row]:
    renderer = Renderer(encoder, data)
    report.remarks = renderer.remarks
    found = examples(source, kind, label, data, report)
    if kind == "demonstrations" and data.turns == "all":
        found = _each_turn(found, report)
    rendered = _rendered(found, renderer, report)
    while chunk := list(islice(rendered, _CHUNK)):
        prompts = renderer.encode_prompts([r.prompt for r in chunk])
        responses = [
            renderer.encode_responses([r.responses[column] for r in chunk])
            for column in range({"prompts": 0, "demonstrations": 1, "preferences": 2}[kind])
        ]
        for i, r in enumerate(chunk):
            try:
                if kind == "prompts" and r.text in seen:
                    raise LeftOut("duplicate prompts")
                ids = _fit(prompts[i], [column[i] for column in responses], data, report)
            except LeftOut as reason:
                report.left_out[str(reason)] += 1
                continue
            if kind == "prompts":
                seen.add(r.text)
            yield ids, (r.text, r.messages, r.row, r.conversation, r.columns), r.domain


def _each_turn(rows: Iterable[Example], report: SourceReport) -> Iterator[Example]:
    """An example for each assistant turn of a dialogue that has something before it, the last one included."""
    for example in rows:
        if not isinstance(example.prompt, str):
            for position, message in enumerate(example.prompt):
                if position and message.role == "assistant":
                    report.more += 1
                    yield replace(example, prompt=example.prompt[:position], chosen=message.content)
        yield example


def _rendered(rows: Iterable[Example], renderer: Renderer, report: SourceReport) -> Iterator[Rendered]:
    for example in rows:
        try:
            rendered = renderer.render(example)
            yield replace(rendered, row=example.row, conversation=example.conversation, columns=example.columns)
        except LeftOut as reason:
            report.left_out[str(reason)] += 1
            if isinstance(reason, Refused):
                report.add_problem(f"the chat template: {reason.reason}")


def _fit(
    prompt: list[int], responses: list[list[int]], data: DataConfig, report: SourceReport
) -> tuple[Sequence[int], ...]:
    """The columns of one row, responses cut to the room they have; raises LeftOut."""
    if not prompt:
        raise LeftOut("empty prompts")
    if len(prompt) > data.prompt_length:
        raise LeftOut(f"prompts longer than data.prompt_length={data.prompt_length}")
    room = data.sequence_length - len(prompt)
    if responses and room < 1:
        raise LeftOut(f"prompts that fill data.sequence_length={data.sequence_length}")
    cut = [response[:room] for response in responses]
    if len(cut) == 2 and cut[0] == cut[1]:
        raise LeftOut("pairs of equal responses")
    report.truncated += sum(len(response) > room for response in responses)
    return (prompt, *cut)
