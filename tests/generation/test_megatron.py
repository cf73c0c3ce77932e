"""Generation on every layout: greedy against transformers, sampling against itself and the training forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from gipo_mc.generation.assemble import sampling_uniforms
from gipo_mc.generation.engine import Generated
from gipo_mc.generation.memory import Limits
from gipo_mc.parallel.layout import Layout
from gipo_mc.types import Prompt, Rollout
from tests.generation.megatron_runs import (
    NEW,
    PROMPT_LENGTHS,
    SEED,
    VOCAB,
    Job,
    generate,
    hf_greedy,
    on_ranks,
    responses,
    rollout,
)
from tests.ranks import LAYOUTS

FOUR_RANKS = {"TP2xPP2+SP": {"tensor": 2, "pipeline": 2, "sequence": True}}


SAMPLED: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm, top-p": {"temperature": 1.4, "top_p": 0.8},
    "cool, top-k, few slots": {"temperature": 0.8, "top_k": 6, "limits": Limits(slots=3)},
}


def every_case(prompts: list[Prompt], eos_id: int) -> Job:
    def job(model: Any, layout: Layout) -> dict[str, Rollout]:
        results = {name: rollout(model, layout, prompts, eos_id, **options) for name, options in SAMPLED.items()}
        results["greedy"] = rollout(model, layout, prompts, eos_id, greedy=True)
        return results

    return job


@pytest.fixture(scope="module")
def single(folder: Path, prompts: list[Prompt], eos_id: int) -> dict[str, Rollout]:
    return on_ranks(folder, {}, every_case(prompts, eos_id))[0]


@pytest.mark.parametrize("name", [*LAYOUTS, *FOUR_RANKS])
def test_same_responses_in_every_layout(
    name: str,
    folder: Path,
    prompts: list[Prompt],
    eos_id: int,
    reference: LlamaForCausalLM,
    single: dict[str, Rollout],
) -> None:
    """Greedy is transformers' generate token for token; sampled is what one rank samples; all ranks agree."""
    expected = [hf_greedy(reference, prompt.token_ids, eos_id) for prompt in prompts]
    lengths = [len(ids) for ids in expected]
    assert min(lengths) < NEW == max(lengths), "the case must hold early ends and truncated responses"
    for results in on_ranks(folder, (LAYOUTS | FOUR_RANKS)[name], every_case(prompts, eos_id)):
        assert responses(results["greedy"]) == expected
        for case, result in results.items():
            one = single[case]
            assert responses(result) == responses(one), case
            assert torch.equal(result.sequences.tokens_BL, one.sequences.tokens_BL)
            assert torch.equal(result.truncated_B, one.truncated_B)
            torch.testing.assert_close(result.sampler_logp_BT, one.sampler_logp_BT, rtol=0, atol=1e-5)


def test_rollout_fields(single: dict[str, Rollout], prompts: list[Prompt], eos_id: int) -> None:
    for result in single.values():
        assert result.prompt_index_B.tolist() == [prompt.index for prompt in prompts]
        assert result.domain_B == tuple(prompt.domain for prompt in prompts)
        sequences, got = result.sequences, responses(result)
        assert sequences.prompt_length_B.tolist() == list(PROMPT_LENGTHS)
        assert result.sampler_logp_BT.shape == (len(prompts), max(map(len, got)))
        assert result.sampler_logp_BT.dtype == torch.float32
        for row, (prompt, ids) in enumerate(zip(prompts, got, strict=True)):
            ended = ids[-1] == eos_id
            assert eos_id not in ids[:-1] and len(ids) <= NEW
            assert bool(result.truncated_B[row]) is not ended and (ended or len(ids) == NEW)
            whole = [*prompt.token_ids, *ids]
            assert sequences.tokens_BL[row].tolist() == whole + [0] * (sequences.tokens_BL.shape[1] - len(whole))
            assert (result.sampler_logp_BT[row, : len(ids)] < 0).all()
            assert (result.sampler_logp_BT[row, len(ids) :] == 0).all()


