import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gipo_mc.config import DataConfig
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.encode import CUT, Encoder
from gipo_mc.data.reading import RewardReader
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.data.tokenizer import train_bpe_tokenizer
from gipo_mc.errors import DataError
from gipo_mc.types import Prompt, Rollout
from tests.data.chat_tokenizers import headers_tokenizer

TEXTS = ["The dog runs to the park.", "Human: yes\n\nAssistant: no dog"] * 20


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return train_bpe_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def sentencepiece_like():
    """Prepends a space to every text, merges nothing across words and has bytes for line breaks, like Llama 1 and 2."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    words = [text.replace("\n", " ") for text in TEXTS]
    core.train_from_iterator(words, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def llama2_like(sentencepiece_like):
    """As Llama 2's own tokenizer.json: bytes are no special tokens, and a decoded text's first space is taken away."""
    fields = json.loads(sentencepiece_like.backend_tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["content"].startswith("<0x")]
    core = Tokenizer.from_str(json.dumps(fields))
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(decoder)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_prompts_begin_with_bos_and_responses_end_with_eos(bpe):
    encoder = Encoder(bpe)
    (prompt,), (response,) = encoder.prompts(["\n\nHuman: dog\n\nAssistant:"]), encoder.responses([" yes"])
    assert prompt.count(bpe.bos_token_id) == 1 and prompt[0] == bpe.bos_token_id
    assert bpe.eos_token_id not in prompt
    assert response[-1] == bpe.eos_token_id and response.count(bpe.eos_token_id) == 1
    assert bpe.decode(prompt[1:] + response[:-1]) == "\n\nHuman: dog\n\nAssistant: yes"


def test_no_bos_where_the_tokenizer_puts_none(bpe):
    core = Tokenizer.from_str(bpe.backend_tokenizer.to_str())
    core.post_processor = processors.Sequence([])
    plain = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert Encoder(plain).prompts(["dog"]) == [plain("dog").input_ids]
    assert Encoder(plain).prompts([""]) == [[]]


@pytest.mark.parametrize("name", ["bpe", "sentencepiece_like"])
@pytest.mark.parametrize("special", ["</s>", "<s>", "a</s>b", " </s> "])
def test_text_is_never_read_as_special_tokens(name, special, request):
    tokenizer = request.getfixturevalue(name)
    encoder = Encoder(tokenizer)
    (prompt,), (response,) = encoder.prompts([special]), encoder.responses([special])
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert not ids & set(prompt[1:]) and not ids & set(response[:-1])
    assert tokenizer.decode(response[:-1]).strip() == special.strip()
    # The setting is that of the call: the tokenizer itself is left as it was.
    assert ids & set(tokenizer(special, add_special_tokens=False).input_ids)


def test_special_tokens_of_a_template_are_read(bpe):
    encoder = Encoder(bpe)
    assert encoder.prompts(["<s>dog"], special=True) == [[0, *bpe("dog", add_special_tokens=False).input_ids]]
    (response,) = encoder.responses(["dog</s>\n"], special=True)
    assert response == [*bpe("dog", add_special_tokens=False).input_ids, bpe.eos_token_id]  # nothing behind EOS
    assert encoder.contains_special("a</s>b") == "</s>" and encoder.contains_special("a b") is None


@pytest.mark.parametrize("name", ["bpe", "sentencepiece_like"])
@pytest.mark.parametrize("text", ["a</s>b", "</s>", "<s></s>", "<</s>>", " </s", "no"])
def test_a_cut_text_holds_no_special_token_and_is_the_same_text(name, text, request):
    tokenizer = request.getfixturevalue(name)
    encoder = Encoder(tokenizer)
    cut = encoder.as_text(text)
    assert cut.replace(CUT, "") == text and (cut == text) == (encoder.contains_special(text) is None)
    (prompt,), (response,) = encoder.prompts(["<s>" + cut], special=True), encoder.responses([cut], special=True)
    for ids, whole in ((prompt, prompt[1:]), (response, response[:-1])):
        named = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        assert ids[0 if ids is prompt else -1] in named and not named & set(whole)
        assert tokenizer.decode(whole).strip() == text.strip()


def test_bos_is_put_before_a_text_that_has_none(bpe):
    encoder = Encoder(bpe)
    (dog,) = encoder.prompts(["dog"])
    assert encoder.prompts(["dog", "<s>dog"], special=True, begin=True) == [dog, dog]
    assert encoder.prompts(["dog"], begin=False) == [dog[1:]]


def test_every_special_token_counts_and_not_only_those_with_a_name():
    encoder = Encoder(headers_tokenizer())
    assert encoder.contains_special("a <|head|>") == "<|head|>" and encoder.contains_special("<think>") is None
    assert len(encoder.special_ids) == 6


@pytest.mark.parametrize("name", ["bpe", "sentencepiece_like"])
@pytest.mark.parametrize("response", [" dog", " no dog\n\nyes", "dog", "\n\nHuman", " 漢"])
def test_prompt_and_response_are_tokenized_as_the_whole_text_would_be(name, response, request):
    tokenizer = request.getfixturevalue(name)
    encoder = Encoder(tokenizer)
    prompt = "Human: yes\n\nAssistant:"
    pieces = encoder.prompts([prompt])[0] + encoder.responses([response])[0][:-1]
    assert tokenizer.decode(pieces[1:]).removeprefix(" ") == prompt + response
    if response.startswith(" "):
        assert pieces == tokenizer(prompt + response).input_ids


@pytest.mark.parametrize("name", ["bpe", "llama2_like"])
def test_responses_are_read_back_as_they_were(name, request):
    """Alone, Llama 2's tokenizer decodes " yes" as "yes": the reward of "Assistant:yes" is another one."""
    encoder = Encoder(request.getfixturevalue(name))
    texts = [" yes", "yes", "  dog", " 漢 dog", "\n\nHuman: no ", " a , b !", ""]
    assert encoder.texts(encoder.responses(texts)) == texts
    assert encoder.texts([]) == []


def test_a_batch_is_its_rows(bpe, sentencepiece_like):
    texts = [" dog", "", " a long response to the dog in the park", "\nyes"]
    for tokenizer in (bpe, sentencepiece_like):
        encoder = Encoder(tokenizer)
        assert encoder.responses(texts) == [encoder.responses([text])[0] for text in texts]
        assert encoder.prompts(texts) == [encoder.prompts([text])[0] for text in texts]
    assert encoder.responses([]) == []


def test_a_closed_vocabulary_refuses_other_texts_with_a_sentence():
    encoder = Encoder(builtin_tokenizer())
    assert encoder.prompts(["s0 c1"]) == [[14, 15, 2]]
    for text in ("hello", "<eos>"):
        with pytest.raises(DataError, match="words that its vocabulary lacks"):
            encoder.prompts([text])


def test_a_reward_model_with_other_tokens_reads_the_space_before_an_answer(bpe, llama2_like):
    prompt = "Human: yes\n\nAssistant:"
    encoder = Encoder(llama2_like)
    (ids,), (answer,) = encoder.prompts([prompt]), encoder.responses([" no dog"])
    sequences = to_sequences([ids], [answer], 0)
    rollout = Rollout(sequences, torch.tensor([0]), ("a",), torch.zeros(1, len(answer)), torch.tensor([False]))
    read = RewardReader(bpe, llama2_like, DataConfig())([Prompt(0, tuple(ids), "a", prompt)], rollout)
    assert bpe.decode(read.tokens_BL[0].tolist()[1:]) == f"{prompt} no dog</s>"
