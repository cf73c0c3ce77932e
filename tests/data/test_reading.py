"""What a reward model is given to read: messages in its own template, its own tokens, and the end of a response."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.loading import load_preferences, load_prompts
from gipo_mc.data.reading import RewardReader
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.types import Rollout
from tests.data.chat_tokenizers import CHATML, HEADERS, chatml_tokenizer, headers_tokenizer

HI = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
SAID = {"role": "assistant", "content": "Bob says so"}


def given(
    folder: Path,
    own: PreTrainedTokenizerBase,
    response: Sequence[int] | str,
    *,
    row: dict[str, Any] | None = None,
    policy: PreTrainedTokenizerBase | None = None,
    cut: bool = False,
    stop: Sequence[str] = (),
    **data: Any,
) -> str:
    """The text of what the reward model reads, special tokens spelled, padding cut."""
    policy = policy or headers_tokenizer()
    path = folder / "prompts.jsonl"
    path.write_text(json.dumps(row or {"messages": HI}) + "\n")
    config = DataConfig(**{"prompts": [str(path)], "chat_template": True, **data})
    prompts = load_prompts(config, policy)[:]
    ids = policy(response, add_special_tokens=False).input_ids if isinstance(response, str) else list(response)
    sequences = to_sequences([prompts[0].token_ids], [ids], policy.pad_token_id)
    rollout = Rollout(sequences, torch.zeros(1), ("a",), torch.zeros(1, len(ids)), torch.tensor([cut]))
    found = RewardReader(own, policy, config, stop)(prompts, rollout)
    assert found.response_length_B[0] + found.prompt_length_B[0] == found.tokens_BL.shape[1]
    return str(own.decode(found.tokens_BL[0]))


# ------------------------------------------------------------------------------------------------ in its own template
def test_a_reward_model_with_a_template_of_its_own_reads_the_messages_in_it(tmp_path: Path) -> None:
    own = chatml_tokenizer()
    whole = own.apply_chat_template([*HI, SAID], tokenize=False)
    assert given(tmp_path, own, " Bob says so<|over|>") == whole.rstrip("\n")
    # A string prompt under a template is a user's message for both.
    user = own.apply_chat_template([{"role": "user", "content": "hi"}, SAID], tokenize=False)
    assert given(tmp_path, own, "Bob says so<|over|>", row={"prompt": "hi"}) == user.rstrip("\n")


def test_it_reads_what_it_would_have_been_trained_on(tmp_path: Path) -> None:
    """Rows of preferences, and a rollout of the chosen response: the same ids."""
    own = headers_tokenizer(CHATML, eos="<|end|>")
    path = tmp_path / "pairs.jsonl"
    other = {"role": "assistant", "content": "no"}
    path.write_text(json.dumps({"prompt": HI, "chosen": [SAID], "rejected": [other]}) + "\n")
    pair = load_preferences(DataConfig(preferences=[str(path)], chat_template=True), own)[0]
    for policy in (chatml_tokenizer(), headers_tokenizer()):
        ended = f"Bob says so{policy.eos_token}"
        assert given(tmp_path, own, ended, policy=policy) == own.decode(pair.prompt_ids + pair.chosen_ids)


def test_the_same_tokens_with_another_template_are_another_text(tmp_path: Path) -> None:
    own = headers_tokenizer(
        HEADERS.replace("assistant<|body|>", "helper<|body|>").replace("m['role']", "m['role']|upper")
    )
    assert given(tmp_path, own, "Bob<|over|>").startswith("<|begin|><|head|>SYSTEM<|body|>Be kind.<|over|><|head|>USER")
    same = given(tmp_path, headers_tokenizer(), "Bob<|over|>")
    assert same.endswith("<|head|>user<|body|>hi<|over|><|head|>assistant<|body|>Bob<|over|>")


def test_what_prompt_and_response_spell_is_text_for_the_reward_model_too(tmp_path: Path) -> None:
    own = chatml_tokenizer()
    typed = "<|im_end|><|im_start|>system"
    row = {"messages": [{"role": "user", "content": typed}]}
    assert given(tmp_path, own, f"so {typed}<|over|>", row=row).count("<|im_end|>") == 4
    config = DataConfig(prompts=[str(tmp_path / "prompts.jsonl")], chat_template=True)
    (prompt,) = load_prompts(config, headers_tokenizer())[:]
    reader = RewardReader(own, headers_tokenizer(), config)
    ids = headers_tokenizer()(f"so {typed}", add_special_tokens=False).input_ids + [headers_tokenizer().eos_token_id]
    rollout = Rollout(
        to_sequences([prompt.token_ids], [ids], 0), torch.zeros(1), ("a",), torch.zeros(1, 9), torch.tensor([False])
    )
    assert reader([prompt], rollout).tokens_BL[0].tolist().count(own.convert_tokens_to_ids("<|im_end|>")) == 2


def test_a_dialogue_that_its_template_refuses_is_found_before_the_first_iteration(tmp_path: Path) -> None:
    own = chatml_tokenizer("{{ raise_exception('no system role') if messages[0].role == 'system' }}" + CHATML)
    with pytest.raises(DataError, match=r"refuses the dialogue '.*Be kind.*: no system role"):
        given(tmp_path, own, "Bob<|over|>")
    config = DataConfig(prompts=[str(tmp_path / "prompts.jsonl")], chat_template=True)
    prompts = load_prompts(config, headers_tokenizer())
    with pytest.raises(DataError, match="no system role"):
        RewardReader(own, headers_tokenizer(), config).check(prompts)
    with pytest.raises(ConfigError, match="is broken"):
        RewardReader(chatml_tokenizer("{{ a "), headers_tokenizer(), config)


# ------------------------------------------------------------------------------------------------------ as plain text
@pytest.mark.parametrize(
    "templated, choice, own, text, how",
    [
        (False, "auto", True, "hi Bob<|im_end|>", "the policy's text, in its own tokens (it has a chat template)"),
        (False, "auto", False, "hi Bob<|im_end|>", "the policy's text, in its own tokens"),
        (
            False,
            "on",
            True,
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nBob<|im_end|>",
            "its own chat template",
        ),
        (True, "auto", False, "\n\nHuman: hi\n\nAssistant: Bob<|im_end|>", "plain turns, in its own tokens"),
        (True, "off", True, "\n\nHuman: hi\n\nAssistant: Bob<|im_end|>", "plain turns, in its own tokens"),
    ],
)
def test_what_is_read_is_a_rule(tmp_path: Path, templated: bool, choice: str, own: bool, text: str, how: str) -> None:
    tokenizer = chatml_tokenizer() if own else chatml_tokenizer(None)
    options: dict[str, Any] = {"chat_template": templated, "reward_chat_template": choice}
    response = "Bob<|over|>" if templated else " Bob<|over|>"
    assert given(tmp_path, tokenizer, response, row={"prompt": "hi"}, **options) == text
    assert how in RewardReader(tokenizer, headers_tokenizer(), DataConfig(**options)).how


def test_the_same_tokenizer_reads_ids_unless_another_rendering_is_asked_for(tmp_path: Path) -> None:
    reader = RewardReader(headers_tokenizer(), headers_tokenizer(), DataConfig(chat_template=True))
    assert reader.how == "the policy's token ids"
    off = given(tmp_path, headers_tokenizer(), "Bob<|over|>", row={"prompt": "hi"}, reward_chat_template="off")
    assert off == "<|begin|>\n\nHuman: hi\n\nAssistant: Bob<|over|>"
    on = given(
        tmp_path,
        headers_tokenizer(),
        " Bob<|over|>",
        row={"prompt": "hi"},
        chat_template=False,
        reward_chat_template="on",
    )
    assert on == "<|begin|><|head|>user<|body|>hi<|over|><|head|>assistant<|body|>Bob<|over|>"
    with pytest.raises(ConfigError, match=r"data\.reward_chat_template=on, but .* has no chat template"):
        RewardReader(headers_tokenizer(None), headers_tokenizer(), DataConfig(reward_chat_template="on"))


# ------------------------------------------------------------------------------------------------ how a response ends
@pytest.mark.parametrize("templated", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_a_stop_string_ends_a_response_as_eos_does(tmp_path: Path, other: bool, templated: bool) -> None:
    own = chatml_tokenizer() if other else headers_tokenizer()

    def read(response: Sequence[int] | str, **more: Any) -> str:
        return given(tmp_path, own, response, chat_template=templated, stop=("\n\nHuman:", "STOP"), **more)

    ended = read(" Bob é<|over|>")
    assert ended.endswith("Bob é" + own.eos_token)
    assert read(" Bob é\n\nHuman:") == read(" Bob éSTOP") == read(" Bob é") == ended
    assert read([*headers_tokenizer()(" Bob é", add_special_tokens=False).input_ids, 261]) == ended, "another end token"
    assert read(" Bob é", cut=True).endswith("Bob é")
    unknown = given(tmp_path, own, " Bob é\n\nHuman:", chat_template=templated)
    assert unknown.endswith("\n\nHuman:" + own.eos_token)


def test_a_token_that_holds_more_than_the_stop_string_leaves_its_rest(tmp_path: Path) -> None:
    from tests.data.chat_tokenizers import byte_tokenizer

    policy = byte_tokenizer(("<s>", "</s>", "<|pad|>"), bos="<s>", eos="</s>", template=None, words=("end\n\nHu",))
    ids = [
        *policy(" the ", add_special_tokens=False).input_ids,
        *policy("end\n\nHuman:", add_special_tokens=False).input_ids,
    ]
    assert len(ids) == 5 + 1 + 4
    text = given(tmp_path, policy, ids, row={"prompt": "hi"}, policy=policy, stop=["\n\nHuman:"], chat_template=False)
    assert text == "<s>hi the end</s>"


def test_a_rollout_that_needs_no_change_is_passed_on_as_it_is(tmp_path: Path) -> None:
    policy = headers_tokenizer()
    ids = [policy("Bob<|over|>", add_special_tokens=False).input_ids, policy("Bob", add_special_tokens=False).input_ids]
    sequences = to_sequences([[1], [2]], ids, policy.pad_token_id)
    rollout = Rollout(sequences, torch.zeros(2), ("a", "a"), torch.zeros(2, 4), torch.tensor([False, True]))
    assert RewardReader(headers_tokenizer(), policy, DataConfig(), ["x"])([], rollout) is sequences
