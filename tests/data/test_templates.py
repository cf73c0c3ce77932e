"""Chat templates: where an answer begins and ends, dates, and what is said about one that is broken."""

from __future__ import annotations

import pytest

from gipo_mc.data.templates import Answer, ChatTemplate, Refused
from gipo_mc.errors import ConfigError
from gipo_mc.types import Message
from tests.data.chat_tokenizers import HEADERS, headers_tokenizer

HI = (Message("user", "hi"),)
THINK = HEADERS.replace("assistant<|body|>{%", "assistant<|body|><think>\n{%")


def template(text: str, date: str = "2024-07-26") -> ChatTemplate:
    return ChatTemplate(headers_tokenizer(text), date)


def answer(text: str, response: str, messages: tuple[Message, ...] = HI) -> tuple[str, Answer]:
    chat = template(text)
    prompt = chat.prompt(messages)
    return prompt, chat.answer(messages, prompt, response)


def test_an_answer_is_what_stands_behind_the_prompt_end_of_turn_included() -> None:
    prompt, found = answer(HEADERS, "Bob")
    assert prompt == "<|begin|><|head|>user<|body|>hi<|over|><|head|>assistant<|body|>"
    assert found == Answer("", "Bob", "<|over|>") and found.whole == "Bob<|over|>"
    assert answer(HEADERS, "")[1].whole == "<|over|>"


@pytest.mark.parametrize("response", ["Bob", "<Bob", "<think>\nBob", "<think>Bob"])
def test_a_template_that_begins_the_answer_leaves_it_its_end_of_turn(response: str) -> None:
    prompt, found = answer(THINK, response)
    assert prompt.endswith("<|head|>assistant<|body|><think>\n")
    bare = response.removeprefix("<think>").strip()
    assert (prompt + found.whole).endswith(f"<think>\n{bare}<|over|>")
    assert found.begun == ("" if "think" in response else "<think>\n")


def test_a_template_that_drops_thoughts_has_its_way_and_is_found_out() -> None:
    drops = HEADERS.replace("m['content'] +", "m['content'].split('</think>')[-1] +")
    assert answer(drops, "hm</think>Bob")[1] == Answer("", "Bob", "<|over|>", altered=True)
    # Where the prompt holds the beginning of thoughts, nothing is to be dropped from what follows it.
    begins = drops.replace("assistant<|body|>{%", "assistant<|body|><think>\n{%")
    assert answer(begins, "<think>\nhm</think>Bob")[1] == Answer("", "hm</think>Bob", "<|over|>")


def test_a_template_that_says_what_an_answer_without_thoughts_is_has_its_way() -> None:
    says = HEADERS.replace("m['content'] +", "('<think></think>' if m.role == 'assistant' else '') + m['content'] +")
    assert answer(says, "Bob")[1] == Answer("<think></think>", "Bob", "<|over|>")


def test_does_it_have_a_generation_prompt() -> None:
    assert template(HEADERS).has_generation_prompt and template(THINK).has_generation_prompt
    assert not template(HEADERS.partition("{% if add")[0]).has_generation_prompt


def test_a_date_is_the_pinned_one_whatever_day_it_is() -> None:
    clock = """{% set f = '%Y' %}{{ strftime_now("%d %b %Y") + strftime_now(f) }}"""
    text = "{% if strftime_now is defined %}" + clock + "{% endif %}"
    for date, shown in (("2024-07-26", "26 Jul 20242024"), ("2031-01-02", "02 Jan 20312031")):
        chat = template(text + HEADERS, date)
        assert chat.has_date and chat.prompt(HI).startswith(shown + "<|begin|>")
    assert not template(HEADERS).has_date


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "{{ bos_token }}\n{% for m in messages %}\n{{ m.content \n+ }}{% endfor %}",
            "TemplateSyntaxError.*at its line 4",
        ),
        ("\n{% for m in messages %}{{ '<' + m.content ", "unexpected end of template.*at its line 2"),
        ("\n\n{{ messages[0].no.thing }}", "has no attribute 'no', at its line 3: '{{ messages"),
        ("{{ messages[0].content + 1 }}", "TypeError: .*at its line 1"),
        ("{{ nothing(messages) }}", "'nothing' is undefined, at its line 1"),
        ("{{ messages | nothing }}", "No filter named 'nothing'"),
        ("{{ strftime_now('%d' + '/' + '%m') }}\n{{ oh.no.more }}", "'oh' is undefined, at its line 2"),
    ],
)
def test_a_broken_template_is_a_sentence_with_its_own_line(text: str, words: str) -> None:
    text = text.replace("strftime_now('%d' + '/' + '%m')", "strftime_now('%d')")
    with pytest.raises(ConfigError, match=rf"The chat template of the tokenizer .* is broken: .*{words}") as error:
        template(text)
    assert "chat_template.jinja" in str(error.value)


def test_several_templates_without_a_default_are_a_sentence() -> None:
    with pytest.raises(ConfigError, match="no default"):
        ChatTemplate(headers_tokenizer({"rag": HEADERS, "tools": HEADERS}), "2024-07-26")  # type: ignore[arg-type]


def test_a_template_that_fails_on_some_dialogues_refuses_these_with_the_reason() -> None:
    chat = template("{{ raise_exception('No system here') if messages[0].role == 'system' }}" + HEADERS)
    with pytest.raises(Refused) as error:
        chat.prompt((Message("system", "x"), *HI))
    assert error.value.reason == "No system here" and str(error.value) == "dialogues that the chat template refuses"
    strict = template("{% if messages|length > 2 %}\n{{ messages[2].no.thing }}{% endif %}" + HEADERS)
    with pytest.raises(Refused) as error:
        strict.prompt(HI * 3)
    assert "at its line 2" in error.value.reason
    with pytest.raises(Refused, match="refuses") as error:
        answer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}|", "Bob")
    assert error.value.reason == "it leaves the answer out"
