"""Plans of all shipped configurations, what does not fit, the search, and the published run beside them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError
from gipo_mc.generation import memory as generation_memory
from gipo_mc.models.kv_cache import PAGE
from gipo_mc.plan import memory as plan_memory
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.hardware import hardware
from gipo_mc.plan.layouts.nearest import nearest_change
from gipo_mc.plan.layouts.search import ALIKE, search
from gipo_mc.plan.plan import Plan, make_plan
from gipo_mc.plan.run import read_run
from gipo_mc.plan.show.one import as_json, as_text
from gipo_mc.plan.show.search import search_text
from gipo_mc.tools.dry_run.groups import _expected
from gipo_mc.tools.verbs.plan import main
from tests.source_rules import ROOT

#: Those of runs: configs/paper/ also has plans of many runs and judges.
CONFIGS = [
    path
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if path.parent.name != "judges" and path.name not in ("llama2_7b.yaml", "tiny.yaml", "tiny_judge.yaml")
]
RLOO = ["algorithm.name=rloo", "algorithm.critic_warmup=0", "rollout.samples_per_prompt=4"]
EIGHT_B = str(ROOT / "configs/large/llama3_8b_rl.yaml")
SEVEN_B = str(ROOT / "configs/paper/hh_rl.yaml")


def gpus_of(path: Path) -> int:
    """Those that the head of a configuration asks for; 8 where it names none."""
    asked = re.search(r"^# Needs: (\d+) GPUs", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return int(asked[1]) if asked else 8


def plan_of(path: str, *overrides: str, gpus: int = 8, gpu: str = "h100", **options: Any) -> Plan:
    config = load_config(path, list(overrides))
    return make_plan(read_run(config, config_file=path, **options), gpus, hardware(gpu))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_fits_its_gpus(path: Path):
    plan = plan_of(str(path), gpus=gpus_of(path))
    assert plan.fits and plan.seconds > 0 and plan.disk > 0
    assert all(min(peak.kinds.values()) >= 0 for peak in plan.memory.peaks)
    assert as_text(plan, None) and json.dumps(as_json(plan))


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name == "large"], ids=lambda path: path.stem)
def test_the_head_of_a_large_configuration_says_what_is_planned(path: Path):
    plan, head = plan_of(str(path), gpus=gpus_of(path)), path.read_text(encoding="utf-8")
    told = re.search(r"# Plan: ([\d.]+) GiB a GPU at the peak \(([\w ]+)\), ([\d.]+) s", head)
    assert told, "the head of a large configuration has a line of its plan"
    assert float(told[1]) == pytest.approx(plan.memory.worst.total / 2**30, rel=0.05)
    assert float(told[3]) == pytest.approx(plan.seconds, rel=0.05)


def test_the_page_shows_what_is_printed():
    page = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    assert as_text(plan_of(SEVEN_B), None) in page, "docs/planning.md shows another output than the command has"


def test_constants_are_those_of_the_code():
    assert plan_memory.PAGE == PAGE
    assert plan_memory.CACHE_SHARE == generation_memory._SHARE
    assert {cuda: generation_memory._PREFILL_TOKENS["cuda" if cuda else "cpu"]
                                   for cuda in (True, False)} == plan_memory.PREFILL  # fmt: skip


def test_sums_that_scale_with_paper_and_pencil():
    """7B on TP4 x DP2: 6 + 12/2 bytes for policy and critic, 2 for the frozen models; 14 bytes in a checkpoint."""
    plan = plan_of(SEVEN_B)
    held = plan.memory.of("policy update").kinds
    model = 6.74e9 / 4
    assert held["gradients"] == pytest.approx(2 * 4 * model, rel=0.02)
    assert held["optimizer"] == pytest.approx(2 * 12 / 2 * model, rel=0.02)
    assert held["weights"] == pytest.approx(4 * 2 * model, rel=0.02)
    assert plan.checkpoint == pytest.approx(187e9, rel=0.005)
    assert plan.memory.of("save").kinds["temporaries"] == 0
    # Two tensors of the vocabulary in float32 for each model; all of 14 bytes, of which a rank writes half.
    assert plan.host == 2 * 2 * 4 * 4096 * 32_000 // 4
    behind = plan_of(SEVEN_B, "checkpoint.async=true")
    assert behind.host == pytest.approx(2 * 14 / 2 * model, rel=0.02)
    # A rank writes an eighth of the checkpoint, at 1 GB/s, or copies it to the host at three quarters of 64 GB/s.
    assert plan.cost is not None and plan.cost["save"].seconds == pytest.approx(187 / 8, rel=0.005)
    assert behind.cost is not None and behind.cost["save"].seconds == pytest.approx(187 / 8 / 48, rel=0.005)


def test_sixteen_ranks_of_a_cpu_share_the_moments_of_an_asynchronous_save():
    """Weights and gradients change while a forked process writes them, and a sixteenth of the moments."""
    options = ["checkpoint.async=true", "parallel.distributed_optimizer=on"]
    plan = plan_of(SEVEN_B, *options, gpus=64, gpu="cpu")
    assert plan.host == pytest.approx(2 * (4 + 4 + 8 / 16) * 6.74e9 / 4, rel=0.02)


def test_ranks_that_share_key_value_heads_gather_what_they_project():
    """8 key-value heads on 16 ranks: 32 + 16 heads of 128, in each layer of generation, and once more where a backward
    pass makes the layer again."""
    options = ["parallel.tensor=16", "parallel.sequence=false"]
    plan, again = (
        plan_of(SEVEN_B, *options, more, gpus=16, shape="llama-3.1-8b")
        for more in ("memory.recompute=none", "memory.recompute=full")
    )
    assert plan.cost is not None and again.cost is not None
    layer, tokens = 15 / 16 * 2 * 32, 128 * 768  # of 32 layers: the bytes of bfloat16 that leave a rank
    generated = plan.cost["rollout"].sent["tensor"] / (layer * tokens)
    assert generated == pytest.approx(2 * 2 * 4096 + 48 * 128, rel=0.01)
    twice = (again.cost["update_policy"].sent["tensor"] - plan.cost["update_policy"].sent["tensor"]) / (layer * tokens)
    assert twice == pytest.approx(2 * 2 * 4096 + 48 * 128, rel=0.01)


def test_a_save_that_copies_nothing_takes_no_memory_of_the_host():
    assert "host memory of a save," in as_text(plan_of(SEVEN_B), None)
    plan = plan_of(SEVEN_B, gpu="cpu")
    assert plan.host == 0 and "host memory" not in as_text(plan, None)


def test_what_does_not_fit_is_named_with_the_nearest_change():
    plan = plan_of(SEVEN_B, "parallel.tensor=1", "parallel.sequence=false", gpus=8)
    assert not plan.fits
    change = nearest_change(plan)
    assert change is not None and change.plan.fits and change.gpus == 8
    text = as_text(plan, change)
    assert "does not fit" in text and f"The nearest change that fits: {change.describe()}" in text
    assert plan_of(SEVEN_B, "parallel.sequence=false", *change.describe().split()).fits


def test_the_first_save_of_13b_on_eight_gpus_fits_as_training_does():
    """It did not while the optimizer was gathered on the GPU."""
    plan = plan_of(SEVEN_B, "parallel.tensor=8", shape="llama-2-13b")
    assert plan.fits and plan.memory.worst.phase != "save"


def test_a_cache_that_cannot_hold_a_sequence_is_a_problem():
    plan = plan_of(SEVEN_B, "rollout.kv_cache_gib=0.05")
    assert plan.memory.fits and not plan.fits
    assert "cannot hold one sequence of 768 tokens" in as_text(plan, nearest_change(plan))


def test_where_no_layout_fits_more_gpus_are_the_change():
    change = nearest_change(plan_of(SEVEN_B, "parallel.tensor=1", "parallel.sequence=false", gpus=1))
    assert change is not None and change.gpus == 2
    assert change.options == {"memory.offload": ["frozen", "optimizer", "idle"], "parallel.tensor": 2}
    assert change.describe() == "memory.offload=[frozen,optimizer,idle] parallel.tensor=2 on 2 GPUs"
    large = plan_of(SEVEN_B, "parallel.sequence=false", gpus=4, shape="llama-3.1-70b")
    assert not large.fits and large.memory.worst.total > 700 * 2**30


def test_the_search_ranks_layouts_that_fit_by_time():
    config = load_config(SEVEN_B, [])
    plans = search(read_run(config, config_file=SEVEN_B), 16, hardware("h100"))
    fitting = [plan for plan in plans if plan.fits]
    assert len(fitting) > 4 and plans[: len(fitting)] == fitting
    assert all(before.seconds < after.seconds * (1 + ALIKE) for before, after in pairwise(fitting))
    assert all(plan.grid.world == 16 and plan.grid.tensor <= 8 for plan in plans)


@pytest.mark.parametrize("more", [["--search"], ["--scale-to", "32"], []])
def test_what_no_layout_can_change_is_said_by_the_search_too(more: list[str], capsys: pytest.CaptureFixture[str]):
    words = ["--config", SEVEN_B, "--gpus", "16", "data.prompt_length=9000"]
    assert main([*words, *more]) == 2
    assert "do not fit the model's 4096 positions" in capsys.readouterr().err


def test_a_search_without_a_layout_says_what_divides_nothing(capsys: pytest.CaptureFixture[str]):
    assert main(["--config", SEVEN_B, "--gpus", "7", "--search", "parallel.frozen_tensor=3"]) == 2
    assert "No layout of 7 ranks divides" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "of", "smaller"),
    [
        (["parallel.distributed_optimizer=off"], lambda p: p.memory.of("critic update").kinds["optimizer"], False),
        (["parallel.sequence=false"], lambda p: p.memory.of("policy update").kinds["activations"], False),
        (["parallel.tokens_per_micro_batch=1024"], lambda p: p.memory.of("policy update").kinds["activations"], True),
        (["rollout.slots=8"], lambda p: p.memory.of("rollout").kinds["kv_cache"], True),
        (RLOO, lambda p: p.checkpoint, True),
        (["checkpoint.keep=4"], lambda p: p.disk, False),
        (["algorithm.epochs=2"], lambda p: p.cost["update_policy"].flops, False),
    ],
)  # fmt: skip
def test_options_move_the_plan(overrides: list[str], of: Any, smaller: bool):
    before, after = of(plan_of(SEVEN_B)), of(plan_of(SEVEN_B, *overrides))
    assert after < before if smaller else after > before


def test_pipelines_wait_and_hop_and_later_stages_keep_less():
    plan = plan_of(SEVEN_B, "parallel.pipeline=4", "parallel.tensor=2", "parallel.micro_batch_size=8", gpus=8)
    update = plan.cost["update_policy"]  # type: ignore[index]
    assert update.bubble > 0 and update.sent["pipeline"] > 0 and 0 < plan.bubble < 1
    # While 3 micro-batches pass, a stage waits: for their arithmetic and for the sums in their layers.
    scored = plan.cost["values"]  # type: ignore[index]
    parts = len(plan.run.phases(plan.grid, longest=False)["values"][0].parts)
    assert scored.compute < parts / 3 * scored.bubble < scored.compute + scored.exchange
    chunks = ["parallel.pipeline=4", "parallel.tensor=2", "parallel.micro_batch_size=8", "parallel.virtual_pipeline=2"]
    assert plan_of(SEVEN_B, *chunks).cost["values"].bubble == pytest.approx(scored.bubble / 2)  # type: ignore[index]
    kept = [p.kinds["activations"] for p in plan.memory.peaks if p.phase == "critic update"]
    assert kept[0] > kept[1] > kept[2]


def test_groups_over_several_machines_use_the_network():
    near, far = (plan_of(SEVEN_B, gpus=16), plan_of(SEVEN_B, gpus=8))
    assert near.grid.crosses_nodes("data") and not far.grid.crosses_nodes("data")
    assert not near.grid.crosses_nodes("tensor")


@pytest.mark.parametrize(
    ("gpus", "node", "sizes", "crossing"),
    [
        (24, 8, (2, 4), ["data", "pipeline"]),  # ranks 6, 8 and 10 are a data group
        (24, 12, (8, 1), ["tensor", "data"]),  # ranks 8 to 15 are on two nodes
        (24, 8, (8, 3), ["pipeline"]),
        (12, 6, (2, 2), ["pipeline"]),
        (12, 8, (2, 2), ["data", "pipeline"]),  # 6 and 8 are stage 1's
        (8, 12, (8, 1), []),
        (9, 3, (1, 3), ["pipeline"]),
        (8, 3, (2, 4), ["tensor", "pipeline"]),
        (2**20, 8, (8, 1), ["data"]),
    ],
)
def test_a_group_crosses_nodes_where_its_ranks_do(gpus: int, node: int, sizes: tuple[int, int], crossing: list[str]):
    grid = Grid(*sizes, gpus // (sizes[0] * sizes[1]), False, True, node)
    assert [name for name in ("tensor", "data", "pipeline") if grid.crosses_nodes(name)] == crossing
    if gpus > 1000:
        return
    for name in ("tensor", "data", "pipeline"):
        groups = _expected(name, grid)
        assert grid.crosses_nodes(name) == any(len({rank // node for rank in ranks}) > 1 for ranks in groups), name


def test_rows_wait_for_the_cache_as_they_wait_for_slots():
    """8B on TP4: 2 key-value heads of 128 in 32 layers are 32 KiB a token, 128 MiB a row of 4,096, 8 rows in 1 GiB."""
    long = ["data.prompt_length=1024", "rollout.max_new_tokens=3072"]
    free, cache, slots = (
        plan_of(EIGHT_B, *long, *more).cost["rollout"].seconds  # type: ignore[index]
        for more in ([], ["rollout.kv_cache_gib=1"], ["rollout.slots=8"])
    )
    assert cache == slots > 5 * free
    # Of 4 samples of a prompt the full pages of 1,024 tokens are there once: 832 pages for 4 rows of 256.
    run = plan_of(EIGHT_B, *long, "rollout.samples_per_prompt=4").run
    grid = Grid(4, 1, 2, True, True)
    assert plan_memory.rows_at_a_time(run, grid, 832) == 4 and plan_memory.rows_at_a_time(run, grid, 1e9) == 256
    assert plan_memory.rows_at_a_time(run, grid, 0) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "600", "--response", "100"], "--prompt 600 is more than data.prompt_length=512"),
        (["--prompt", "600"], "--prompt 600 is more than data.prompt_length=512, the most"),
        (["--prompt", "9", "--response", "300"], "--response 300 is more than rollout.max_new_tokens=256"),
    ],
)
def test_usual_lengths_are_not_above_the_longest(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["--config", SEVEN_B, *words]) == 2
    assert said in capsys.readouterr().err


def test_usual_lengths_of_a_supervised_run_share_its_sequence(capsys: pytest.CaptureFixture[str]):
    sft = str(ROOT / "configs/paper/hh_sft.yaml")
    assert main(["--config", sft, "--prompt", "9000"]) == 2
    assert "--prompt 9000 with a response is more than data.sequence_length=" in capsys.readouterr().err
    assert main(["--config", sft, "--response", "9000"]) == 2
    assert "--response 9000 is more than data.sequence_length=" in capsys.readouterr().err
    assert main(["--config", sft, "--prompt", "100", "--response", "100"]) == 0


def test_the_command_without_torch():
    code = (
        "import sys; from gipo_mc.tools.verbs.plan import main; "
        f"code = main(['--config', {SEVEN_B!r}, '--gpus', '8', '--json']); "
        "assert 'torch' not in sys.modules and 'megatron' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and {"rollout", "update_policy"} <= found["phases"].keys()


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]):
    assert main(["--config", SEVEN_B, "--gpu", "H100"]) == 0, "in capitals or not"
    capsys.readouterr()
    assert main(["--config", SEVEN_B, "--gpus", "6"]) == ConfigError.exit_code
    assert "does not divide the 6 ranks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--config", SEVEN_B, "--gpu", "v100"])
    assert "did you mean h100 or a100?" in capsys.readouterr().err
    assert main(["--config", SEVEN_B, "model.policy=runs/mine"]) == ConfigError.exit_code
    assert "--shape" in capsys.readouterr().err
    assert main(["--config", SEVEN_B, "--gpus", "1", "parallel.tensor=1", "parallel.sequence=false"]) == 2
    assert "does not fit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--config", SEVEN_B, "--utilisation", "2"])


def test_the_search_makes_room_with_options_that_there_are(monkeypatch: pytest.MonkeyPatch):
    """Where a layout does not fit, a change that makes it fit or comes closest; options that a configuration does not
    have are passed over."""
    large = ["tokens_per_micro_batch=65536", "micro_batch_size=128"]
    config = load_config(SEVEN_B, [f"parallel.{option}" for option in large] + ["algorithm.mini_batch_size=128"])
    monkeypatch.setattr(
        "gipo_mc.plan.layouts.search.RELIEF", ({"memory.unheard_of": 1}, {"parallel.tokens_per_micro_batch": 4096})
    )
    plans = search(read_run(config, config_file=SEVEN_B), 8, hardware("h100"))
    relieved = [plan for plan in plans if plan.relief]
    assert any(plan.fits for plan in relieved) and any(plan.fits and not plan.relief for plan in plans)
    assert {plan.relief for plan in relieved} == {("parallel.tokens_per_micro_batch=4096",)}
    assert relieved[0].relief[0] in search_text(plans, len(plans))


def test_the_search_goes_as_far_as_models_that_leave_between_their_turns():
    """7B on two GPUs: no layout of its state fits, and half of that of one model at a time does."""
    run = read_run(load_config(SEVEN_B, []), config_file=SEVEN_B)
    plans = search(run, 2, hardware("h100"))
    assert plans[0].fits
    assert plans[0].relief == ("memory.recompute=full", "memory.offload=[frozen,optimizer,idle]")


def test_a_tensor_group_over_nodes_is_warned_of(capsys: pytest.CaptureFixture[str]):
    main(["--config", SEVEN_B, "--gpus", "8", "--gpus-per-node", "2"])
    assert "warning: parallel.tensor=4 reaches over nodes of 2 GPUs" in capsys.readouterr().err
    main(["--config", SEVEN_B, "--gpus", "24", "--gpus-per-node", "12", "parallel.tensor=8"])
    assert "warning: parallel.tensor=8 reaches over nodes of 12 GPUs" in capsys.readouterr().err
    assert main(["--config", SEVEN_B, "--gpus", "8", "--gpus-per-node", "12", "parallel.tensor=8"]) == 0
    assert "warning" not in capsys.readouterr().err, "all are in one node"


def test_nodes_that_are_not_full_are_warned_of(capsys: pytest.CaptureFixture[str]):
    main(["--config", SEVEN_B, "--gpus", "8", "--gpus-per-node", "3"])
    assert "warning: 8 GPUs do not fill nodes of 3: the last one is taken to have 2." in capsys.readouterr().err
