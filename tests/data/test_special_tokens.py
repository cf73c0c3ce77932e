"""Which tokens end a response and which one pads, and what a saved tokenizer says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gipo_mc.data.special_tokens import end_ids, end_of_turn, reward_padding, save_tokenizer
from gipo_mc.data.tokenizer import load_tokenizer
from tests.chat import BEGIN, END, RESERVED, SPECIAL, TEMPLATE, TURN, chat_tokenizer

#: An EOS behind the end of turn, as some templates write it at the end of a dialogue.
BOTH = TEMPLATE.replace("{% if add", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add")


@pytest.mark.parametrize(
    "template, expected",
    [
        (TEMPLATE, "<|turn|>"),
        (BOTH, "<|turn|>"),
        (TEMPLATE.replace("<|turn|>", "{{ eos_token }}"), "<|end|>"),
        (TEMPLATE.replace("<|turn|>", "</turn>"), None),  # text, not a special token
        ("{{ raise_exception('system first') }}", None),
        ("{% for tool in tools %}{% endfor %}" + TEMPLATE, None),  # TypeError: there are no tools
        ("{% for i in range(10**9) %}{% endfor %}", None),  # OverflowError of the sandbox
        ("{{ messages[7].content }}", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_the_first_special_token_behind_the_answer(
    template: str | None, expected: str | None
) -> None:
    assert end_of_turn(chat_tokenizer(template=template)) == expected


def test_every_id_that_ends_a_response_in_the_stated_order() -> None:
    assert end_ids(chat_tokenizer(), [7, END]) == (7, END, TURN)
    assert end_ids(chat_tokenizer(template=None)) == (END,)


def test_dialogues_of_a_template_end_with_its_end_of_turn(tmp_path: Path) -> None:
    chat_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).eos_token == "<|end|>"
    assert load_tokenizer(str(tmp_path), chat_template=True).eos_token == "<|turn|>"


@pytest.mark.parametrize(
    "special, named, ends, expected",
    [
        (SPECIAL, {"pad_token": "<|header|>"}, (END, TURN), "<|header|>"),  # the tokenizer's own
        (SPECIAL, {"pad_token": "<|end|>"}, (END, TURN), "<|reserved_0|>"),
        (["<|begin|>", "<|end|>", "<|odd|>"], {"pad_token": "<|end|>"}, (END,), "<|begin|>"),
        (["<|end|>", "<|odd|>"], {"pad_token": "<|end|>", "bos_token": None}, (0,), None),
        (["<|end|>"], dict.fromkeys(("bos_token", "unk_token", "pad_token"), "<|end|>"), (0,), None),  # GPT-2
    ],
)
def test_a_reward_is_padded_with_what_is_never_its_last_token(
    special: list[str], named: dict[str, Any], ends: tuple[int, ...], expected: str | None
) -> None:
    tokenizer = chat_tokenizer(special, template=None, **named)
    found = reward_padding(tokenizer, ends)
    assert found == (None if expected is None else special.index(expected))


def test_an_unknown_word_may_end_a_cut_response_so_it_pads_as_a_last_resort() -> None:
    words = ["<s>", "</s>", "<unk>", "yes"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    assert reward_padding(PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", **named), (1,)) == 0
    assert reward_padding(PreTrainedTokenizerFast(tokenizer_object=core, **named), (1,)) == 2


def test_a_saved_tokenizer_is_one_that_older_versions_know(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(pad_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|header|>"]})
    save_tokenizer(tokenizer, tmp_path, RESERVED)
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # 4.57 has no class TokenizersBackend, and takes a list of extra_special_tokens for a dictionary.
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in fields
    assert tokenizer.pad_token_id == END, "the one in use stays as it is"
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (BEGIN, END, RESERVED)
        assert {"<|turn|>", "<|header|>"} <= set(loaded.all_special_tokens)
        assert loaded("a<|turn|>b").input_ids == tokenizer("a<|turn|>b").input_ids
        assert loaded.chat_template == tokenizer.chat_template
    save_tokenizer(tokenizer, tmp_path / "none", None)
    assert AutoTokenizer.from_pretrained(tmp_path / "none").pad_token is None
