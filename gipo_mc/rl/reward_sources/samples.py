"""What a reward from outside is given, and what counts as its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

from transformers import PreTrainedTokenizerBase

from gipo_mc.data.encode import Encoder
from gipo_mc.errors import DataError
from gipo_mc.types import Prompt, Rollout, Sample


def samples_of(
    prompts: Sequence[Prompt], rollout: Rollout, tokenizer: PreTrainedTokenizerBase, rows: Sequence[int] | None = None
) -> list[Sample]:
    """The samples of a rollout, or of some of its rows, in order. prompts: those of the rollout."""
    sequences = rollout.sequences
    chosen = range(len(prompts)) if rows is None else rows
    spans = zip(sequences.prompt_length_B.tolist(), sequences.response_length_B.tolist(), strict=True)
    bounds = [(start, start + length) for start, length in spans]
    ids = [tuple(sequences.tokens_BL[row, slice(*bounds[row])].tolist()) for row in chosen]
    texts, cut = Encoder(tokenizer).texts(ids), rollout.truncated_B.tolist()
    return [
        Sample(
            prompt=prompts[row].text,
            response=text,
            domain=rollout.domain_B[row],
            messages=prompts[row].messages,
            columns=prompts[row].columns,
            response_ids=own,
            truncated=cut[row],
            row=prompts[row].row,
            index=prompts[row].index,
        )
        for row, own, text in zip(chosen, ids, texts, strict=True)
    ]


def may_skip(error: DataError) -> DataError:
    """The same failure, with the option that goes on where there is one now and then."""
    return DataError(
        f"{sentence(error)} With reward.on_error=skip such samples are left out and the run goes on, as long as they "
        "are few (reward.max_skipped)."
    )


def sentence(error: DataError) -> str:
    """Its message, with an end: that of a user's exception may have none, and others follow it."""
    said = str(error)
    return said if said.endswith((".", "!", "?")) else f"{said}."


def number(value: object, who: str, row: int) -> float:
    """A reward as it was answered, as a float: any number, NaN for none. Text is none, even if it spells one.

    Raises DataError. who: whose answer it is, the subject of a sentence. row: place among the responses.
    """
    try:
        if isinstance(value, str | bytes | None):
            raise TypeError
        return float(value)  # type: ignore[arg-type]  # or the error below
    except Exception as error:  # what an object of the user's raises may be anything
        raise DataError(
            f"{who} returned {value!r:.100} for response {row}: a number is expected, NaN where there is none."
        ) from error


def listed(answer: object) -> object:
    """An answer for many responses as a list, of whatever kind its numbers stand in a row: an array, a generator; as it
    is where they do not. A set has no order, and of a mapping the keys would be taken for rewards.

    Raises what the answer's own code raises.
    """
    if isinstance(answer, str | bytes | Mapping | Set):
        return answer
    try:
        numbers_of = iter(answer)  # type: ignore[call-overload]  # or the error below
    except TypeError:
        return answer
    return list(numbers_of)


def numbers(
    answer: object, count: int, who: str, *, skip: bool, first_row: int = 0
) -> tuple[list[float], DataError | None]:
    """(`count` rewards, the first thing that was wrong with them or None). Without `skip` that is raised.

    skip: a response whose reward is no number gets NaN; all of them do where there are more or fewer than `count`.
    first_row: of the answer, in the batch; for errors.
    """
    wrong: DataError | None = None
    found = listed(answer)
    if not isinstance(found, list) or len(found) != count:
        what = f"{len(found)} rewards" if isinstance(found, list) else f"{answer!r:.100}"
        wrong = DataError(f"{who} returned {what} for {count} responses: a list of a number for each is expected.")
        if not skip:
            raise wrong
        return [math.nan] * count, wrong
    rewards = []
    for row, value in enumerate(found, first_row):
        try:
            rewards.append(number(value, who, row))
        except DataError as error:
            if not skip:
                raise
            wrong = wrong or error
            rewards.append(math.nan)
    return rewards, wrong
