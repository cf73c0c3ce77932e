"""What a caller gives as prompts and responses -> what the package works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig
from gipo_mc.data.chat import Renderer
from gipo_mc.data.encode import Encoder
from gipo_mc.data.fields import LeftOut
from gipo_mc.data.formats import Example
from gipo_mc.data.templates import Refused
from gipo_mc.errors import DataError
from gipo_mc.types import Message, Prompt

#: A text as the model reads it (with chat=True: a user's message), or a dialogue: {"role", "content"} for each turn.
PromptLike = str | Sequence[Mapping[str, str]]


def as_prompts(given: Sequence[PromptLike], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Prompt]:
    """Prompts, rendered and tokenized as rows of a data file are. Raises DataError for one that cannot be used."""
    if isinstance(given, str):
        raise DataError("prompts is one text: give a list of them.")
    renderer, prompts = Renderer(Encoder(tokenizer), data), []
    for place, one in enumerate(given):
        try:
            rendered = renderer.render_prompt(one) if isinstance(one, str) else renderer.render(_dialogue(one, place))
        except LeftOut as reason:
            why = f" ({reason.reason})" if isinstance(reason, Refused) else ""
            raise DataError(f"Prompt {place}, {one!r:.80}, is one of the {reason}{why}: change it.") from reason
        ids = renderer.encode_prompts([rendered.prompt])[0]
        if not ids:
            raise DataError(f"Prompt {place} is empty for this tokenizer: a response has to begin behind something.")
        prompts.append(Prompt(place, tuple(ids), "", rendered.text, rendered.messages, f"prompt {place}"))
    return prompts


def messages_of(one: PromptLike, place: int) -> tuple[Message, ...]:
    """The turns of a dialogue; a text is the user's message. Raises DataError."""
    if isinstance(one, str):
        return (Message("user", one),)
    prompt = _dialogue(one, place).prompt
    assert not isinstance(prompt, str)
    return prompt


def _dialogue(turns: Sequence[Mapping[str, str]], place: int) -> Example:
    messages = []
    for turn in turns:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise DataError(
                f"Prompt {place} has the turn {turn!r:.80}: each is {{'role': 'system', 'user' or 'assistant', "
                "'content': text}."
            )
        messages.append(Message(role, content))  # type: ignore[arg-type]  # one of the three
    return Example(tuple(messages), None, None, "")


def response_ids(given: Sequence[str] | Sequence[Sequence[int]], encoder: Encoder) -> list[list[int]]:
    """Token ids: of texts as they continue a prompt, with EOS at the end; ids as they are."""
    texts = [one for one in given if isinstance(one, str)]
    if len(texts) == len(given):
        return encoder.responses(texts)
    if texts or isinstance(given, str):
        raise DataError("responses are texts, or lists of token ids: give all of one kind.")
    return [list(one) for one in given]  # type: ignore[arg-type]  # ids
