"""The proof itself, at every layout: logits and rewards of transformers, and weights there and back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from gipo_mc.config import ParallelConfig
from gipo_mc.errors import ConfigError
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import MicroBatch
from gipo_mc.models.weights.hf_export import export_hf_weights
from gipo_mc.models.weights.hf_load import load_hf_weights
from gipo_mc.models.weights.parity import Check, check_checkpoint
from gipo_mc.parallel import runtime
from tests.models.tiny import VARIANTS, save_lm, save_reward
from tests.ranks import LAYOUTS, parallel_config, run_ranks

FOUR_RANKS_SP = {"tensor": 2, "pipeline": 2, "sequence": True}


def check(rank: int, parallel: ParallelConfig, folder: Path) -> list[Check]:
    return check_checkpoint(folder, runtime.initialize(parallel, "cpu"), length=37)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_weights_agree_with_transformers_at_every_layout(name: str, tmp_path: Path) -> None:
    dtype = torch.float32 if name == "tied" else torch.bfloat16
    save_lm(tmp_path, dtype=dtype, shard="20KB", **VARIANTS[name])
    for layout, sizes in (LAYOUTS | {"TP2xPP2+SP": FOUR_RANKS_SP}).items():
        parallel, ranks = parallel_config(**sizes)
        results = run_ranks(check, ranks, parallel, tmp_path)
        assert all(result == results[0] for result in results), "every rank gets the same answer"
        assert len(results[0]) == 4
        assert all(line.passed for line in results[0]), (layout, results[0])


def test_rewards_agree_with_transformers(tmp_path: Path) -> None:
    save_reward(tmp_path, dtype=torch.float16, **VARIANTS["llama3"])
    parallel, ranks = parallel_config(**LAYOUTS["TP2xPP2"])
    result = run_ranks(check, ranks, parallel, tmp_path)[0]
    assert "rewards" in result[0].what and all(line.passed for line in result)


def scores(rank: int, parallel: ParallelConfig, folder: Path) -> list[Check]:
    found = check_checkpoint(folder, runtime.initialize(parallel, "cpu"), length=37)
    return [line for line in found if line.what.startswith("scores")]


@pytest.mark.parametrize("pad", [7, 0, None], ids=["pad is EOS", "another pad", "no pad"])
def test_rewards_are_read_where_transformers_reads_them(pad: int | None, tmp_path: Path) -> None:
    """At the token before EOS, where EOS is the pad id. Half of the rows end with EOS, and micro-batches hold three."""
    save_reward(tmp_path, pad_token_id=pad, eos_token_id=7)
    for name in ("1", "TP2xPP2", "DP2"):
        parallel, ranks = parallel_config(**LAYOUTS[name])
        for alone, padded in run_ranks(scores, ranks, parallel, tmp_path):
            assert alone.passed and padded.passed, (name, alone, padded)
            assert "half with an end" in alone.found
            assert ("not possible there" in padded.found) == (pad is None)


def test_a_reward_that_is_read_elsewhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_reward(tmp_path, pad_token_id=7, eos_token_id=7)
    monkeypatch.setattr(MicroBatch, "reward_B", lambda batch, pad_id: batch.last_B)  # as it was once
    parallel, ranks = parallel_config()
    found = run_ranks(scores, ranks, parallel, tmp_path)[0]
    assert len(found) == 2, "alone and padded"
    for line in found:
        assert not line.passed and "4 of them differ" in line.found


def test_what_transformers_cannot_read_is_a_failed_check(tmp_path: Path) -> None:
    """A pad id beyond the vocabulary: transformers does not build such a model."""
    save_reward(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"pad_token_id": 5000}))
    first = run_ranks(check, 1, parallel_config()[0], tmp_path)[0][0]
    assert (first.what, first.passed) == ("read by transformers", False) and "Padding_idx" in first.found


def test_an_end_id_that_the_model_cannot_say_ends_nothing(tmp_path: Path) -> None:
    save_lm(tmp_path, eos_token_id=7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7, 5000]}))
    found = run_ranks(check, 1, parallel_config()[0], tmp_path)[0]
    (ends,) = [line for line in found if line.what.startswith("end ids")]
    assert ends.passed and ends.found == "here 7, 9; there 9, 7"


def test_a_model_that_never_ends_in_transformers_fails_the_check(tmp_path: Path) -> None:
    """generation_config.json takes the place of the EOS in config.json, and names none that the model can say."""
    save_lm(tmp_path, eos_token_id=7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5000]}))
    found = run_ranks(check, 1, parallel_config()[0], tmp_path)[0]
    (ends,) = [line for line in found if line.what.startswith("end ids")]
    assert not ends.passed and ends.found == "here 7; there none"


def with_readers(rank: int, folder: Path, readers: list[str]) -> list[Check]:
    layout = runtime.initialize(parallel_config()[0], "cpu")
    return check_checkpoint(folder, layout, length=9, readers=readers)


def test_other_interpreters_read_the_folder_as_well(tmp_path: Path) -> None:
    save_reward(tmp_path, pad_token_id=7, eos_token_id=7)
    found = run_ranks(with_readers, 1, tmp_path, [sys.executable, "/bin/false"])[0]
    own, other = found[:3], found[3:6]
    assert other == own and all(line.passed for line in own)
    assert found[6] == Check("read by /bin/false", "it ended with 1", False)


def test_a_reader_that_is_none_is_an_error(tmp_path: Path) -> None:
    def attempt(rank: int) -> str:
        with pytest.raises(ConfigError) as error:
            with_readers(rank, save_lm(tmp_path), ["/nowhere/python"])
        return str(error.value)

    assert "--reader /nowhere/python cannot be run" in run_ranks(attempt, 1)[0]


def check_with_a_wrong_weight(rank: int, parallel: ParallelConfig, folder: Path, name: str) -> list[Check]:
    """As `check`, but one element of one parameter is wrong on one rank after loading."""
    from gipo_mc.models.weights import parity

    def load(model: torch.nn.Module, folder: Path) -> None:
        load_hf_weights(model, folder)  # type: ignore[arg-type]
        parameters = dict(model.named_parameters())
        if rank == 1:
            parameters[name].data.view(-1)[5] += 0.5

    parity.load_hf_weights = load  # type: ignore[assignment]
    return check_checkpoint(folder, runtime.initialize(parallel, "cpu"), length=37)


def test_a_single_wrong_weight_is_found_on_every_rank(tmp_path: Path) -> None:
    save_lm(tmp_path)
    parallel, ranks = parallel_config(tensor=2)
    for result in run_ranks(
        check_with_a_wrong_weight, ranks, parallel, tmp_path, "decoder.layers.1.mlp.linear_fc2.weight"
    ):
        assert [line.passed for line in result] == [False, True, False, True]
        assert "down_proj" in result[2].found


def export(rank: int, parallel: ParallelConfig, source: Path, target: Path, head: str) -> None:
    layout = runtime.initialize(parallel, "cpu")
    shape = read_shape(source)
    model = build_model(shape, layout, head=head, dtype=torch.float32, trainable=True)  # type: ignore[arg-type]
    load_hf_weights(model, source)
    export_hf_weights(model, target, shard_bytes=20_000)


def test_transformers_loads_and_generates_from_what_is_exported(tmp_path: Path) -> None:
    source, target = save_lm(tmp_path / "in", **VARIANTS["llama3"]), tmp_path / "out"
    parallel, ranks = parallel_config(**LAYOUTS["TP2xPP2"])
    run_ranks(export, ranks, parallel, source, target, "lm")
    assert len(list(target.glob("model-*.safetensors"))) > 2, "sharded by size"
    prompt = torch.tensor([[5, 6, 7]])
    one, other = (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).generate(
            prompt, max_new_tokens=8, do_sample=False
        )
        for folder in (source, target)
    )
    assert torch.equal(one, other)


def test_a_reward_model_exported_by_two_stages_is_transformers_own(tmp_path: Path) -> None:
    source, target = save_reward(tmp_path / "in"), tmp_path / "out"
    parallel, ranks = parallel_config(pipeline=2)
    run_ranks(export, ranks, parallel, source, target, "reward")
    tokens = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 0]])
    one, other = (
        LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32)(tokens).logits
        for folder in (source, target)
    )
    assert one.shape == (2, 1) and torch.equal(one, other)