@pytest.mark.parametrize("case", SAMPLED)
def test_sampler_log_probs_are_the_models(
    case: str, single: dict[str, Rollout], prompts: list[Prompt], reference: LlamaForCausalLM
) -> None:
    """A forward pass without a cache (transformers') gives the same log-probs at the sampling temperature."""
    result = single[case]
    for prompt, ids, logp_T in zip(prompts, responses(result), result.sampler_logp_BT, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([[*prompt.token_ids, *ids]])).logits[0, len(prompt.token_ids) - 1 : -1]
        expected = (logits / SAMPLED[case].get("temperature", 1.0)).log_softmax(-1)
        expected = expected.gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        torch.testing.assert_close(logp_T[: len(ids)], expected, rtol=0, atol=1e-5)


def test_sampling_is_not_greedy_and_differs_between_prompts_and_steps(
    folder: Path, prompts: list[Prompt], eos_id: int, single: dict[str, Rollout]
) -> None:
    assert responses(single["plain"]) != responses(single["greedy"])
    twins = [Prompt(index, prompts[1].token_ids, "", "") for index in (1, 2, 1)]
    first, second, again = responses(
        on_ranks(folder, {}, lambda model, layout: rollout(model, layout, twins, eos_id))[0]
    )
    assert first == again != second
    assert not np.array_equal(
        sampling_uniforms(SEED, "rollout", 1, [5], 4), sampling_uniforms(SEED, "rollout", 2, [5], 4)
    )


def test_a_response_does_not_depend_on_its_batch(
    folder: Path, prompts: list[Prompt], eos_id: int, single: dict[str, Rollout]
) -> None:
    """Alone, in another order, beside others, in few slots: token ids are identical."""
    rng = np.random.default_rng(0)
    batches = [[row] for row in range(len(prompts))] + [rng.permutation(len(prompts)).tolist() for _ in range(3)]

    def job(model: Any, layout: Layout) -> list[list[list[int]]]:
        chosen = [[prompts[row] for row in rows] for rows in batches]
        return [responses(rollout(model, layout, batch, eos_id, limits=Limits(slots=4))) for batch in chosen]

    expected = responses(single["plain"])
    for rows, got in zip(batches, on_ranks(folder, {}, job)[0], strict=True):
        assert got == [expected[row] for row in rows]


@pytest.mark.parametrize("name", ["1", "TP2+SP"])
def test_training_goes_on_after_generation(name: str, folder: Path, prompts: list[Prompt], eos_id: int) -> None:
    """Mode, sequence parallelism and gradients are as before; log-probs of a training forward are the sampler's."""

    def job(model: Any, layout: Layout) -> tuple[float, float, float]:
        model.train()
        batch = [Prompt(p.index, p.token_ids[:1] * 4, "", "") for p in prompts]

        def loss_and_gap(result: Rollout) -> tuple[torch.Tensor, float]:
            tokens_BL = result.sequences.tokens_BL
            hidden_LBH = model(torch.nn.functional.pad(tokens_BL, (0, -tokens_BL.shape[1] % layout.length_multiple)))
            hidden_NH = hidden_LBH[3 : tokens_BL.shape[1] - 1].transpose(0, 1).flatten(0, 1)
            shard = model.lm_logits(hidden_NH)
            parts = [shard]
            if layout.tensor > 1:
                parts = torch.distributed.nn.functional.all_gather(shard)
            logp_NV = torch.cat(list(parts), dim=-1)[:, :VOCAB].float().log_softmax(-1)
            logp_N = logp_NV.gather(1, tokens_BL[:, 4:].flatten()[:, None]).squeeze(1)
            real = result.sampler_logp_BT.flatten() != 0
            gap = (logp_N - result.sampler_logp_BT.flatten())[real].abs().max()
            return logp_N[real].mean(), float(gap)

        flags = [vars(module).get("sequence_parallel") for module in model.modules()]
        result = rollout(model, layout, batch, eos_id)
        assert model.training and model.config.sequence_parallel == layout.sequence
        assert [vars(module).get("sequence_parallel") for module in model.modules()] == flags
        loss, gap = loss_and_gap(result)
        loss.backward()
        norm = sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
        again, _ = loss_and_gap(rollout(model, layout, batch, eos_id))
        return gap, norm, abs(float(again - loss))

    for gap, norm, change in on_ranks(folder, LAYOUTS[name], job):
        assert gap < 1e-5 and norm > 0 and change == 0


