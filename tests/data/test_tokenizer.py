import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gipo_mc.data.encode import Encoder
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.data.tokenizer import check_vocabulary, load_tokenizer, train_bpe_tokenizer
from gipo_mc.errors import ConfigError
from gipo_mc.models.families import FAMILIES
from tests.chat import chat_tokenizer

TEXTS = ["The dog runs to the park.", "The park is green, and the dog is brown."] * 20


def closed(words, **special) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_bpe_encodes_any_text_and_survives_loading_beside_a_models_config(tmp_path, family):
    trained = train_bpe_tokenizer(TEXTS, 300, tmp_path)
    FAMILIES[family].new_config(vocab_size=300).save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    for tokenizer in (trained, loaded):
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
        assert 259 < len(tokenizer) <= 300
        for text in ("\n\nHuman: a  b\n\nAssistant:", "naïve 漢字 🙂\t\x00", "The dog"):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == text
        assert tokenizer("dog").input_ids[0] == 0
    assert len(loaded(" dog", add_special_tokens=False).input_ids) == 1


def test_training_is_deterministic(tmp_path):
    a, b = (train_bpe_tokenizer(iter(TEXTS), 290, tmp_path / name) for name in "ab")
    assert a.get_vocab() == b.get_vocab()


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 259, not 100"):
        train_bpe_tokenizer(TEXTS, 100, tmp_path)


def test_vocabularies_that_do_not_belong_together():
    tokenizer = builtin_tokenizer()
    assert check_vocabulary(tokenizer, 22) == check_vocabulary(tokenizer, 24) == ""
    with pytest.raises(ConfigError, match=r"ids up to 21 \('<pad>'\), but the reward model a vocabulary of 21"):
        check_vocabulary(tokenizer, 21, "the reward model")
    assert "has 22 ids, the model a vocabulary of 32000" in check_vocabulary(tokenizer, 32000)


@pytest.mark.parametrize(
    "words, special, expected",
    [
        (["a", "<eos>", "[PAD]"], {"eos_token": "<eos>"}, "[PAD]"),
        (["a", "<eos>", "<unk>"], {"eos_token": "<eos>", "unk_token": "<unk>"}, "<unk>"),
        (["a", "<eos>"], {"eos_token": "<eos>"}, "<eos>"),
    ],
)
def test_a_missing_padding_token_never_grows_the_vocabulary(tmp_path, words, special, expected):
    closed(words, **special).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token == expected and len(tokenizer) == len(words)


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
@pytest.mark.parametrize("own", [True, False], ids=["bos", "no_bos"])
@pytest.mark.parametrize("flag", [True, False, None])
def test_add_bos_token_is_followed_and_said_once(tmp_path, kind, own, flag):
    train_bpe_tokenizer(TEXTS, 300, tmp_path)
    if not own:
        raw = json.loads((tmp_path / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    flags = {} if flag is None else {"add_bos_token": flag}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | flags | {"tokenizer_class": kind}))
    told = []
    tokenizer = load_tokenizer(str(tmp_path), told.append)
    wanted = own if flag is None else flag
    ids = tokenizer("dog", add_special_tokens=False).input_ids
    assert Encoder(tokenizer).prompts(["dog"]) == [[0] * wanted + ids] == [tokenizer("dog").input_ids]
    assert Encoder(tokenizer).responses(["dog"]) == [[*ids, 1]]
    assert len(told) == (flag is not None and flag != own)
    if told:
        assert f"add_bos_token={str(flag).lower()}" in told[0]
        assert f"plain prompts begin {'with' if flag else 'without'} <s>" in told[0]
    # What is saved says the same by itself.
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved"), told.append)("dog").input_ids == [0] * wanted + ids


def test_settings_that_cannot_be_followed_are_said(tmp_path):
    closed(["a", "<eos>"], eos_token="<eos>").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True, "add_eos_token": True}))
    told = []
    assert Encoder(load_tokenizer(str(tmp_path), told.append)).prompts(["a"]) == [[0]]
    assert len(told) == 2 and "has no BOS token" in told[0] and "no prompt ends with <eos> here" in told[1]


@pytest.mark.parametrize("template", [5, {"a": 1}, [{"name": "default", "template": 5}]])
def test_a_chat_template_that_is_no_text_is_a_sentence(tmp_path, template):
    chat_tokenizer(template=None).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with pytest.raises(ConfigError, match=r"cannot be loaded|a chat template that is no text"):
        load_tokenizer(str(tmp_path))


def test_folders_that_hold_no_usable_tokenizer(tmp_path):
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        closed(["a"]).save_pretrained(tmp_path / "no_eos")
        load_tokenizer(str(tmp_path / "no_eos"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="There is no tokenizer in"):
        load_tokenizer(str(tmp_path / "empty"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path / "broken"))
    with pytest.raises(ConfigError, match="There is no folder"):
        load_tokenizer(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="No tokenizer is given"):
        load_tokenizer("")
    with pytest.raises(ConfigError, match="owner/missing cannot be loaded"):
        load_tokenizer("owner/missing")


@pytest.mark.parametrize(
    "setting",
    [
        {"model": {"dropout": 0.5}},  # BPE dropout: other ids at each call, and on each rank
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        {"padding": {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None,
                     "pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>"}},
    ],
    ids=["dropout", "truncation", "padding"],
)  # fmt: skip
def test_settings_of_its_own_training_do_not_change_the_ids_of_a_text(tmp_path, setting):
    train_bpe_tokenizer(TEXTS, 300, tmp_path)
    expected = load_tokenizer(str(tmp_path))(TEXTS, add_special_tokens=False).input_ids
    file = tmp_path / "tokenizer.json"
    fields = json.loads(file.read_text())
    for key, value in setting.items():
        fields[key] = fields[key] | value if key == "model" else value
    file.write_text(json.dumps(fields))
    assert load_tokenizer(str(tmp_path))(TEXTS, add_special_tokens=False).input_ids == expected
