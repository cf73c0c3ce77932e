"""Examples -> texts: dialogues as plain turns, or with the tokenizer's own chat template.

docs/data.md states what becomes of system texts, special tokens in the text, and text that was rendered before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gipo_mc.config import DataConfig
from gipo_mc.data.encode import CUT, Encoder
from gipo_mc.data.fields import LeftOut
from gipo_mc.data.formats import Example
from gipo_mc.data.sets import Remark
from gipo_mc.data.templates import ChatTemplate
from gipo_mc.errors import ConfigError
from gipo_mc.types import Message

_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
#: What the chat templates in use write around turns. The tokenizer's own special tokens are looked for besides.
_HEADERS = re.compile(
    r"<\|(im_start|im_end|start_header_id|eot_id|begin_of_text|user|assistant|system|end|START_OF_TURN_TOKEN|turn)\|>"
    r"|\[/?INST\]|<(start|end)_of_turn>|<｜(User|Assistant)｜>|### (Instruction|Response):\n"
)
#: A shorter prompt, such as "Why?", may well begin an answer to it.
_REPEATED = 8

_REPEATS = Remark(
    "responses that begin with their whole prompt",
    "the prompt would stand there twice, if it is no habit of the writer: cut it from the response",
    share=0.05,
)
_NO_SYSTEM = Remark(
    "system texts that a plain prompt has no place for",
    "they are not read. Write them into the prompt, or set data.chat_template=true",
)
_DROPPED_SYSTEM = Remark(
    "system messages that the chat template leaves out", "the model does not read them: write them into the user's turn"
)
_TURNS_IN_PROMPT = Remark(
    "prompts that end with 'Assistant:' and become the user's message as they stand",
    "turns inside of a turn. Give messages, or set data.chat_template=false",
)
_NO_HEADER = Remark(
    "prompts without the header of the answer, because the chat template has no generation prompt",
    "the policy must write the header by itself. Add it to the template behind {% if add_generation_prompt %}",
)
_ALTERED = Remark(
    "responses that the chat template writes otherwise",
    "it changes or drops a part of them, thoughts for example, and what it writes is learnt",
)
_BEHIND_EOS = Remark(
    "responses that go on behind an EOS token", "a response ends there, so the rest is not used: split such rows"
)


@dataclass(frozen=True)
class Rendered:
    """The prompt's text up to where the response begins, and the texts of the responses (0, 1, or chosen and rejected)
    that follow it, separator included and EOS not. Both may hold the encoder's `CUT`.

    messages: what was rendered; empty for a text as it stands. row, conversation, columns: the example's.
    """

    prompt: str
    responses: tuple[str, ...]
    domain: str
    messages: tuple[Message, ...] = ()
    row: str = ""
    conversation: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt for a reader."""
        return self.prompt.replace(CUT, "")


def plain(messages: tuple[Message, ...]) -> str:
    """Turns as HH-RLHF writes them, up to and including the next "\\n\\nAssistant:"."""
    turns = (f"\n\n{_NAMES[m.role]}: {m.content}" if m.content else f"\n\n{_NAMES[m.role]}:" for m in messages)
    return "".join(turns) + "\n\nAssistant:"


