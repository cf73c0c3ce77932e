"""Rollouts as a reward model reads them: in its own tokens, by its own chat template, ended as in its training.

What it reads (docs/data.md has the table):
- the policy's token ids as they are, where its tokenizer gives them the same meaning and its template is the same;
- else, where its data are dialogues for it (data.reward_chat_template), the prompt's messages and the response as the
  assistant's turn, rendered by its own template;
- else plain text: the prompt as the policy read it, or turns as HH-RLHF writes them where that was a template's.

How a response ends: one that ended, by EOS or by a stop string, ends with the reward model's EOS (behind the template's
end of turn), as the responses of its training do. The stop string, which those do not have, is taken away. A response
that was cut at rollout.max_new_tokens has neither EOS nor end of turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig
from gipo_mc.data.chat import as_messages, plain
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.encode import Encoder
from gipo_mc.data.templates import ChatTemplate, Refused
from gipo_mc.data.tokenizer import same_tokens
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.types import Message, Prompt, Rollout, Sequences


class RewardReader:
    """(prompts, rollout) -> the sequences that a reward model scores.

    own, policy: the tokenizers of reward model and policy. data.chat_template: are the policy's data rendered with its
    template? stop: rollout.stop. how: what the model reads, in words. Raises ConfigError where its template is asked
    for and missing or broken.
    """

    def __init__(
        self,
        own: PreTrainedTokenizerBase,
        policy: PreTrainedTokenizerBase,
        data: DataConfig,
        stop: Sequence[str] = (),
    ) -> None:
        self._policy = policy
        self._own = own
        self._stop = tuple(text for text in stop if text)
        self._separator = data.response_separator or " "
        self._templated_policy = data.chat_template
        self._allow_special = data.special_tokens_in_text == "allow"
        choice = data.reward_chat_template
        if choice == "on" and not own.chat_template:
            raise ConfigError(
                f"data.reward_chat_template=on, but the reward model's tokenizer {own.name_or_path!r} has no chat "
                "template: set it to auto."
            )
        templated = bool(own.chat_template) and (choice == "on" or (choice == "auto" and data.chat_template))
        encoder, policy_encoder = Encoder(own), Encoder(policy)
        self._policy_encoder = policy_encoder
        same = same_tokens(own, policy) and encoder.bos == policy_encoder.bos
        if templated:
            same = same and data.chat_template and own.chat_template == policy.chat_template
        elif own.chat_template or choice == "off":
            same = same and not data.chat_template
        self._encoder = encoder if not same else policy_encoder
        self.translates = not same
        self._template = ChatTemplate(own, data.template_date) if templated and not same else None
        self._special_ids = self._encoder.special_ids if same else frozenset()

    @property
    def how(self) -> str:
        if not self.translates:
            return "the policy's token ids"
        if self._template:
            return "the messages, in its own chat template"
        kind = "plain turns" if self._templated_policy else "the policy's text"
        return f"{kind}, in its own tokens" + (" (it has a chat template)" if self._own.chat_template else "")

    def __call__(self, prompts: Sequence[Prompt], rollout: Rollout) -> Sequences:
        """Sequences of the rollout's B responses, in its order; the rollout's own where nothing is to be changed.

        prompts: those of the rollout. Raises DataError where the template refuses one.
        """
        rows = _rows(rollout.sequences)
        ended = [not cut for cut in rollout.truncated_B.tolist()]
        device = rollout.sequences.tokens_BL.device
        if not self.translates:
            eos = self._policy.eos_token_id
            if all(not end or response[-1:] == [eos] for (_, response), end in zip(rows, ended, strict=True)):
                return rollout.sequences
            prompt_ids = [prompt for prompt, _ in rows]
            response_ids = [
                self._closed(response) if end else response for (_, response), end in zip(rows, ended, strict=True)
            ]
        else:
            texts = self._policy_encoder.texts([response for _, response in rows])
            texts = [self._without_stop(text) if end else text for text, end in zip(texts, ended, strict=True)]
            prompt_ids, response_ids = self._translated(prompts, texts, ended)
        return to_sequences(prompt_ids, response_ids, self._own.pad_token_id, device)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises DataError for a prompt that the template refuses: better before the first iteration than in one."""
        if self._template:
            for prompt in prompts:
                self._rendered(self._template, prompt, "", True)

    def _translated(
        self, prompts: Sequence[Prompt], texts: Sequence[str], ended: Sequence[bool]
    ) -> tuple[list[list[int]], list[list[int]]]:
        if self._template:
            pairs = [
                self._rendered(self._template, prompt, text, end)
                for prompt, text, end in zip(prompts, texts, ended, strict=True)
            ]
            prompt_texts, texts = [prompt for prompt, _ in pairs], [response for _, response in pairs]
        elif self._templated_policy:
            prompt_texts = [plain(_messages_of(prompt)) for prompt in prompts]
            texts = [self._separator + text.strip() for text in texts]
        else:
            prompt_texts = [prompt.text for prompt in prompts]
        special = self._template is not None
        closed = self._encoder.responses(texts, special)
        responses = [ids if end else ids[:-1] for ids, end in zip(closed, ended, strict=True)]
        return self._encoder.prompts(prompt_texts, special), responses

    def _rendered(self, template: ChatTemplate, prompt: Prompt, text: str, ended: bool) -> tuple[str, str]:
        """Prompt and response as the template writes them; what they spell is text, unless special tokens are asked
        for."""
        as_text = (lambda text: text) if self._allow_special else self._encoder.as_text
        messages = [Message(m.role, as_text(m.content)) for m in _messages_of(prompt)]
        try:
            before = template.prompt(messages)
            answer = template.answer(messages, before, as_text(text.strip()))
        except Refused as error:
            raise DataError(
                f"The chat template of the reward model's tokenizer {self._own.name_or_path or ''} refuses the "
                f"dialogue {prompt.text[:200]!r}: {error.reason}. Leave such prompts out, or set "
                "data.reward_chat_template=off."
            ) from error
        return before, answer.whole if ended else answer.lead + answer.text

    def _closed(self, ids: list[int]) -> list[int]:
        """A response in the policy's own ids that ended otherwise than by EOS: without stop string, with EOS."""
        eos = self._policy.eos_token_id
        if ids[-1:] == [eos]:
            return ids
        if ids and ids[-1] in self._special_ids:
            return [*ids[:-1], eos]  # another token that ends a response
        text = self._policy.decode(ids)
        kept = self._without_stop(text)
        count = len(ids)
        while kept != text and count and not kept.startswith(self._policy.decode(ids[:count])):
            count -= 1
        rest = kept[len(self._policy.decode(ids[:count])) :] if kept != text else ""
        return [*ids[:count], *(self._encoder.responses([rest])[0][:-1] if rest else []), eos]

    def _without_stop(self, text: str) -> str:
        """The text before the stop string that ended it. Generation stops at the first one."""
        return text[: min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)]


def _messages_of(prompt: Prompt) -> tuple[Message, ...]:
    return prompt.messages or as_messages(prompt.text)


def _rows(sequences: Sequences) -> list[tuple[list[int], list[int]]]:
    """Prompt ids and response ids of each row, without padding."""
    rows = zip(
        sequences.tokens_BL.tolist(),
        sequences.prompt_length_B.tolist(),
        sequences.response_length_B.tolist(),
        strict=True,
    )
    return [(ids[:start], ids[start : start + n]) for ids, start, n in rows]
