"""From Hugging Face folders through training and back: the trained policy generates in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gipo_mc.algorithms.advantages import response_mask
from gipo_mc.config import Config, DataConfig
from gipo_mc.data.synthetic import builtin_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.parallel.timing import Phases
from gipo_mc.rl import gi_ppo
from gipo_mc.rl.evaluate import evaluate_policy
from gipo_mc.rl.metrics import worst_domain
from gipo_mc.rl.rollout import roll_out, take_prompts
from gipo_mc.rl.scoring import score
from gipo_mc.rl.setup import restore, set_up
from gipo_mc.run.session import Session, open_session
from gipo_mc.supervised import dpo
from gipo_mc.tools.conversion import to_hf
from tests.chat import chat_tokenizer
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import read_metrics, rl_config, save_models


def _train_and_export(rank: int, folder: Path, models: dict[str, str], layout: dict[str, Any]) -> Any:
    config = rl_config(folder, models, "eval.prompts=2", "policy.lr=0.01", "algorithm.epochs=1", **layout)
    gi_ppo.train(config)
    # The same command again finds the run finished, and holds the trained policy.
    with open_session(config, "train_gi_ppo") as session:
        setup = set_up(session)
        restore(session, setup)
        prompts = take_prompts(setup.prompts, config, 0)[:6]
        rollout = roll_out(setup.rollout_engine, setup.tokenizer, prompts, config, 0, greedy=True)
        start, layout_now = session.start, session.layout
    to_hf(str(folder / "run"), folder / "exported", layout_now)
    return start, rollout.sequences


@pytest.mark.parametrize(("name", "family"), [("1", "llama"), ("TP2xPP2", "llama"), ("TP2xPP2", "qwen3")])
def test_the_trained_policy_generates_the_same_in_transformers(tmp_path: Path, name: str, family: str) -> None:
    models = save_models(tmp_path / "models", model_type=family)
    layout = LAYOUTS[name]
    ranks = layout.get("tensor", 1) * layout.get("pipeline", 1)
    start, sequences = run_ranks(_train_and_export, ranks, tmp_path, models, layout)[0]
    assert start == 2 and [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1, 2]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    before = AutoModelForCausalLM.from_pretrained(models["policy"], dtype=torch.float32).state_dict()
    assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()), (
        "nothing was trained"
    )
    for row in range(len(sequences)):
        prompt, length = int(sequences.prompt_length_B[row]), int(sequences.response_length_B[row])
        ids = sequences.tokens_BL[row : row + 1, :prompt]
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert generated[0, prompt:].tolist() == sequences.tokens_BL[row, prompt : prompt + length].tolist()


def _evaluate(rank: int, folder: Path, models: dict[str, str]) -> dict[str, float]:
    with open_session(rl_config(folder, models, "eval.prompts=1"), "test") as session:
        return evaluate_policy(set_up(session), session.config)


def _evaluate_against_another_reference(rank: int, folder: Path, models: dict[str, str]) -> Any:
    """The metrics, and from the same responses: their KL by `score` and their gold rewards."""
    models = {**models, "reference": models["other"], "reward": "python:gipo_mc.data.synthetic:proxy"}
    del models["other"]
    held_out = "data.evaluation=[builtin:easy,builtin:ood]"
    with open_session(rl_config(folder, models, "eval.prompts=11", held_out), "test") as session:
        setup, config = set_up(session), session.config
        found = evaluate_policy(setup, config)
        assert setup.held_out is not None and setup.gold is not None
        domain_of = list(setup.held_out.domain_of)
        rows = [domain_of.index(name) + row for name in ("easy", "ood") for row in range(11)]
        prompts = [setup.held_out[row] for row in rows]
        rollout = roll_out(setup.rollout_engine, setup.tokenizer, prompts, config, 0, purpose="evaluation")
        scores = score(setup.models, prompts, rollout, config, Phases(session.layout))
        mask_BT = response_mask(rollout.sequences.response_length_B, rollout.width)
        kl_B = ((scores.behaviour_logp_BT - scores.reference_logp_BT) * mask_BT).sum(1)
        return found, kl_B, setup.gold(prompts, rollout)


def test_evaluation_tells_kl_and_tails_by_domain(tmp_path: Path) -> None:
    models = save_models(tmp_path / "models")
    models["other"] = save_models(tmp_path / "others", seed=4)["policy"]
    ((found, kl_B, gold_B),) = run_ranks(_evaluate_against_another_reference, 1, tmp_path / "one", models)
    assert found["eval/kl/mean"] == pytest.approx(float(kl_B.mean()), rel=1e-5) and found["eval/kl/mean"] > 0.1
    assert found["eval/kl/domain/ood"] == pytest.approx(float(kl_B[11:].mean()), rel=1e-5)
    assert found["gold/lowest_tenth/easy"] == pytest.approx(float(gold_B[:11].sort().values[:2].mean()))
    assert "worst/domain_gold" not in found, "of these domains training has one"
    assert found["gold/lowest_tenth"] == pytest.approx(float(gold_B.sort().values[:3].mean()))
    assert {f"{r}/kurtosis/{d}" for r in ("gold", "eval/reward") for d in ("easy", "ood")} <= set(found)


def test_the_worst_domain_is_one_that_is_trained_on() -> None:
    values_B, domains = torch.tensor([0.5, 0.2, 0.9, -1.0]), ["a", "b", "a", "unasked"]
    assert worst_domain(values_B, domains, "worst", ("a", "b")) == {"worst": pytest.approx(0.2)}
    assert worst_domain(values_B, domains, "worst", ("a",)) == {}
    for trained in ((), ("others",)):  # nothing tells the domains apart
        assert worst_domain(values_B, domains, "worst", trained) == {"worst": -1.0}


def test_fewer_evaluation_prompts_than_replicas(tmp_path: Path) -> None:
    models = save_models(tmp_path / "models")
    (alone,) = run_ranks(_evaluate, 1, tmp_path / "one", models)
    for found in run_ranks(_evaluate, 2, tmp_path / "two", models):
        assert found == pytest.approx(alone, rel=1e-4)


def _stand_in(**data: Any) -> Any:
    return SimpleNamespace(config=Config(data=DataConfig(**data)), said=[], fixed=SimpleNamespace(frozen={}, data={}))


def _read(rank: int, rows: list[str]) -> str:
    """Rank 1 reads the last of `rows`, rank 0 the first."""
    session = _stand_in()
    data = SimpleNamespace(sources=lambda named_domains: [{"sha256": rows[-rank]}], warnings=list)
    try:
        Session.trains_on(session, "data.prompts", data, builtin_tokenizer())  # type: ignore[arg-type]
    except DataError as error:
        return str(error)
    return str(session.fixed.data)


def test_ranks_that_read_different_rows_do_not_train(tmp_path: Path) -> None:
    """A file that is replaced while a job starts, or nodes with copies of their own."""
    assert run_ranks(_read, 2, ["a", "a"]) == ["{'data.prompts': [{'sha256': 'a'}]}"] * 2
    for said in run_ranks(_read, 2, ["a", "b"]):
        assert "The ranks have read different rows of data.prompts" in said


def test_a_tokenizer_is_compared_as_it_is_read(tmp_path: Path) -> None:
    """The template ends turns with a token that only the run calls its EOS; the base model's folder does not yet."""
    base, run = tmp_path / "base", tmp_path / "run"
    for folder, eos in ((base, "<|end|>"), (run, "<|turn|>")):
        chat_tokenizer(eos_token=eos, pad_token="<|reserved_0|>").save_pretrained(folder)
    source: Any = SimpleNamespace(folder=base, name="base", shape=SimpleNamespace(vocab_size=261))
    for template in (True, False):
        session = _stand_in(chat_template=template)
        session.warn = session.said.append
        tokenizer = Session.tokenizer(session, source, str(run))
        assert [text for text in session.said if "a tokenizer of its own" in text][:1] == (
            [] if template else [f"base has a tokenizer of its own, which gives the ids of {run} other meanings."]
        )
        if template:
            dpo._check_reads_the_same(source, tokenizer, session.config)
        else:
            with pytest.raises(ConfigError, match="another tokenizer than the policy"):
                dpo._check_reads_the_same(source, tokenizer, session.config)


def test_a_save_waits_for_the_one_before_and_its_copies_are_no_grace_time() -> None:
    """Copies on the host of two checkpoints at once would be twice what a model takes."""
    said: list[str] = []

    @contextmanager
    def saving() -> Iterator[None]:
        said.append("begin")
        yield
        said.append("end")

    def copied(role: str) -> dict[str, Any]:
        said.append(f"copy {role}")
        return {}

    session: Any = SimpleNamespace(
        config=Config(),
        logger=None,
        watch=SimpleNamespace(saving=saving),
        fixed=SimpleNamespace(stored=dict),
        saves=SimpleNamespace(finish=lambda: said.append("finish"), save=lambda step, *of: said.append(f"save {step}")),
    )
    engine: Any = SimpleNamespace(snapshot=copied, model=SimpleNamespace(head="lm"))
    Session.save(session, 3, {"policy": engine}, {}, {})
    assert said == ["finish", "begin", "copy policy", "end", "save 3"]
