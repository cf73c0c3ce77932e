"""The loop as a whole: iterations that train little, schedules, prompts that come again, a reference that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer
from gipo_mc.errors import GipoError
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.rollout import roll_out, sampling_noise, take_prompts
from gipo_mc.rl.setup import restore, set_up
from gipo_mc.run.session import open_session
from tests.ranks import run_ranks
from tests.runs import read_metrics, rl_config, save_models

FAST = ["eval.prompts=0", "rollout.batch_size=12", "algorithm.mini_batch_size=6", "algorithm.epochs=1"]
FAST += ["parallel.micro_batch_size=12"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _train(rank: int, folder: Path, models: dict[str, str], overrides: list[str]) -> tuple[int, str]:
    try:
        gi_ppo.train(rl_config(folder, models, *FAST, *overrides))
    except GipoError as error:
        return error.exit_code, str(error)
    return 0, ""


def test_iterations_that_train_nothing_are_no_skipped_steps(tmp_path: Path, models: dict[str, str]) -> None:
    """The classifier rests, there is no critic, and the policy waits: no gradient was bad."""
    rests = ["algorithm.name=gi_rloo", "algorithm.classifier_every=5", "algorithm.critic_warmup=6", "run.iterations=7"]
    assert run_ranks(_train, 1, tmp_path, models, rests) == [(0, "")]
    rows = read_metrics(tmp_path / "run")
    trained = [sorted(name for name in row if name.endswith("/grad_norm")) for row in rows]
    classifier = ["classifier/grad_norm"]
    assert trained == [classifier, [], [], [], [], classifier, ["policy/grad_norm"]]


def test_a_run_that_ends_before_its_policy_is_trained_says_so(tmp_path: Path, models: dict[str, str]) -> None:
    for warmup, said in ((2, True), (1, False)):
        folder = tmp_path / str(warmup)
        words = ["run.iterations=2", f"algorithm.critic_warmup={warmup}"]
        assert run_ranks(_train, 1, folder, models, words) == [(0, "")]
        warnings = folder / "run" / "warnings.jsonl"
        found = warnings.read_text() if warnings.exists() else ""
        assert (f"algorithm.critic_warmup={warmup} has it wait" in found) == said


def test_a_schedule_ends_with_the_steps_that_are_taken(tmp_path: Path, models: dict[str, str]) -> None:
    """A classifier that is trained in two of three iterations, with two epochs of two steps: eight steps, not six."""
    linear = ["critic.schedule=linear", "policy.schedule=linear", "algorithm.critic_warmup=1", "run.iterations=3"]
    rests = ["algorithm.group_trunk=own", "algorithm.classifier_every=2", "algorithm.critic_epochs=2", *linear]
    assert run_ranks(_train, 1, tmp_path, models, rests) == [(0, "")]
    last = [
        {name: row.get(f"{name}/lr") for name in ("critic", "classifier", "policy")}
        for row in read_metrics(tmp_path / "run")
    ]
    # The rate of an iteration's last step, of a linear decay from 1e-3 to 0 over all steps of a model.
    assert [row["critic"] for row in last] == pytest.approx([1e-3 * (1 - step / 12) for step in (3, 7, 11)])
    assert last[1]["classifier"] is None and last[0]["policy"] is None
    assert [last[0]["classifier"], last[2]["classifier"]] == pytest.approx([1e-3 * (1 - 3 / 8), 1e-3 * (1 - 7 / 8)])
    assert [last[1]["policy"], last[2]["policy"]] == pytest.approx([1e-3 * (1 - 1 / 4), 1e-3 * (1 - 3 / 4)])


def _two_iterations(rank: int, folder: Path, models: dict[str, str]) -> Any:
    config = rl_config(folder, models, *FAST, "data.max_rows=5", "algorithm.name=ppo")
    with open_session(config, "test") as session:
        setup = set_up(session)
        state = restore(session, setup)
        policy, reference = (m.model for m in (setup.models.policy, setup.models.reference))
        before = {name: value.clone() for name, value in reference.state_dict().items() if value is not None}
        shared = {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in reference.parameters()}
        kl = []
        for step in range(2):
            state, metrics = gi_ppo.iterate(session, setup, state, step)
            kl.append(abs(metrics["kl/mean"]))
        after = reference.state_dict()
        same = all(torch.equal(after[name], value) for name, value in before.items())
        prompts = take_prompts(setup.prompts, config, 0)
        noise = sampling_noise(1, "rollout", 0, prompts, 4)
        return len(shared), same, kl, [prompt.index for prompt in prompts], len({tuple(row) for row in noise.tolist()})


def test_the_reference_stays_where_the_policy_began(tmp_path: Path, models: dict[str, str]) -> None:
    """Both come from one folder: a reference that shares its tensors with the policy keeps the KL at 0 for ever."""
    ((shared, same, kl, index, streams),) = run_ranks(_two_iterations, 1, tmp_path, models)
    assert (shared, same) == (0, True) and kl[0] == 0.0 and kl[1] > 1e-4
    # Five prompts in a batch of twelve: one that comes again is answered anew.
    assert len(index) == 12 and len(set(index)) == 5 and streams == 12


def _rollout(rank: int, folder: Path, models: dict[str, str]) -> Any:
    config = rl_config(folder, models, *FAST, "algorithm.name=ppo")
    with open_session(config, "test") as session:
        setup = set_up(session)
        prompts = take_prompts(setup.prompts, config, 0)
        found = roll_out(setup.rollout_engine, setup.tokenizer, prompts, config, 0)
        _, metrics = gi_ppo.iterate(session, setup, restore(session, setup), 0)
    return found.sequences.tokens_BL, setup.models.policy.model.vocab_size, len(setup.tokenizer), metrics


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(tmp_path: Path) -> None:
    """Models fill their vocabulary up to a round number. Here most of it has no token, and training goes on: its
    log-probs and the sampler's are those of the whole model."""
    torch.manual_seed(1)
    wide = LlamaForCausalLM(LlamaConfig(**builtin_llama_config() | {"vocab_size": 64}))
    wide.save_pretrained(tmp_path / "wide")
    builtin_tokenizer().save_pretrained(tmp_path / "wide")
    models = {"policy": str(tmp_path / "wide"), "reward": "python:gipo_mc.data.synthetic:proxy"}
    ((tokens, rows, ids, metrics),) = run_ranks(_rollout, 1, tmp_path, models)
    assert rows == 64 and int(tokens.max()) < ids < 30
    assert metrics["rollout/logp_difference"] < 1e-4
