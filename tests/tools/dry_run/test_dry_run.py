"""Every shipped configuration starts on paper; what would not start is refused in the words of a real start."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.parallel.megatron.pretend import Pretence
from gipo_mc.tools import command
from gipo_mc.tools.dry_run import groups, ranks
from tests.plan.test_plan import CONFIGS, gpus_of
from tests.runs import save_models
from tests.scripts import import_commands, run_script
from tests.source_rules import ROOT

SEVEN_B = str(ROOT / "configs/paper/hh_rl.yaml")
SEVENTY_B = str(ROOT / "configs/large/llama3_70b_rl.yaml")
TINY = str(ROOT / "configs/hh_tiny.yaml")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a fork: a stand-in for ranks changes torch and Megatron in its process."""
    import_commands()
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def _dry_run(*words: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = command.main(["dry-run", *words])
    return code, out.getvalue(), err.getvalue()


def _shipped() -> dict[str, tuple[int, dict[str, Any], str]]:
    found = {}
    for path in CONFIGS:
        code, out, err = _dry_run("--config", str(path), "--gpus", str(gpus_of(path)), "--without-files", "--json")
        found[path.relative_to(ROOT).as_posix()] = code, json.loads(out), err
    return found


@pytest.fixture(scope="module")
def shipped() -> dict[str, tuple[int, dict[str, Any], str]]:
    return apart(_shipped)  # type: ignore[no-any-return]


def test_every_shipped_configuration_would_start(shipped: dict[str, tuple[int, dict[str, Any], str]]):
    for name, (code, seen, errors) in shipped.items():
        assert code == 0 and not seen["problems"], (name, errors)
        world = sum(len(stage["ranks"]) for stage in seen["stages"])
        assert world == seen["gpus"] and seen["passes"] and seen["groups"]["tensor"], name
    assert {seen["gpus"] for _, seen, _ in shipped.values()} == {8, 16, 64, 256}


def test_seventy_billion_on_64_ranks(shipped: dict[str, tuple[int, dict[str, Any], str]]):
    _, seen, _ = shipped["configs/large/llama3_70b_rl.yaml"]
    assert seen["seconds"] < 60
    assert [stage["layers"] for stage in seen["stages"]] == [[[10 * s, 10 * s + 10]] for s in range(8)]
    update = next(one for one in seen["passes"] if one["backward"])
    most = update["micro_batches"]
    assert [step["warm_up"] for step in update["stages"]] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [step["warm_up"] + step["steady"] for step in update["stages"]] == [most] * 8
    assert len(seen["rollout"]) == 8 and all(seen["rollout"])
    assert seen["groups"]["pipeline"][0] == list(range(0, 64, 8))
    assert seen["groups"]["embedding"][0] == [0, 56]


def test_frozen_models_in_a_layout_of_their_own_start_too():
    """The policy on TP2 x PP2 x DP2, the frozen models on TP1 x PP4 x DP2."""
    layout = ["tensor=2", "pipeline=2", "sequence=true", "frozen_tensor=1", "frozen_pipeline=4"]
    words = ("--config", TINY, "--gpus", "8", "--shape", "hh_tiny", "--without-files", "--gpu", "cpu")
    own, text = apart(_both, *words, *(f"parallel.{option}" for option in layout), "model.reward=runs/reward")
    assert "Please report" not in text and "frozen models: tensor 1 x pipeline 4 x data 2" in text
    (code, out, errors) = own
    assert code == 0, errors
    seen = json.loads(out)
    frozen = seen["frozen"]
    assert [list(stage["models"]) for stage in seen["stages"]] == [["policy", "critic"]] * 2
    assert [list(stage["models"]) for stage in frozen["stages"]] == [["reference", "reward"]] * 4
    assert frozen["groups"]["pipeline"] == [[rank, rank + 2, rank + 4, rank + 6] for rank in range(2)]
    assert seen["groups"]["tensor"] == [[rank, rank + 1] for rank in range(0, 8, 2)]
    named = {name for one in frozen["passes"] for name in one["phases"]}
    assert named == {"reference_logprob", "rewards"}
    assert all(len(one["stages"]) == 4 for one in frozen["passes"])


def _both(*words: str) -> tuple[tuple[int, str, str], str]:
    return _dry_run(*words, "--json"), _dry_run(*words)[1]


WRONG = {
    "ranks": (["--gpus", "6"], "parallel.tensor=4 x parallel.pipeline=1 = 4 does not divide the 6 ranks"),
    "heads": (["--gpus", "12", "parallel.tensor=12"], "parallel.tensor=12 does not divide the model's 32 attention"),
    "key-value heads": (
        ["--gpus", "7", "parallel.tensor=7", "--shape", "qwen2.5-7b"],
        "the model's 4 key-value heads",
    ),
    "layers": (["--gpus", "12", "parallel.pipeline=3"], "parallel.pipeline=3 does not divide the model's 32 layers"),
    "positions": (["data.prompt_length=4000"], "4256 tokens of prompt and response do not fit the model's 4096"),
    "batch": (["--gpus", "256"], "algorithm.mini_batch_size=32 is smaller than the 64 data-parallel ranks"),
    "key": (["algorithm.betapolicy=1"], "did you mean algorithm.beta_policy?"),
    "cache": (["rollout.kv_cache_gib=0.05"], "The KV cache cannot hold one sequence of 768 tokens"),
    "memory": (["--gpus", "4"], "It does not fit: "),
}


def _refused() -> dict[str, tuple[int, str, str]]:
    words = ("--config", SEVEN_B, "--without-files")
    return {name: _dry_run(*words, *more) for name, (more, _) in WRONG.items()}


def test_what_would_not_start_is_refused_with_its_reason():
    for name, (code, _, errors) in apart(_refused).items():
        assert code == 2 and WRONG[name][1] in errors, (name, errors)


EIGHT_B = str(ROOT / "configs/large/llama3_8b_rl.yaml")
#: Models alone are larger than a GPU, which leaves no room to divide: one rank of a model, tensor ranks, a pipeline.
TOO_LARGE = {
    "one": ["--config", EIGHT_B, "--gpus", "8", "parallel.tensor=1", "parallel.sequence=false"],
    "tensor": ["--config", EIGHT_B, "--gpus", "8", "parallel.tensor=2"],
    "pipeline": ["--config", SEVENTY_B, "--gpus", "32", "parallel.pipeline=4"],
}


def _too_large() -> dict[str, tuple[int, str, str]]:
    return {name: _dry_run("--without-files", "--json", *words) for name, words in TOO_LARGE.items()}


def test_models_that_fill_a_gpu_leave_the_cache_one_sequence_whatever_this_machine_has():
    """8B: 8 key-value heads of 128 in 32 layers, keys and values of 2 bytes, 768 tokens: 96 MiB on one rank."""
    for name, (code, out, errors) in apart(_too_large).items():
        assert code == 2 and "Traceback" not in errors and "It does not fit: " in errors, (name, errors)
        seen = json.loads(out)
        sizes = {stage["kv_cache_bytes"] for stage in seen["stages"]}
        sequence = 768 * 2 * 2 * 128 * (80 // 4 * 8 // 8 if name == "pipeline" else 32 * 8 // (1 + (name == "tensor")))
        assert sizes == {sequence}, name


@pytest.mark.parametrize(
    ("gpus", "override"),
    [
        (3, "parallel.tensor=2"),
        (64, "rollout.batch_size=32"),
        (1, "model.policy=/no/such/model"),
        (1, "model.policy=a model with a smaller vocabulary than its tokenizer"),
    ],
)
def test_the_words_are_those_of_a_real_start(gpus: int, override: str, tmp_path: Path):
    """The same sentence from the trainer, which is started with so many ranks and stops before it joins them or loads
    a model."""
    if "vocabulary" in override:
        save_models(tmp_path)
        path = tmp_path / "policy/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 20}))
        override = f"model.policy={tmp_path / 'policy'}"
    words = [override, f"run.dir={tmp_path}", "device=cpu"]
    script, environment = ROOT / "scripts/train_gi_ppo.py", {"WORLD_SIZE": str(gpus)}
    real = run_script(script, "--config", TINY, *words, environment=environment)
    files = ["--without-files"] if gpus > 1 else ["--shape", "hh_tiny"]
    code, _, errors = apart(_dry_run, "--config", TINY, "--gpus", str(gpus), *words, *files)
    (said,) = [line for line in real.stderr.splitlines() if line.startswith(("error: ", "  - "))][-1:]
    assert real.returncode == code == 2
    assert said.removeprefix("error: ").removeprefix("  - ") in errors, (said, errors)


def _with_faults() -> list[str]:
    """What a dry run of two stages says where the plan forgets a parameter, where one stage keeps a tensor to itself,
    where groups are others, and where a stage writes another part of a checkpoint than its own."""
    words = ("--config", TINY, "--gpus", "4", "--without-files", "parallel.pipeline=2", "parallel.tensor=2")
    said = []
    planned, sent, exist, sharded = ranks.stage_parameters, Pretence._sent, groups._expected, ranks._sharded
    for fault in range(4):
        if fault == 0:
            ranks.stage_parameters = lambda *what: planned(*what)[1:]
        elif fault == 1:
            Pretence._sent = staticmethod(lambda kind, tensor: sent(kind, tensor) if kind == "gradient" else [])
        elif fault == 2:
            groups._expected = lambda name, grid: [(rank,) for rank in range(grid.world)]
        else:
            ranks._sharded = lambda state: list(sharded(state))[1:]
        said.append(_dry_run(*words)[2])
        ranks.stage_parameters, groups._expected, ranks._sharded = planned, exist, sharded
        Pretence._sent = staticmethod(sent)
    return said


def test_faults_are_found():
    parameters, messages, wrong_groups, shards = apart(_with_faults)
    assert "parameters and the plan counts" in parameters and "they differ in embedding.word_embeddings" in parameters
    assert "Stage 0 sends 0 activations, and stage 1 waits for" in messages
    assert "Megatron's tensor groups are not those of the layout" in wrong_groups
    assert "of a checkpoint would have" in shards


def test_the_page_shows_what_is_printed():
    config = str(ROOT / "configs/large/llama2_13b_rl.yaml")
    code, out, _ = apart(_dry_run, "--config", config, "--gpus", "16", "--without-files")
    assert code == 0 and out.rstrip() in (ROOT / "docs/planning.md").read_text(encoding="utf-8")


def test_files_are_looked_at_unless_it_is_told_otherwise(tmp_path: Path):
    """Missing runs and data are problems, what is on the hub a note; a file of rows is opened."""
    good, odd = tmp_path / "good.jsonl", tmp_path / "odd.jsonl"
    good.write_text('{"prompt": "a"}\n')
    odd.write_bytes(b"")
    code, out, errors = apart(
        _dry_run, "--config", SEVEN_B, "--gpu", "cpu", f"data.evaluation=[{good},{odd}]", "data.domains=[a,b]"
    )
    assert code == 2
    assert "model.policy=runs/paper_hh_sft: there is no such folder." in errors
    assert f"{odd} is empty: there is nothing to read." in errors and str(good) not in errors
    assert "note: data.prompts: Anthropic/hh-rlhf/harmless-base@train is not on this machine" in out
