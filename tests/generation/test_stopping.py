"""Stop strings against a byte-level tokenizer, where a string, and even a character, spans several tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gipo_mc.generation.stopping import stop_on_strings


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core)
    wrapped.add_special_tokens({"eos_token": "<|end|>"})
    return wrapped


def first_stop(tokenizer: PreTrainedTokenizerFast, text: str, strings: list[str]) -> str | None:
    """The text generated until the condition first holds, token by token."""
    condition = stop_on_strings(tokenizer, strings)
    assert condition is not None
    ids = tokenizer.encode(text, add_special_tokens=False)
    for length in range(1, len(ids) + 1):
        if condition(ids[:length]):
            return tokenizer.decode(ids[:length])
    return None


def test_no_strings_no_condition(tokenizer: PreTrainedTokenizerFast) -> None:
    assert stop_on_strings(tokenizer, []) is None
    assert stop_on_strings(tokenizer, [""]) is None


def test_stops_when_the_string_is_complete(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "I think so.\n\nHuman: and then?"
    assert first_stop(tokenizer, text, ["\n\nHuman:"]) == "I think so.\n\nHuman:"
    assert first_stop(tokenizer, text, ["never", "so"]) == "I think so"
    assert first_stop(tokenizer, text, ["\n\nAssistant:"]) is None


def test_found_far_into_a_long_response_of_wide_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "日本語" * 50 + "終わり" + "日本語"
    assert first_stop(tokenizer, text, ["終わり"]) == "日本語" * 50 + "終わり"


def test_text_of_a_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert first_stop(tokenizer, "yes<|end|>no", ["<|end|>"]) == "yes<|end|>"


def test_a_string_with_a_space_at_the_very_start_of_a_response() -> None:
    """Llama 2's tokenizer takes the first space from a decoded text: alone, the id of " ab" is "ab"."""
    core = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "b": 2, "▁a": 3, "\n": 4}, merges=[("▁", "a")]))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    lead = tokenizer.encode("\n", add_special_tokens=False)
    condition = stop_on_strings(tokenizer, [" ab"], lead)
    assert condition is not None and condition([3, 2]) and not condition([3]) and not condition([1, 2])
    behind_a_break = stop_on_strings(tokenizer, ["\n a"], lead)
    assert behind_a_break is not None and not behind_a_break([3]), "the line break is not the response's"
    assert behind_a_break([4, 3])