def test_ends(folder: Path, prompts: list[Prompt], greedy_ids: list[list[int]]) -> None:
    """EOS as the first token, one token at most, and a stop condition, alone and with EOS."""
    tokens = [prompt.token_ids for prompt in prompts]
    first, pair = greedy_ids[1][0], greedy_ids[0][3:5]
    never = min(set(range(VOCAB)) - {token for ids in greedy_ids for token in ids})

    def is_pair(ids: Sequence[int]) -> bool:
        return list(ids[-2:]) == pair

    def job(model: Any, layout: Layout) -> list[Generated]:
        options: dict[str, Any] = {"greedy": True}
        return [
            generate(model, tokens, max_new_tokens=NEW, eos_id=first, **options),
            generate(model, tokens, max_new_tokens=1, eos_id=first, **options),
            generate(
                model, tokens, max_new_tokens=NEW, eos_id=never, stop=lambda ids: list(ids[-2:]) == pair, **options
            ),
            generate(model, [], max_new_tokens=NEW, eos_id=first, **options),
            generate(model, tokens, max_new_tokens=NEW, eos_id=first, temperature=0),
        ]

    eos_first, one_token, stopped, nothing, cold = on_ranks(folder, {}, job)[0]
    cut = [ids[: ids.index(first) + 1] if first in ids else ids for ids in greedy_ids]
    assert eos_first.responses() == cut and cut[1] == [first]
    assert not eos_first.truncated_B[1]
    assert eos_first.truncated_B.tolist() == [first not in ids for ids in greedy_ids]
    assert cold.responses() == cut
    assert one_token.responses() == [ids[:1] for ids in greedy_ids]
    assert one_token.truncated_B.tolist() == [ids[0] != first for ids in greedy_ids]
    assert stopped.responses()[0] == greedy_ids[0][:5] and not stopped.truncated_B[0]
    for ids, whole in zip(stopped.responses(), greedy_ids, strict=True):
        assert ids == whole[: len(ids)] and (len(ids) == NEW or ids[-2:] == pair)
    assert nothing.responses() == [] and nothing.response_BT.shape == (0, NEW)


def test_progress_is_told_and_all_done_is_the_end(
    folder: Path, prompts: list[Prompt], eos_id: int, greedy_ids: list[list[int]]
) -> None:
    """Each position is told; when the last response ends, no further position is computed."""

    def job(model: Any, layout: Layout) -> tuple[list[tuple[int, int]], Mapping[str, float]]:
        told: list[tuple[int, int]] = []
        few = Limits(slots=3)
        rollout(model, layout, prompts, eos_id, limits=few, on_step=lambda done, total: told.append((done, total)))
        return told, rollout(model, layout, [prompts[1]] * 2, greedy_ids[1][0], greedy=True).counts

    told, counts = on_ranks(folder, {}, job)[0]
    assert counts["positions"] == 0 and counts["prefill_passes"] == 1, "the prompt's first token ended both"
    assert counts["prefill_tokens"] == PROMPT_LENGTHS[1], "one prompt, although it was asked twice"
    assert {total for _, total in told} == {len(prompts)}
    done = [count for count, _ in told]
    assert done == sorted(done) and done[-1] == len(prompts) and done[0] < len(prompts)


def test_positions_are_those_of_the_longest_response(
    folder: Path, prompts: list[Prompt], eos_id: int, single: dict[str, Rollout]
) -> None:
    """No row is fed its own prompt token by token, and prompts are not padded. On a pipeline each group of slots
    decodes for itself, at the same time."""
    for name, grouped in (("1", False), ("PP2", True), ("TP2xPP2", False), ("TP2xPP2", True)):
        found = on_ranks(
            folder,
            LAYOUTS[name],
            lambda model, layout, grouped=grouped: rollout(model, layout, prompts, eos_id, grouped=grouped),
        )
        for result in found:
            longest = int(single["plain"].sequences.response_length_B.max())
            assert result.counts["positions"] <= longest - 1
            assert result.counts["prefill_passes"] == 1
            assert result.counts["prefill_tokens"] == sum(PROMPT_LENGTHS)


