"""Text -> token ids, in batches, for prompts and for the responses that follow them.

Text of the data is never read as special tokens: a "</s>" somebody typed is four plain pieces. Only a chat template's
own rendering may name special tokens (`special=True`). What a template puts into it from the data is left out by the
caller, or is cut with `as_text`, so that it is read as characters there too.

A special token is one that the tokenizer declares as special, named (BOS, EOS, ...) or not (a template's headers), and
one that its chat template writes around turns, whatever it is declared as. Other added tokens that are declared as
ordinary text, such as Qwen3's "<think>", are words like others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from gipo_mc.data.special_tokens import turn_marks
from gipo_mc.errors import DataError
from gipo_mc.parallel.limits import limited

#: What stands before a response while it is tokenized, where the tokenizer would prepend a space to a text's start.
_ANCHOR = "\n"
#: Where a text is cut into parts that are tokenized one by one: a code point that Unicode reserves for such uses.
CUT = "\ufdd0"


class Encoder:
    """Prompts and responses in the form in which the policy meets them: prompt ids, then response ids, then EOS."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        self._marks = turn_marks(tokenizer)
        self._special = _special_tokens(tokenizer, self._marks)
        self._is_special = re.compile("|".join(re.escape(token) for token in self._special) or r"(?!)")
        #: Ids that the tokenizer puts in front of a text: BOS, or nothing.
        self.bos = self._leading_bos()
        # SentencePiece tokenizers such as Llama 2's put a space before every text. In the middle of a sequence that
        # space is wrong: " yes" would become two spaces, a token the model never saw there.
        self._anchor = self._find_anchor()

    def prompts(self, texts: Sequence[str], special: bool = False, *, begin: bool | None = None) -> list[list[int]]:
        """Ids of rendered prompts.

        begin: put BOS in front, where the tokenizer does so and the text has none; None: unless special (a template
        brings its own).
        """
        rows = self._cut_ids(texts, special)
        if begin or (begin is None and not special):
            return [row if special and self.bos == tuple(row[:1]) else [*self.bos, *row] for row in rows]
        return rows

    def responses(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids of responses as the continuation of a prompt, ending with EOS exactly once."""
        rows = self._cut_ids(texts, special, continued=True)
        return [row[: row.index(self.eos_id) if self.eos_id in row else None] + [self.eos_id] for row in rows]

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of responses, without special tokens: what `responses` made of them, letter for letter.

        Decoded alone, a response loses its first space with the tokenizers that put one in front of every text; and a
        tokenizer may ask for " !=" to be written as "!=".
        """
        # The lead is decoded with the rows, so that whatever becomes of it is cut off. transformers decodes an empty
        # batch as one empty text.
        lead, *found = self.tokenizer.batch_decode(
            [self.lead, *([*self.lead, *row] for row in rows)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return [text[len(lead) :] for text in found]

    @property
    def lead(self) -> tuple[int, ...]:
        """Ids, of one line break, behind which ids are decoded as the continuation of a text; empty where that is the
        same as alone."""
        return tuple(self._anchor or ())

    def contains_special(self, text: str) -> str | None:
        """A special token that a text would be read as if special tokens were looked for, or None."""
        found = self._is_special.search(text)
        return found[0] if found else None

    def as_text(self, text: str) -> str:
        """The text with `CUT` inside of every special token, so that none is found in it even where they are looked
        for. `prompts` and `responses` take the cuts out again."""
        start = 0
        while found := self._is_special.search(text, start):
            start = found.start() + 1
            text = f"{text[:start]}{CUT}{text[start:]}"
        return text

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        vocabulary = self.tokenizer.get_vocab()
        return frozenset(vocabulary[token] for token in self._special if token in vocabulary)

    def _cut_ids(self, texts: Sequence[str], special: bool, *, continued: bool = False) -> list[list[int]]:
        """Ids of whole texts (or of continuations), cut ones part by part."""
        if self._marks and not special:
            texts = [self.as_text(text) for text in texts]  # the tokenizer splits only what it declares as special
        take = self._continuations if continued else self._ids
        rows = take([text.partition(CUT)[0] for text in texts], special)
        for row, text in zip(rows, texts, strict=True):
            for part in text.split(CUT)[1:]:
                row += self._continuations([part], special)[0]
        return rows

    def _continuations(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Ids of texts that stand behind others."""
        if self._anchor is None:
            return self._ids(texts, special)
        rows = self._ids([_ANCHOR + text for text in texts], special)
        n = len(self._anchor)
        for i, row in enumerate(rows):
            # The anchor merged with the text (rare): then the text is tokenized on its own.
            rows[i] = row[n:] if row[:n] == self._anchor else self._ids([texts[i]], special)[0]
        return rows

    def _ids(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        if not texts:
            return []
        try:
            with limited(f"The tokenizer {self.tokenizer.name_or_path or ''}"):
                batch = self.tokenizer(
                    list(texts),
                    add_special_tokens=False,
                    split_special_tokens=not special,
                    return_attention_mask=False,
                    verbose=False,
                )
        except Exception as error:
            # The tokenizers library raises bare Exceptions: only its vocabulary errors are the data's fault.
            if "UNK" not in str(error):
                raise
            raise DataError(
                f"The tokenizer {self.tokenizer.name_or_path or ''} has no unknown token, and the data has words that "
                f"its vocabulary lacks, for example in {texts[0][:80]!r}: use the tokenizer made for this data."
            ) from error
        return batch["input_ids"]

    def _leading_bos(self) -> tuple[int, ...]:
        ids = self.tokenizer("", add_special_tokens=True)["input_ids"]
        return (ids[0],) if ids and ids[0] == self.tokenizer.bos_token_id else ()

    def _find_anchor(self) -> list[int] | None:
        """Ids of the anchor, where a text behind it is tokenized otherwise than a text that starts there."""
        anchor = self._ids([_ANCHOR])[0]
        for probe in (" ", "x"):
            try:
                alone, behind = self._ids([probe, _ANCHOR + probe])
            except DataError:  # a closed vocabulary without this word, such as the built-in task's
                continue
            if behind[: len(anchor)] == anchor and behind[len(anchor) :] != alone:
                return anchor
        return None


@lru_cache(maxsize=8)
def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder of a tokenizer, made once. Making one tries the tokenizer on some texts, which takes longer than
    decoding the responses of a small rollout."""
    return Encoder(tokenizer)


def _special_tokens(tokenizer: PreTrainedTokenizerBase, marks: Sequence[str]) -> tuple[str, ...]:
    """Texts of all special tokens, the longest first. One of a single character could not be cut, and is a word."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    names = {token for token in (*tokenizer.all_special_tokens, *added, *marks) if len(token) > 1}
    return tuple(sorted(names, key=lambda token: (-len(token), token)))
