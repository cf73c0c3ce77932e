"""Generation on every layout: greedy against transformers, sampling against itself and the training forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gipo_mc.errors import ConfigError, DataError, NumericsError
from gipo_mc.generation.assemble import assemble_rollout, sampling_uniforms
from gipo_mc.generation.engine import Generated, Sampling
from gipo_mc.generation.megatron import MegatronEngine
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.weights.hf_load import load_hf_weights
from gipo_mc.parallel import runtime
from gipo_mc.parallel.layout import Layout, split_rows
from gipo_mc.types import Prompt, Rollout
from tests.ranks import LAYOUTS, parallel_config, run_ranks

VOCAB, NEW = 101, 12  # 101: no layout divides it, so padding is always there
SEED, STEP = 7, 3
PROMPT_LENGTHS = (3, 9, 1, 5, 5, 14, 2)
FOUR_RANKS = {"TP2xPP2+SP": {"tensor": 2, "pipeline": 2, "sequence": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with grouped queries whose logits are spread enough to have clear favourites."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.25,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(5)
    return [
        Prompt(index=100 + 3 * row, token_ids=tuple(rng.integers(0, VOCAB, n).tolist()), domain=f"d{row % 2}", text="")
        for row, n in enumerate(PROMPT_LENGTHS)
    ]


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def greedy_ids(reference: LlamaForCausalLM, prompts: list[Prompt]) -> list[list[int]]:
    """transformers' own greedy continuation, one prompt at a time and without an end."""
    return [hf_greedy(reference, prompt.token_ids, eos_id=None) for prompt in prompts]


@pytest.fixture(scope="module")
def eos_id(greedy_ids: list[list[int]]) -> int:
    """A token that some greedy responses reach early and others never."""
    early = [token for ids in greedy_ids for token in ids[:6]]
    return max((t for t in set(early) if not all(t in ids for ids in greedy_ids)), key=early.count)


def hf_greedy(model: LlamaForCausalLM, ids: tuple[int, ...], eos_id: int | None) -> list[int]:
    tokens = torch.tensor([ids])
    output = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=0,
    )
    return output[0, len(ids) :].tolist()


Job = Callable[[Any, Layout], Any]


def on_ranks(folder: Path, layout: dict[str, Any], job: Job) -> list[Any]:
    """`job(model, layout)` on every rank of a layout, the model loaded from `folder`."""
    config, ranks = parallel_config(**layout)

    def rank_main(_: int) -> Any:
        here = runtime.initialize(config, "cpu")
        model = build_model(read_shape(folder), here, head="lm", dtype=torch.float32, trainable=True)
        load_hf_weights(model, folder)
        return job(model, here)

    return run_ranks(rank_main, ranks)


def generate(
    model: Any, tokens: Sequence[Sequence[int]], uniforms_BT: Any = None, micro_batch: int = 0, on_step: Any = None,
    **sampling: Any,
) -> Generated:  # fmt: skip
    return MegatronEngine(model, micro_batch).generate(tokens, Sampling(**sampling), uniforms_BT, on_step)


def rollout(model: Any, layout: Layout, prompts: list[Prompt], eos_id: int, **options: Any) -> Rollout:
    """Generate this replica's block, as a training iteration does, and bring all blocks together."""
    own = [prompts[row] for row in split_rows(len(prompts), layout.data)[layout.data_rank]]
    count = options.pop("max_new_tokens", NEW)
    generated = generate(
        model,
        [prompt.token_ids for prompt in own],
        max_new_tokens=count,
        eos_id=eos_id,
        uniforms_BT=sampling_uniforms(SEED, "rollout", STEP, [prompt.index for prompt in own], count),
        **options,
    )
    return assemble_rollout(prompts, generated, layout, pad_id=0)


def responses(result: Rollout) -> list[list[int]]:
    sequences = result.sequences
    return [
        row[p : p + r]
        for row, p, r in zip(
            sequences.tokens_BL.tolist(), sequences.prompt_length_B.tolist(), sequences.response_length_B.tolist()
        )
    ]