WAYS: dict[str, dict[str, Any]] = {
    "one slot": {"limits": Limits(slots=1)},
    "chunks of a prompt": {"limits": Limits(prefill_tokens=1)},
    # 24 KiB hold three sequences of 26 tokens of this model: rows wait for pages.
    "little memory": {"limits": Limits(kv_cache_gib=48 / 2**20)},
    "looks every five positions": {"look_every": 5},
    "looks every five positions, few slots": {"look_every": 5, "limits": Limits(slots=2, prefill_tokens=9)},
    "a group for each stage": {"grouped": True},
    "groups of one slot": {"grouped": True, "limits": Limits(slots=2, prefill_tokens=9)},
    "groups, little memory, looks every five positions": {
        "grouped": True,
        "look_every": 5,
        "limits": Limits(kv_cache_gib=48 / 2**20),
    },
}


@pytest.mark.parametrize("name", ["1", "TP2xPP2"])
def test_slots_chunks_memory_and_looks_change_no_response(
    name: str, folder: Path, prompts: list[Prompt], eos_id: int, single: dict[str, Rollout]
) -> None:
    def job(model: Any, layout: Layout) -> dict[str, Rollout]:
        return {way: rollout(model, layout, prompts, eos_id, **options) for way, options in WAYS.items()}

    for results in on_ranks(folder, LAYOUTS[name], job):
        for way, result in results.items():
            assert responses(result) == responses(single["plain"]), way
            assert torch.equal(result.truncated_B, single["plain"].truncated_B), way
            assert (result.sampler_logp_BT - single["plain"].sampler_logp_BT).abs().max() < 1e-5, way


def test_samples_of_one_prompt_are_those_of_separate_prompts(folder: Path, prompts: list[Prompt], eos_id: int) -> None:
    """Four responses to each prompt share its prefill and its pages, and are what each would be alone."""
    tokens = [prompts[row].token_ids for row in (5, 5, 0, 5, 5, 0, 3)]
    noise = sampling_uniforms(SEED, "samples", 1, range(len(tokens)), NEW)
    options: dict[str, Any] = {"max_new_tokens": NEW, "eos_id": eos_id}

    def job(model: Any, layout: Layout) -> tuple[Generated, list[list[list[int]]], Generated]:
        together = generate(model, tokens, noise, **options)
        alone = [generate(model, [ids], noise[row : row + 1], **options).responses() for row, ids in enumerate(tokens)]
        return together, alone, generate(model, tokens, noise, limits=Limits(slots=2), **options)

    together, alone, few = on_ranks(folder, {}, job)[0]
    assert [[ids] for ids in together.responses()] == alone
    assert few.responses() == together.responses()
    assert together.counts["prefill_tokens"] == sum(len(ids) for ids in set(tokens))
    assert len({tuple(ids) for ids in together.responses()}) == len(tokens), "each has its own uniforms"


def test_stop_strings_between_two_looks(folder: Path, prompts: list[Prompt], greedy_ids: list[list[int]]) -> None:
    """What was generated after a stop string is dropped, and so is an end id that came later."""
    pair, tokens = greedy_ids[0][3:5], [prompt.token_ids for prompt in prompts]
    options: dict[str, Any] = {
        "greedy": True, "max_new_tokens": NEW, "stop": lambda ids: list(ids[-2:]) == pair,
    }  # fmt: skip

    def job(model: Any, layout: Layout) -> list[Generated]:
        return [generate(model, tokens, eos_id=greedy_ids[0][6], look_every=look, **options) for look in (1, 4, NEW)]

    each, often, late = on_ranks(folder, {}, job)[0]
    assert each.responses()[0] == greedy_ids[0][:5] and not each.truncated_B[0]
    for other in (often, late):
        assert other.responses() == each.responses()
        assert torch.equal(other.truncated_B, each.truncated_B)
        assert torch.equal(other.response_BT, each.response_BT)
        torch.testing.assert_close(other.sampler_logp_BT, each.sampler_logp_BT, rtol=0, atol=1e-5)


def test_fewer_prompts_than_replicas(folder: Path, prompts: list[Prompt], eos_id: int) -> None:
    """The replica without prompts takes part in the exchange all the same."""
    first, second = on_ranks(folder, LAYOUTS["DP2"], lambda model, layout: rollout(model, layout, prompts[:1], eos_id))
    assert responses(first) == responses(second) and dict(first.counts) == dict(second.counts)
    assert first.counts["prefill_tokens"] == PROMPT_LENGTHS[0]