class Renderer:
    """Renders examples as the configuration says. Raises LeftOut for one that has nothing to learn from.

    template: the chat template, or None: plain turns. special: may the rendered text name special tokens? remarks: what
    was odd about the examples so far.
    """

    def __init__(self, encoder: Encoder, data: DataConfig) -> None:
        self.template: ChatTemplate | None = None
        self.remarks: Counter[Remark] = Counter()
        if data.chat_template:
            if not encoder.tokenizer.chat_template:
                raise ConfigError(
                    f"data.chat_template=true, but the tokenizer {encoder.tokenizer.name_or_path!r} has no chat "
                    "template: set data.chat_template=false, or use an instruction-tuned model's tokenizer."
                )
            self.template = ChatTemplate(encoder.tokenizer, data.template_date)
        self._special_in_text = data.special_tokens_in_text
        if self._special_in_text == "auto":
            self._special_in_text = "refuse" if self.template else "text"
        self.special = self.template is not None or self._special_in_text == "allow"
        self._encoder = encoder
        self._exact = data.join == "exact"
        self._separator = data.response_separator or " "

    def encode_prompts(self, texts: list[str]) -> list[list[int]]:
        """Ids of rendered prompts. A template brings its own BOS."""
        return self._encoder.prompts(texts, self.special, begin=self.template is None)

    def encode_responses(self, texts: list[str]) -> list[list[int]]:
        """Ids of rendered responses, with EOS at the end."""
        return self._encoder.responses(texts, self.special)

    def render(self, example: Example) -> Rendered:
        """The texts of an example. Surrounding white space of a response is not part of it, unless data.join=exact."""
        given = tuple(text for text in (example.chosen, example.rejected) if text is not None)
        responses = tuple(text.strip() for text in given)
        if isinstance(example.prompt, str):
            empty = not example.prompt.strip()
        else:
            empty = not any(message.content for message in example.prompt)
        if empty:
            raise LeftOut("empty prompts")
        if not all(responses):
            raise LeftOut("empty responses")
        if len(responses) == 2 and responses[0] == responses[1]:
            raise LeftOut("pairs of equal responses")
        return self._rendered(example, given, responses)

    def render_prompt(self, text: str) -> Rendered:
        """A prompt that somebody typed, which may be empty."""
        return self._rendered(Example(text, None, None, ""), (), ())

    def _rendered(self, example: Example, given: tuple[str, ...], responses: tuple[str, ...]) -> Rendered:
        """given: the responses as they stand; responses: stripped."""
        self._look_at(example, responses)
        if self.template:
            return self._templated(self.template, example, responses)
        if not isinstance(example.prompt, str):
            texts = tuple(self._separator + text for text in responses)
            return Rendered(plain(example.prompt), texts, example.domain, example.prompt)
        if example.system:
            self.remarks[_NO_SYSTEM] += 1
        texts = given if self._exact else tuple(self._separator + text for text in responses)
        return Rendered(example.prompt, texts, example.domain)

    def _templated(self, template: ChatTemplate, example: Example, responses: tuple[str, ...]) -> Rendered:
        """With the chat template; what it writes behind a response (its end-of-turn token) belongs to the response."""
        messages = as_messages(example.prompt, example.system)
        if self._special_in_text == "text":
            messages = tuple(Message(m.role, self._encoder.as_text(m.content)) for m in messages)
            responses = tuple(map(self._encoder.as_text, responses))
        prompt = template.prompt(messages)
        answers = [template.answer(messages, prompt, response) for response in responses]
        if isinstance(example.prompt, str) and example.prompt.rstrip().endswith("\n\nAssistant:"):
            self.remarks[_TURNS_IN_PROMPT] += 1
        if any(m.content not in prompt for m in messages if m.role == "system"):
            self.remarks[_DROPPED_SYSTEM] += 1
        if not template.has_generation_prompt:
            self.remarks[_NO_HEADER] += 1
        if template.has_date:
            self.remarks[Remark("prompts with the pinned date (data.template_date)")] += 1
        if begun := next((answer.begun for answer in answers if answer.begun), None):
            self.remarks[_begun(begun)] += 1
        if any(answer.altered for answer in answers):
            self.remarks[_ALTERED] += 1
        plain_messages = tuple(Message(m.role, m.content.replace(CUT, "")) for m in messages)
        return Rendered(prompt, tuple(answer.whole for answer in answers), example.domain, plain_messages)

    def _look_at(self, example: Example, responses: tuple[str, ...]) -> None:
        """Note what the texts hold that text should not. Raises LeftOut where special tokens are refused."""
        messages = as_messages(example.prompt, example.system)
        texts = (*(message.content for message in messages), *responses)
        if self._special_in_text != "allow":
            token = next((token for text in texts if (token := self._encoder.contains_special(text))), None)
            if token and self._special_in_text == "refuse":
                raise LeftOut(f"{'messages' if self.template else 'texts'} that hold the special token {token}")
            header = next((found[0] for text in texts if (found := _HEADERS.search(text))), None)
            if token or header:
                self.remarks[_spelled(token, header)] += 1
        elif any(behind.strip() for text in responses for behind in text.split(self._encoder.tokenizer.eos_token)[1:]):
            self.remarks[_BEHIND_EOS] += 1
        starts = [messages[-1].content]
        if not isinstance(example.prompt, str):
            starts.append(plain(example.prompt).strip())
        if any(len(start) >= _REPEATED and text.startswith(start) for start in starts for text in responses):
            self.remarks[_REPEATS] += 1


def as_messages(prompt: str | tuple[Message, ...], system: str = "") -> tuple[Message, ...]:
    """A prompt that is a text, as the user's message."""
    if not isinstance(prompt, str):
        return prompt
    user = Message("user", prompt.strip())
    return (Message("system", system), user) if system else (user,)


def _spelled(token: str | None, header: str | None) -> Remark:
    if token:
        return Remark(
            f"rows whose text spells the special token {token}",
            "it is read as characters. If a chat template has rendered these rows before, give their messages with "
            "data.chat_template=true; or set data.special_tokens_in_text=allow, and data.join=exact",
        )
    return Remark(
        f"rows whose text holds {header!r}, as another model's chat template writes it",
        "it is read as plain text. Give the messages and set data.chat_template=true",
    )


def _begun(text: str) -> Remark:
    return Remark(
        f"answers behind {text!r}, which the chat template begins for the model",
        "the rows' answers do not go on from there. Give answers that do, or a template without it",
    )
