"""vLLM generates what the policy of now would: against the Megatron engine and the training model's forward pass."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_mc.errors import DataError, NumericsError
from gipo_mc.generation.choose import rollout_engine
from tests.generation.vllm.vllm_runs import EOS, LIMITS, NEW, VOCAB, Engines, generate, surroundings
from tests.ranks import parallel_config, run_ranks

Prompts = list[list[int]]
LAYOUTS: dict[str, dict[str, Any]] = {
    "1": {},
    "TP2": {"tensor": 2},
    "DP2": {"data": 2},
    "TP2+SP": {"tensor": 2, "sequence": True},
}
SAMPLED: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm, top-p": {"temperature": 1.4, "top_p": 0.8},
    "cool, top-k": {"temperature": 0.8, "top_k": 6},
    "greedy, warm": {"temperature": 1.4, "greedy": True},
    "half of the ids": {"known_ids": VOCAB // 2},
}


def after_updates(folder: Path, layout: dict[str, Any], prompts: Prompts) -> list[Any]:
    """Greedy responses of both engines on every rank, at first and after two changes of all weights."""

    def job(_: int) -> Any:
        engines, found = Engines(folder, layout), []
        for update in range(3):
            if update:
                engines.change_weights(update)
            found.append((engines.greedy(engines.vllm, prompts), engines.greedy(engines.megatron, prompts)))
        sampled = generate(engines.vllm, prompts)
        return found, sampled.responses(), sampled.sampler_logp_BT

    return run_ranks(job, parallel_config(**layout)[1])


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_greedy_responses_follow_the_policys_weights(
    name: str, kind: str, folders: dict[str, Path], prompts: Prompts
) -> None:
    """In each layout, the output layer shared with the embedding or not; prompts of more than a block of the cache come
    again after each update."""
    ranks = after_updates(folders[kind], LAYOUTS[name], prompts)
    states = [vllm for vllm, _ in ranks[0][0]]
    assert states[0] != states[1] != states[2], "the updates must change what is generated"
    for found, sampled, logp_BT in ranks:
        for vllm, megatron in found:
            assert vllm == megatron
        assert sampled == ranks[0][1] and torch.equal(logp_BT, ranks[0][2]), "the ranks of a replica agree"


def refusal(vllm: Any, wrong: Prompts) -> str:
    with pytest.raises(DataError) as error:
        generate(vllm, wrong)
    return str(error.value)


@pytest.fixture(scope="module")
def single(folders: dict[str, Path], prompts: Prompts) -> dict[str, Any]:
    """What one rank says to all of the questions below; the start of vLLM takes longer than they do."""

    def job(_: int) -> dict[str, Any]:
        engines = Engines(folders["untied"], {})
        vllm, found = engines.vllm, {}
        for name, options in SAMPLED.items():
            result = generate(vllm, prompts, **options)
            temperature = options.get("temperature", 1.0)
            expected = [engines.logp(prompt, ids, temperature) for prompt, ids in zip(prompts, result.responses())]
            found[name] = result, expected
        rows = [2, 0, 4, 3, 1]
        found["again"] = generate(vllm, prompts).responses()
        found["mixed"] = generate(vllm, [prompts[row] for row in rows], index=rows).responses()
        found["another step"] = generate(vllm, prompts, step=4).responses()
        found["the largest"] = generate(vllm, prompts, top_k=1).responses(), engines.greedy(vllm, prompts)
        told: list[tuple[int, int]] = []
        pairs = {tuple(ids[2:4]) for ids in found["again"]}
        stop = lambda ids: any(pair in pairs for pair in pairwise(ids))  # noqa: E731
        found["stopped"] = pairs, generate(vllm, prompts, stop=stop, on_step=lambda *done: told.append(done)), told
        found["nothing"] = generate(vllm, []).responses()
        found["refused"] = [refusal(vllm, wrong) for wrong in ([[]], [[1] * 190], [[VOCAB]], [[-1]])]
        with torch.no_grad():
            engines.model.decoder.final_layernorm.weight.fill_(torch.nan)
        with pytest.raises(NumericsError) as error:
            generate(vllm, prompts)
        found["broken"] = str(error.value)
        return found

    return run_ranks(job, 1)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", SAMPLED)
def test_sampler_log_probs_are_the_training_models(case: str, single: dict[str, Any]) -> None:
    """Of logits / temperature, before top-k, top-p and the ids that are never drawn."""
    result, expected = single[case]
    for ids, logp_T, expected_T in zip(result.responses(), result.sampler_logp_BT, expected, strict=True):
        torch.testing.assert_close(logp_T[: len(ids)], expected_T, rtol=0, atol=5e-5)
        assert (logp_T[len(ids) :] == 0).all()


def test_responses_end_as_the_protocol_says(single: dict[str, Any]) -> None:
    for case in SAMPLED:
        result = single[case][0]
        assert result.response_BT.shape == (5, NEW) and result.response_BT.dtype == torch.int64
        for ids, truncated in zip(result.responses(), result.truncated_B.tolist()):
            assert EOS not in ids[:-1] and truncated is not (ids[-1] == EOS) and (not truncated or len(ids) == NEW)
    assert (single["half of the ids"][0].response_BT < VOCAB // 2).all()


def test_a_response_depends_on_seed_step_and_prompt(single: dict[str, Any]) -> None:
    plain = single["plain"][0].responses()
    assert single["again"] == plain
    assert single["mixed"] == [plain[row] for row in [2, 0, 4, 3, 1]]
    assert single["another step"] != plain
    largest, greedy = single["the largest"]
    assert largest == greedy


def test_a_response_stops_with_the_token_that_completes_a_string(single: dict[str, Any]) -> None:
    pairs, result, told = single["stopped"]
    stopped = 0
    for ids, truncated, free in zip(result.responses(), result.truncated_B.tolist(), single["again"]):
        ends = [end for end in range(2, len(free) + 1) if tuple(free[end - 2 : end]) in pairs]
        assert ids == (free[: ends[0]] if ends else free)
        stopped += bool(ends)
        assert truncated is not (bool(ends) or ids[-1] == EOS)
    assert stopped >= 4, "the case must hold stops"
    assert [done for done, _ in told] == [1, 2, 3, 4, 5] and {of for _, of in told} == {5}


def test_nothing_and_refusals(single: dict[str, Any]) -> None:
    assert single["nothing"] == []
    empty, long, foreign, negative = single["refused"]
    assert "no tokens" in empty and "190 tokens" in long and "context of 200" in long
    assert f"token id {VOCAB}" in foreign and "token id -1" in negative
    assert "not finite in 5 of 5 responses" in single["broken"]


def test_vllm_leaves_random_states_and_threads_alone(folders: dict[str, Path], prompts: Prompts) -> None:
    def job(_: int) -> list[bool]:
        engines = Engines(folders["untied"], {}, vllm=False)
        torch.set_num_threads(2)
        before = surroundings()
        vllm = rollout_engine("vllm", engines.model, LIMITS, 200)
        made = surroundings()
        generate(vllm, prompts)
        after = surroundings()
        return [one == two == three for one, two, three in zip(before, made, after)]

    assert all(run_ranks(job, 1)[0])
