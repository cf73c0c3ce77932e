"""A tokenizer's chat template: prompts, answers, and what is odd about it.

The rule. A prompt is the dialogue rendered with the template's generation prompt. An answer is what the template writes
behind that prompt when the answer is the dialogue's last turn: the text and its end of turn. Where the prompt is no
prefix of that rendering, because the template begins the answer for the model ("<think>") or writes history otherwise,
the answer is its text with the end of turn that the template gives to an answer in its place.

A date is that of data.template_date: with today's, the same rows would be other tokens tomorrow.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from gipo_mc.data.fields import LeftOut
from gipo_mc.errors import ConfigError
from gipo_mc.parallel.limits import limited
from gipo_mc.types import Message

_CLOCK = "strftime_now"
#: Overrides transformers' function of that name. On the first line, so that the template's own numbers stay.
_PINNED_CLOCK = (
    "{%- macro strftime_now(format) -%}"
    "{{ pinned_dates[format] if format in pinned_dates else raise_exception('a date format that is no literal') }}"
    "{%- endmacro -%}"
)
#: An answer that no data holds, to see what stands around one.
_PROBE = "answer\ufdd1"
REFUSED = "dialogues that the chat template refuses"


class Refused(LeftOut):
    """The template does not take this dialogue. reason: its own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(REFUSED)
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """What follows a prompt: `lead`, `text`, and `closing`, the end of turn.

    begun: what the prompt has already said for the model, and this answer does not hold. altered: the template writes
    another text than the one it was given.
    """

    lead: str
    text: str
    closing: str
    begun: str = ""
    altered: bool = False

    @property
    def whole(self) -> str:
        return self.lead + self.text + self.closing


class ChatTemplate:
    """The chat template of a tokenizer that has one. Raises ConfigError where it is broken."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pinned: str) -> None:
        self._tokenizer = tokenizer
        self._name = tokenizer.name_or_path or "the tokenizer"
        try:
            self.text: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise ConfigError(f"The tokenizer {self._name} has no chat template to use by itself: {error}") from error
        self.has_date = _CLOCK in self.text
        day = date.fromisoformat(pinned)
        literals = [text for _, text in re.findall(r"""(["'])([^"'\n]*%[^"'\n]*)\1""", self.text)]
        self._dates = {text: day.strftime(text) for text in literals} if self.has_date else {}
        self._check()

    def prompt(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """The dialogue up to where an answer begins. Raises Refused."""
        return self._render(messages, generation)

    def answer(self, messages: Sequence[Message], prompt: str, text: str) -> Answer:
        """`text` as the answer to `messages`, of which `prompt` is the rendering. Raises Refused."""
        whole = self._answered(messages, text)
        behind = whole[len(prompt) :] if whole.startswith(prompt) else None
        if behind is not None and text in behind:
            lead, text, closing = behind.rpartition(text) if text else ("", "", behind)
            return Answer(lead, text, closing)
        lead, found, closing = self._answered(messages, _PROBE).rpartition(_PROBE)
        if not found:
            raise Refused("it leaves the answer out")
        if behind is not None:
            return Answer("", behind.removesuffix(closing), closing, altered=True)
        begun = prompt[len(lead) :] if prompt.startswith(lead) else ""
        recorded = next((start for start in (begun, begun.strip()) if start and text.startswith(start)), None)
        if recorded:  # the answer holds what the template begins
            return Answer("", text.removeprefix(recorded), closing)
        return Answer("", text, closing, begun)

    @cached_property
    def has_generation_prompt(self) -> bool:
        """Does the template write the header of the answer to come?"""
        try:
            dialogue = [Message("user", "question")]
            return self.prompt(dialogue) != self.prompt(dialogue, generation=False)
        except Refused:
            return True  # not of such a dialogue, at least

    def _answered(self, messages: Sequence[Message], text: str) -> str:
        return self._render([*messages, Message("assistant", text)], False)

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        try:
            return self._apply(messages, generation)
        except TemplateSyntaxError:
            raise  # `_check` has rendered it before: it cannot come up with a row
        except Exception as error:  # a template runs on the data, and anything may come out of its expressions
            raise Refused(self._explain(error)) from error

    def _apply(self, messages: Sequence[Message], generation: bool) -> str:
        with limited(f"The chat template of {self._name}"):  # it may loop for ever
            text = self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                chat_template=_PINNED_CLOCK + self.text if self.has_date else self.text,
                tokenize=False,
                add_generation_prompt=generation,
                **({"pinned_dates": self._dates} if self.has_date else {}),
            )
        assert isinstance(text, str)  # tokenize=False returns text
        return text

    def _check(self) -> None:
        """Does it render the simplest dialogue? It may refuse it in words; any other error is in the template."""
        try:
            for messages in ([Message("user", "question")], [Message("user", "question"), Message("assistant", "a")]):
                self._apply(messages, messages[-1].role == "user")
        except Exception as error:  # as in `_render`
            if type(error) is TemplateError:
                return  # raise_exception, the template's way to refuse
            raise ConfigError(
                f"The chat template of the tokenizer {self._name} is broken: {self._explain(error)}. Correct it in "
                "chat_template.jinja (or tokenizer_config.json), or set data.chat_template=false."
            ) from error

    def _explain(self, error: Exception) -> str:
        """The error's own words, with the template's line where it has one."""
        if type(error) is TemplateError:
            return str(error)
        line = getattr(error, "lineno", None)
        if line is None:
            frames = traceback.extract_tb(error.__traceback__)
            line = next((frame.lineno for frame in reversed(frames) if frame.filename == "<template>"), None)
        words = f"{type(error).__name__}: {error}"
        lines = self.text.split("\n")
        if not line or line > len(lines):
            return words
        return f"{words}, at its line {line}: {lines[line - 1].strip()[:120]!r}"