SAMPLED: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm, top-p": {"temperature": 1.4, "top_p": 0.8},
    "cool, top-k, micro-batches": {"temperature": 0.8, "top_k": 6, "micro_batch": 3},
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
    """Alone, in another order, beside others, in micro-batches: token ids are identical."""
    rng = np.random.default_rng(0)
    batches = [[row] for row in range(len(prompts))] + [rng.permutation(len(prompts)).tolist() for _ in range(3)]

    def job(model: Any, layout: Layout) -> list[list[list[int]]]:
        chosen = [[prompts[row] for row in rows] for rows in batches]
        return [responses(rollout(model, layout, batch, eos_id, micro_batch=4)) for batch in chosen]

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

    def job(model: Any, layout: Layout) -> tuple[list[tuple[int, int]], list[int]]:
        told: list[tuple[int, int]] = []
        rollout(model, layout, prompts, eos_id, micro_batch=3, on_step=lambda done, total: told.append((done, total)))
        lengths: list[int] = []
        model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        rollout(model, layout, [prompts[1]] * 2, greedy_ids[1][0], greedy=True)
        return told, lengths

    told, lengths = on_ranks(folder, {}, job)[0]
    assert lengths == [PROMPT_LENGTHS[1]], "one pass over the prompt, whose first token ended it"
    assert {total for _, total in told} == {len(prompts)}
    done = [count for count, _ in told]
    assert done == sorted(done) and done[-1] == len(prompts) and done[0] < len(prompts)


def test_refusals_come_before_anything_is_computed(folder: Path) -> None:
    def job(model: Any, layout: Layout) -> list[tuple[str, str]]:
        model.forward = None  # a forward pass would fail
        attempts: list[tuple[list[list[int]], dict[str, Any]]] = [
            ([[1], []], {}),
            ([[1] * 21], {}),
            ([[1, VOCAB]], {}),
            ([[-1, 1]], {}),
            ([[1]], {"max_new_tokens": 0}),
            ([[1]], {"eos_id": VOCAB}),
            ([[1]], {"greedy": False}),
            ([[1]], {"greedy": False, "uniforms_BT": np.zeros((2, NEW))}),
            ([[1]], {"temperature": -1.0, "top_p": 0.0, "top_k": -1}),
            ([[1]], {"micro_batch": -1}),
        ]
        errors = []
        for tokens, options in attempts:
            merged = {"max_new_tokens": NEW, "eos_id": 0, "greedy": True} | options
            try:
                generate(model, tokens, **merged)
            except (ConfigError, DataError) as error:
                errors.append((type(error).__name__, str(error)))
        return errors

    errors = on_ranks(folder, {}, job)[0]
    assert [name for name, _ in errors] == ["DataError"] * 4 + ["ConfigError"] * 6
    texts = [text for _, text in errors]
    assert "Prompt 1 of the batch has no tokens" in texts[0]
    assert "21 tokens" in texts[1] and "context of 32" in texts[1] and "rollout.max_new_tokens" in texts[1]
    assert f"token id {VOCAB}," in texts[2] and "token id -1," in texts[3]
    assert all(key in texts[8] for key in ("temperature", "top_p", "top_k"))
    assert "rollout.micro_batch_size=-1" in texts[9]


def test_broken_weights_are_one_error_on_every_rank(folder: Path, prompts: list[Prompt], eos_id: int) -> None:
    """NaN in one rank's shard of the last stage stops all ranks with the same sentence, and modes are restored."""

    def job(model: Any, layout: Layout) -> str:
        model.train()
        if layout.is_last_stage and layout.tensor_rank == 1:
            with torch.no_grad():
                next(p for name, p in model.named_parameters() if "output_layer" in name)[0, 0] = torch.nan
        with pytest.raises(NumericsError) as caught:
            rollout(model, layout, prompts, eos_id)
        assert model.training
        return str(caught.value)

    messages = on_ranks(folder, LAYOUTS["TP2xPP2"], job)
    assert len(set(messages)) == 1 and "not finite" in messages[0]


def test_assemble_refuses_a_foreign_block(prompts: list[Prompt]) -> None:
    layout = Layout(2, 0, 1, 1, 2, 0, 0, 0, False, torch.device("cpu"))
    count = len(prompts)
    own = Generated(
        torch.zeros(count, 3, dtype=torch.int64),
        torch.ones(count, dtype=torch.int64),
        torch.zeros(count, 3),
        torch.zeros(count, dtype=torch.bool),
    )
    with pytest.raises(ConfigError, match=r"owns 4 of 7 prompts, but 7 responses"):
        assemble_rollout(prompts, own, layout, pad_id=0)
