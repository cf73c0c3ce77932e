"""Examples -> texts: dialogues as plain turns, or with the tokenizer's own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from gipo_mc.config import DataConfig
from gipo_mc.data.encode import Encoder
from gipo_mc.data.formats import Example, LeftOut, Message
from gipo_mc.errors import ConfigError

_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True)
class Rendered:
    """The prompt's text up to where the response begins, and the texts of the responses (0, 1, or chosen and rejected)
    that follow it, separator included and EOS not."""

    prompt: str
    responses: tuple[str, ...]
    domain: str


def plain(messages: tuple[Message, ...]) -> str:
    """Turns as HH-RLHF writes them, up to and including the next "\\n\\nAssistant:"."""
    turns = (f"\n\n{_NAMES[m.role]}: {m.content}" if m.content else f"\n\n{_NAMES[m.role]}:" for m in messages)
    return "".join(turns) + "\n\nAssistant:"


class Renderer:
    """Renders examples as the configuration says. Raises LeftOut for one that has nothing to learn from.

    special: may the rendered text name special tokens (those of a chat template)?
    """

    def __init__(self, encoder: Encoder, data: DataConfig) -> None:
        self.special = data.chat_template
        self._encoder = encoder
        self._separator = data.response_separator or " "
        if self.special and not encoder.tokenizer.chat_template:
            raise ConfigError(
                f"data.chat_template=true, but the tokenizer {encoder.tokenizer.name_or_path!r} has no chat template: "
                "set data.chat_template=false, or use an instruction-tuned model's tokenizer."
            )

    def render(self, example: Example) -> Rendered:
        """The texts of an example. Surrounding white space of a response is not part of it."""
        responses = tuple(text.strip() for text in (example.chosen, example.rejected) if text is not None)
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
        if self.special:
            return self._templated(example, responses)
        prompt = example.prompt if isinstance(example.prompt, str) else plain(example.prompt)
        return Rendered(prompt, tuple(self._separator + text for text in responses), example.domain)

    def _templated(self, example: Example, responses: tuple[str, ...]) -> Rendered:
        """With the chat template; what it writes behind a response (its end-of-turn token) belongs to the response."""
        messages = example.prompt
        if isinstance(messages, str):
            messages = (Message("user", messages.strip()),)
        for text in (*(message.content for message in messages), *responses):
            if token := self._encoder.contains_special(text):
                raise LeftOut(f"messages that hold the special token {token}")
        turns: list[Any] = [{"role": message.role, "content": message.content} for message in messages]
        try:
            prompt = self._apply(turns, add_generation_prompt=True)
            endings = []
            for response in responses:
                whole = self._apply([*turns, {"role": "assistant", "content": response}])
                # A template that renders history otherwise than the present (drops thoughts, say) has no such prefix.
                endings.append(whole[len(prompt) :] if whole.startswith(prompt) else response)
        except TemplateError:
            raise LeftOut("dialogues that the chat template refuses") from None
        return Rendered(prompt, tuple(endings), example.domain)

    def _apply(self, turns: list[Any], add_generation_prompt: bool = False) -> str:
        text = self._encoder.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        assert isinstance(text, str)  # tokenize=False returns text
        return text
