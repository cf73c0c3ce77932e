"""Group-DPO: DPO where it should be, the same in every layout, weights that survive a restart, and groups inferred."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from gipo_mc.algorithms.group_dpo import next_weights
from gipo_mc.config import Config
from gipo_mc.data import synthetic
from gipo_mc.errors import ConfigError, GipoError
from gipo_mc.rl import gi_ppo
from gipo_mc.run import checkpoint
from gipo_mc.supervised import dpo
from gipo_mc.supervised.group_dpo import GroupDPOTask
from gipo_mc.supervised.loop import training_rows
from tests.ranks import LAYOUTS, run_ranks
from tests.runs import global_tensors, read_metrics, rl_config, save_models
from tests.supervised.test_dpo import PAIRS, SEED, TOLERANCE, _config, _error, _log_probs, _run

ROBUST = ("dpo.groups_from=domain", "dpo.group_step=2.0")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def _train(rank: int, config: Config) -> dict[str, Any]:
    """How a run ended, and what its group-DPO task held after each step on this rank."""
    seen: dict[str, Any] = {"weights": []}
    after_step, prepare = GroupDPOTask.after_step, GroupDPOTask.prepare

    def prepared(self: GroupDPOTask, *args: Any) -> None:
        if self._classifier:
            head = getattr(self._classifier[0].model, "group_head", None)
            seen["head"] = head.output.weight.clone() if head else None
            seen["reads"] = self._classifier[1]
        prepare(self, *args)
        seen["values"], seen["share"], seen["freed"] = self._values[False], self._share_M, self._classifier is None

    def stepped(self: GroupDPOTask, *args: Any) -> dict[str, float]:
        metrics = after_step(self, *args)
        seen["weights"].append(list(self._weight_M))
        return metrics

    GroupDPOTask.after_step, GroupDPOTask.prepare = stepped, prepared  # type: ignore[method-assign]
    try:
        dpo.train(config)
    except GipoError as error:
        return seen | {"code": error.exit_code, "said": str(error)}
    return seen | {"code": 0, "said": ""}


def _numbers(run: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run)
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "padding/"))} for row in rows]


def _end(folder: Path, step: int) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], dict[str, Any]]:
    path = folder / "run" / f"checkpoints/step_{step:08d}"
    return _numbers(folder / "run"), *global_tensors(path), checkpoint.load_state(path)


# ------------------------------------------------------------------------------------------------------ known domains
@pytest.mark.parametrize(
    ("data", "overrides"),
    [("builtin", ["dpo.groups_from=domain", "dpo.group_step=0"]), ("builtin:easy", list(ROBUST))],
)
def test_step_0_and_one_group_are_dpo_bit_for_bit(
    tmp_path: Path, models: dict[str, str], data: str, overrides: list[str]
) -> None:
    ends = []
    for name, more in (("plain", []), ("grouped", overrides)):
        config = _config(tmp_path / name, models, "run.iterations=4", f"data.preferences=[{data}]", *more)
        assert [seen["code"] for seen in run_ranks(_train, 1, config)] == [0]
        ends.append(_end(tmp_path / name, 4))
    (rows, tensors, state), (own_rows, own_tensors, own_state) = ends
    assert all(row.items() <= own.items() for row, own in zip(rows, own_rows, strict=True))
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, own_tensors[name])] == []
    assert "group_weights" not in state and len(own_state["group_weights"]) == (2 if data == "builtin" else 1)
    said = (tmp_path / "grouped" / "run" / "warnings.jsonl").exists()
    assert said == (data == "builtin:easy"), "one group is worth a warning"


def test_a_step_is_the_weighted_one_of_transformers(tmp_path: Path, models: dict[str, str]) -> None:
    """Parameters held still: alpha moves by the same losses at each step, and the third gradient is weighted by it."""
    config = _config(tmp_path, models, "run.iterations=3", "dpo.loss=ipo", "dpo.group_step=0.05", *ROBUST[:1])
    rows, gradients = _run(config)
    share = [sum(synthetic.preference(SEED, "train", i)[3] == name for i in range(PAIRS)) / PAIRS for name in _NAMES]
    assert [rows[0][f"group/{name}/weight"] for name in _NAMES] == pytest.approx(share)
    policy = LlamaForCausalLM.from_pretrained(models["policy"], dtype=torch.float32)
    weights, beta = share, config.dpo.beta
    for step in range(3):
        assert [rows[step][f"group/{name}/weight"] for name in _NAMES] == pytest.approx(weights, rel=1e-5)
        policy.zero_grad()
        losses, domains = [], []
        for row in training_rows(config, PAIRS, step).tolist():
            chosen, rejected = _log_probs(policy, "train", row)
            h = chosen - chosen.detach() - rejected + rejected.detach()
            losses.append((h - 1 / (2 * beta)) ** 2)
            domains.append(_NAMES.index(synthetic.preference(SEED, "train", row)[3]))
        ratio = torch.tensor([weights[g] / share[g] for g in domains])
        (ratio * torch.stack(losses)).mean().backward()
        wanted = {name: p.grad for name, p in policy.named_parameters()}
        assert _error(gradients[step], wanted) <= 1e-4
        probs = torch.nn.functional.one_hot(torch.tensor(domains), 2).float()
        weights = next_weights(weights, torch.stack(losses).detach(), probs, 0.05)


_NAMES = ("easy", "hard")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Any:
    folder = tmp_path_factory.mktemp("alone")
    (seen,) = run_ranks(_train, 1, _config(folder, models, "run.iterations=3", *ROBUST))
    return read_metrics(folder / "run"), seen["weights"]


def test_the_weights_move_with_the_group_losses(alone: Any) -> None:
    rows, weights = alone
    assert len(weights) == 3 and weights[0] != weights[2]
    for row, after in zip(rows, weights, strict=True):
        factors = [row[f"group/{name}/weight"] * math.exp(2.0 * row[f"group/{name}/loss"]) for name in _NAMES]
        assert after == pytest.approx([factor / sum(factors) for factor in factors], rel=1e-5)
        assert row["worst/domain_accuracy"] == min(row[f"accuracy/domain/{name}"] for name in _NAMES)
        mean = sum(row[f"group/{name}/mass"] * row[f"accuracy/domain/{name}"] for name in _NAMES)
        assert mean == pytest.approx(row["accuracy"])
        assert row["group/easy/loss"] == row["loss/domain/easy"]


SPLITS: dict[str, dict[str, Any]] = {
    "micro-batches of 2": {"micro_batch_size": 2},
    "DP2, 40 tokens": {"data": 2, "micro_batch_size": 64, "tokens_per_micro_batch": 40},
}


@pytest.mark.parametrize("name", ["TP2", "PP2", "DP2", "micro-batches of 2", "DP2, 40 tokens"])
def test_every_layout_and_split_weights_alike(tmp_path: Path, models: dict[str, str], alone: Any, name: str) -> None:
    layout = {**LAYOUTS, **SPLITS}[name].copy()
    ranks = math.prod([layout.get("tensor", 1), layout.get("pipeline", 1), layout.pop("data", 1)])
    outcomes = run_ranks(_train, ranks, _config(tmp_path, models, "run.iterations=3", *ROBUST, **layout))
    assert [seen["code"] for seen in outcomes] == [0] * ranks
    assert all(seen["weights"] == outcomes[0]["weights"] for seen in outcomes), "not the same on every rank"
    for row, wanted in zip(read_metrics(tmp_path / "run"), alone[0], strict=True):
        for key in wanted.keys() - {"step"}:
            if not key.startswith(("time/", "throughput/", "padding/")):
                assert row[key] == pytest.approx(wanted[key], rel=10 * TOLERANCE, abs=1e-5), key


def test_a_continued_run_is_the_straight_one_bit_for_bit(tmp_path: Path, models: dict[str, str]) -> None:
    for name, lengths in (("straight", (4,)), ("grown", (2, 4))):
        for iterations in lengths:
            config = _config(tmp_path / name, models, *ROBUST, f"run.iterations={iterations}", "eval.prompts=0")
            assert run_ranks(_train, 1, config)[0]["code"] == 0
    straight, grown = _end(tmp_path / "straight", 4), _end(tmp_path / "grown", 4)
    assert grown[0] == straight[0] and grown[2] == straight[2]
    assert [name for name, tensor in grown[1].items() if not torch.equal(tensor, straight[1][name])] == []


def test_a_run_is_not_continued_with_other_groups(tmp_path: Path, models: dict[str, str]) -> None:
    assert run_ranks(_train, 1, _config(tmp_path, models, "run.iterations=1"))[0]["code"] == 0
    (seen,) = run_ranks(_train, 1, _config(tmp_path, models, *ROBUST))
    assert seen["code"] in (2, 4) and "group" in seen["said"], seen["said"]
    grouped = tmp_path / "grouped"
    assert run_ranks(_train, 1, _config(grouped, models, *ROBUST, "run.iterations=1"))[0]["code"] == 0
    path = grouped / "run" / "checkpoints" / "step_00000001" / "state.json"
    assert json.loads(path.read_text())["group_weights"].keys() == {"easy", "hard"}


def test_a_batch_without_a_group_and_a_domain_without_training_pairs(tmp_path: Path, models: dict[str, str]) -> None:
    more = ["train.batch_size=2", "run.iterations=6", "data.evaluation=[builtin:hard,builtin:ood]", "eval.prompts=8"]
    (seen,) = run_ranks(_train, 1, _config(tmp_path, models, *ROBUST, *more))
    assert seen["code"] == 0, seen["said"]
    rows = read_metrics(tmp_path / "run")
    one_sided = [row for row in rows if 0.0 in (row["group/easy/mass"], row["group/hard/mass"])]
    assert one_sided and len(one_sided) < len(rows), "the test needs both kinds of batches"
    for row in one_sided:
        assert ("group/easy/loss" in row) != ("group/hard/loss" in row) and "worst/domain_accuracy" not in row
        after = seen["weights"][rows.index(row)]
        assert after == pytest.approx([row["group/easy/weight"], row["group/hard/weight"]])
    last = rows[-1]
    assert last["eval/group/hard/mass"] == 0.5 and last["eval/group/easy/mass"] == 0.0
    assert last["eval/worst/domain_accuracy"] == min(last[f"eval/accuracy/domain/{name}"] for name in ("hard", "ood"))
    assert "eval/accuracy/domain/easy" not in last and "eval/group/easy/weight" not in last


# ---------------------------------------------------------------------------------------------------- inferred groups
@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> dict[str, str]:
    """GI-PPO runs of one iteration: the classifier on the critic, on a trunk of its own, and none."""
    folder = tmp_path_factory.mktemp("gi_ppo")
    own = ["algorithm.group_trunk=own", "algorithm.group_head=linear", "algorithm.group_input=prompt"]
    for name, more in (("critic", ["algorithm.groups=3"]), ("own", own), ("ppo", ["algorithm.name=ppo"])):
        run_ranks(_infer, 1, rl_config(folder, models, f"run.name={name}", "run.iterations=1", "eval.prompts=0", *more))
    return {name: str(folder / name) for name in ("critic", "own", "ppo")}


def _infer(rank: int, config: Config) -> None:
    gi_ppo.train(config)


def _classified(run: str, *more: str) -> list[str]:
    return ["dpo.groups_from=classifier", f"dpo.group_model={run}", "dpo.group_step=2.0", *more]


@pytest.mark.parametrize(("name", "groups", "reads"), [("critic", 3, "xy"), ("own", 2, "prompt")])
def test_groups_are_those_of_the_runs_classifier(
    tmp_path: Path, models: dict[str, str], runs: dict[str, str], name: str, groups: int, reads: str
) -> None:
    (seen,) = run_ranks(_train, 1, _config(tmp_path / "1", models, *_classified(runs[name]), "run.iterations=3"))
    assert seen["code"] == 0 and seen["freed"] and seen["reads"] == reads, seen["said"]
    role = "classifier" if name == "own" else "critic"
    (saved,) = global_tensors(Path(runs[name]) / "checkpoints" / "step_00000001")
    assert torch.equal(seen["head"], saved[f"{role}.model.group_head.output.weight"]), "not the trained head"
    probs = seen["values"][:, 2:]
    assert probs.shape == (PAIRS, groups) and torch.allclose(probs.sum(1), torch.ones(PAIRS))
    assert seen["share"] == pytest.approx(probs.mean(0).tolist(), abs=1e-6) and probs.std(0).min() > 0
    rows = read_metrics(tmp_path / "1" / "run")
    assert sum(rows[0][f"group/{g}/mass"] for g in range(groups)) == pytest.approx(1.0)
    assert rows[0]["group/0/weight"] != rows[2]["group/0/weight"] and "worst/domain_accuracy" in rows[0]
    assert "eval/group/0/loss" in rows[2]
    layout = LAYOUTS["PP2" if name == "own" else "DP2"]
    split = {key: value for key, value in layout.items() if key != "data"}
    outcomes = run_ranks(_train, 2, _config(tmp_path / "2", models, *_classified(runs[name]), **split))
    for other in outcomes:
        assert torch.allclose(other["values"], seen["values"], atol=1e-5)
        assert other["weights"] == outcomes[0]["weights"] == [pytest.approx(w, rel=1e-4) for w in seen["weights"][:2]]


def test_inferred_groups_survive_a_restart(tmp_path: Path, models: dict[str, str], runs: dict[str, str]) -> None:
    for name, lengths in (("straight", (4,)), ("grown", (2, 4))):
        for iterations in lengths:
            more = _classified(runs["critic"], f"run.iterations={iterations}", "eval.prompts=0")
            assert run_ranks(_train, 1, _config(tmp_path / name, models, *more))[0]["code"] == 0
    straight, grown = _end(tmp_path / "straight", 4), _end(tmp_path / "grown", 4)
    assert grown[0] == straight[0] and grown[2] == straight[2]
    assert [name for name, tensor in grown[1].items() if not torch.equal(tensor, straight[1][name])] == []
    shutil.copytree(runs["critic"], tmp_path / "copy")
    for model, code in ((runs["own"], 2), (str(tmp_path / "copy"), 0)):  # it may move, not change
        changed = _classified(model, "run.iterations=5", "eval.prompts=0")
        (seen,) = run_ranks(_train, 1, _config(tmp_path / "grown", models, *changed))
        assert seen["code"] == code and ("dpo.group_model was made of" in seen["said"]) == (code == 2), seen["said"]


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("{policy}", 2, "has no group classifier"),
        ("{ppo}", 2, "has no group classifier"),
        ("{other}", 2, "another tokenizer than the policy"),
        ("./nowhere", 2, "there is no such folder"),
    ],
)
def test_what_infers_no_groups_is_one_sentence(
    tmp_path: Path, models: dict[str, str], runs: dict[str, str], model: str, code: int, words: str
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(models["policy"], changed)
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["c0"], vocabulary["c1"] = vocabulary["c1"], vocabulary["c0"]
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    places = models | runs | {"other": runs["critic"]}
    own = models | ({"policy": str(changed)} if model == "{other}" else {})
    pairs = tmp_path / "pairs.jsonl"  # the built-in rows insist on the built-in tokenizer
    pairs.write_text('{"prompt": "c0 c1", "chosen": "c2", "rejected": "c3"}\n' * 9)
    more = [f"data.preferences=[{pairs}]", "data.evaluation=[]"] if model == "{other}" else []
    (seen,) = run_ranks(_train, 1, _config(tmp_path, own, *_classified(model.format(**places)), *more))
    assert seen["code"] == code and words in seen["said"], seen["said"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "a step was taken"


def test_options_that_need_each_other(tmp_path: Path, models: dict[str, str]) -> None:
    for change in (["dpo.groups_from=classifier"], ["dpo.group_model=runs/x"], [*ROBUST, "dpo.group_model=runs/x"]):
        with pytest.raises(ConfigError, match=r"does not fit dpo\.group_model"):
            _config(tmp_path, models, *change)
    with pytest.raises(ConfigError, match=r"dpo\.group_step=-1"):
        _config(tmp_path, models, *ROBUST, "dpo.group_step=-1.0")
