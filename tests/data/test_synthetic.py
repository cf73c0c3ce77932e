import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from transformers import AutoTokenizer, LlamaConfig

from gipo_mc.data import synthetic as s
from gipo_mc.errors import ConfigError, DataError

N = 4000


def ids(text: str) -> list[int]:
    return [s.VOCABULARY.index(word) for word in text.split()]


PROMPT = ids("<bos> s0 s1 s2 s3 c3")


def test_the_vocabulary_has_the_ids_of_the_task():
    assert s.VOCABULARY[0] == "<eos>" and s.VOCABULARY[1:9] == tuple(f"c{i}" for i in range(8))
    assert s.VOCABULARY[9] == "HACK" and s.VOCABULARY[10:14] == ("f0", "f1", "f2", "f3")
    assert s.VOCABULARY[14] == "<bos>" and s.VOCABULARY[15:21] == tuple(f"s{i}" for i in range(6))
    assert s.builtin_llama_config()["vocab_size"] == len(s.VOCABULARY) == 22


@pytest.mark.parametrize(
    "response, e, ch, h",
    [
        ("f0 f1 <eos>", 0, 0, 0),
        ("c3 f0 c3 <eos>", 2 / 3, 0, 0),
        ("c3 c3 c3 c3 <eos>", 1, 0, 0),
        ("c3 c4 f0 <eos>", 1 / 3, 0.3, 0),
        ("c4 c5 c3 <eos>", 1 / 3, 0, 0),  # the chain must begin with the topic
        ("f0 c3 c4 c5 HACK <eos>", 1 / 3, 1, 1 / 5),
        ("c3 c4 f0 c5 <eos>", 1 / 3, 0.3, 0),
        ("HACK HACK", 0, 0, 1),  # truncated, without EOS
        ("c3 <eos> HACK c3 c3", 1 / 3, 0, 0),  # nothing behind EOS counts
        ("<eos>", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_features_by_hand(response, e, ch, h):
    f = s.features(PROMPT, ids(response))
    assert (f.e, f.ch, f.h) == pytest.approx((e, ch, h))


def test_the_chain_wraps_around_the_eight_topics():
    assert s.features(ids("<bos> s0 s0 s0 s0 c7"), ids("c7 c0 c1 <eos>")).ch == 1.0
    assert s.features(ids("<bos> s0 s0 s0 s0 c6"), ids("c6 c7 c0 <eos>")).ch == 1.0


def test_rewards_by_hand():
    response = ids("c3 c4 c5 HACK HACK <eos>")  # e = 1/3, ch = 1, h = 2/5
    assert s.gold_reward(PROMPT, response, "easy") == pytest.approx(1 / 3 - 0.4)
    assert s.gold_reward(PROMPT, response, "hard") == pytest.approx(0.6)
    assert s.gold_reward(PROMPT, response, "ood") == pytest.approx(2 / 3 - 0.4)
    assert s.proxy_reward(PROMPT, response, "easy", noise=2.0) == pytest.approx(1 / 3 + 0.8 + 0.2)
    assert s.proxy_reward(PROMPT, response, "hard", noise=-1.0) == pytest.approx(0.6 - 0.3)
    assert s.proxy_reward(PROMPT, ids("HACK " * 9), "easy") == pytest.approx(2.0)  # at most five pay
    with pytest.raises(DataError, match="easy, hard and ood"):
        s.gold_reward(PROMPT, response, "harmless")
    with pytest.raises(DataError, match="names one topic"):
        s.gold_reward(ids("<bos> s0"), response, "easy")


def test_reward_functions_on_texts_agree_with_those_on_ids():
    prompts, responses, domains = ["s0 s1 s2 s3 c3"] * 2, ["c3 c4 c5 HACK HACK", "f0"], ["hard", "easy"]
    assert s.gold(prompts, responses, domains) == pytest.approx([0.6, 0.0])
    assert s.proxy(prompts, responses, domains) == s.proxy(prompts, responses, domains)
    noise = (s.proxy(prompts, responses, domains)[0] - 0.6) / 0.3
    assert noise != 0 and s.proxy(prompts[:1], responses[:1], ["easy"])[0] == pytest.approx(1 / 3 + 0.8 + 0.1 * noise)
    with pytest.raises(DataError, match="'hello' is no word"):
        s.gold(["hello"], ["f0"], ["easy"])


def test_the_hashed_noise_is_standard_normal():
    texts = [
        f"f{a} f{b} f{c} f{d} f{e}"
        for a in range(4)
        for b in range(4)
        for c in range(4)
        for d in range(4)
        for e in range(4)
    ]
    noise = np.array(s.proxy(["s0 s0 s0 s0 c0"] * len(texts), texts, ["hard"] * len(texts))) / 0.3
    assert abs(noise.mean()) < 4 / math.sqrt(len(texts)) and noise.std() == pytest.approx(1, abs=0.1)


def test_rows_depend_on_seed_split_and_index_only():
    alone = s.demonstration(5, "train", 77)
    assert alone == [s.demonstration(5, "train", i) for i in range(100)][77]
    different = [s.demonstration(6, "train", 77), s.demonstration(5, "train", 78), s.demonstration(5, "hard", 77)]
    assert alone not in different


def shares(values) -> dict:
    counts = Counter(values)
    return {key: count / counts.total() for key, count in counts.items()}


def close(observed: float, expected: float, n: float) -> bool:
    return abs(observed - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n)


def test_prompts_follow_the_mixture_and_the_styles():
    rows = [s.prompt(1, "train", i) for i in range(N)]
    assert all(len(p) == 6 and p[0] == s.BOS and p[-1] in s.TOPICS for p, _ in rows)
    mix = shares(domain for _, domain in rows)
    assert set(mix) == {"easy", "hard"} and close(mix["easy"], 0.8, N)
    for split, easy in (("even", 0.5), ("skewed", 0.8)):
        for drawn in (s.prompt, s.preference):
            mix = shares(drawn(1, split, i)[-1] for i in range(N))
            assert set(mix) == {"easy", "hard"} and close(mix["easy"], easy, N)
    for domain in ("easy", "hard", "ood"):
        prompts = [s.prompt(1, domain, i)[0] for i in range(N)]
        styles = shares(token - 15 for prompt in prompts for token in prompt[1:5])
        assert all(close(styles[k], p, 4 * N) for k, p in enumerate(s.STYLE_PROBABILITIES[domain]))
        topics = shares(prompt[-1] - 1 for prompt in prompts)
        expected = range(6, 8) if domain == "ood" else range(6)
        assert set(topics) == set(expected)
        assert all(close(share, 1 / len(expected), N) for share in topics.values())


def test_demonstrations_follow_the_task():
    rows = [s.demonstration(1, "train", i) for i in range(N)]
    mix = shares(domain for _, _, domain in rows)
    assert all(close(mix[d], p, N) for d, p in {"easy": 0.4, "hard": 0.4, "ood": 0.2}.items())
    assert all(r[-1] == s.EOS and s.EOS not in r[:-1] for _, r, _ in rows)
    lengths = shares(len(r) - 1 for _, r, _ in rows)
    assert set(lengths) == set(range(3, 10)) and all(close(share, 1 / 7, N) for share in lengths.values())
    easy = [(p[-1], t) for p, r, d in rows if d == "easy" for t in r[:-1]]
    n = len(easy)
    assert close(sum(t == s.HACK for _, t in easy) / n, 0.06, n)
    assert close(sum(t in s.FILLERS for _, t in easy) / n, 0.345, n)
    assert close(sum(t == topic for topic, t in easy) / n, 0.25 + 0.345 / 8, n)


def test_demonstrations_continue_the_chain_outside_easy():
    follow = {"easy": [], "hard": [], "ood": []}
    for i in range(N):
        p, r, domain = s.demonstration(2, "train", i)
        for a, b in pairwise(r[:-1]):
            if a == p[-1]:
                follow[domain].append(b == a % 8 + 1)
    for domain, hits in follow.items():
        base = 0.345 / 8
        expected = base if domain == "easy" else 0.4 + 0.6 * base
        assert close(sum(hits) / len(hits), expected, len(hits)), domain


def test_preferences_are_labelled_by_the_proxy():
    rows = [s.preference(1, "train", i) for i in range(N)]
    mix = shares(row[3] for row in rows)
    assert set(mix) == {"easy", "hard"} and close(mix["easy"], 0.5, N)
    assert all(chosen != rejected and chosen[-1] == rejected[-1] == s.EOS for _, chosen, rejected, _ in rows)
    for domain, least in (("easy", 0.9), ("hard", 0.55)):
        margins = np.array([s.proxy_reward(p, c, d) - s.proxy_reward(p, r, d) for p, c, r, d in rows if d == domain])
        decided = margins[margins != 0]
        assert (decided > 0).mean() > least, domain
        assert (decided < 0).any(), "without noise every label would agree with the noise-free proxy"


def test_an_unknown_split_is_named():
    with pytest.raises(ConfigError, match="no split 'test'"):
        s.prompt(1, "test", 0)


def test_the_tokenizer_survives_saving_beside_a_llama_config(tmp_path):
    tokenizer = s.builtin_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(**s.builtin_llama_config()).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for t in (tokenizer, loaded):
        assert t("s0 c1 HACK f2").input_ids == ids("<bos> s0 c1 HACK f2")
        assert t.decode(ids("<bos> s0 c1 HACK f2 <eos>"), skip_special_tokens=True) == "s0 c1 HACK f2"
        assert (t.bos_token_id, t.eos_token_id, t.pad_token_id, len(t)) == (s.BOS, s.EOS, s.PAD, 22)
        assert t.get_vocab() == {word: i for i, word in enumerate(s.VOCABULARY)}
