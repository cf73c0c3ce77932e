"""`gipo-mc launch`: the line or script that starts a run, once configuration and ranks are known to be right."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.run import get_args_parser

from gipo_mc.tools import libraries, torchrun
from gipo_mc.tools.verbs import launch, train
from tests.source_rules import ROOT

CONFIG = str(ROOT / "configs" / "paper" / "hh_rl.yaml")


def _launch(*words: str) -> int:
    return launch.main(["--config", CONFIG, *words])


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs that CONFIG starts from, as folders of a model of 4 heads and 2 layers."""
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64, "hidden_size": 16}
    config = {**sizes, "intermediate_size": 32, "model_type": "llama"}
    monkeypatch.chdir(tmp_path)
    for name in ("paper_hh_sft", "paper_hh_reward"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps(config))
    _kernels(monkeypatch, cuda=True)


def _kernels(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    """An installation with kernels for CUDA, or without."""
    monkeypatch.setattr(libraries, "tried", lambda name: (SimpleNamespace(build_info=lambda: {"cuda": cuda}), ""))
    monkeypatch.setattr(libraries, "read", lambda: libraries.Libraries(False, cuda="13.0" * cuda))


def test_the_line_is_one_that_torchrun_and_the_trainer_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _launch("--nodes", "4", "--gpus", "8", "--host", "node1", "run.name=large") == 0
    found = capsys.readouterr()
    assert found.err.startswith("train_gi_ppo on 4 x 8 ranks: TP4 x PP1 x DP8.\nRun this on each node.")
    program, *words = shlex.split(found.out)
    options = get_args_parser().parse_args(words)
    assert program == "torchrun" and (options.nnodes, options.nproc_per_node) == ("4", "8")
    assert (options.rdzv_backend, options.rdzv_id, options.rdzv_endpoint) == ("c10d", "large", "node1:29500")
    assert options.module and options.training_script == "gipo_mc"
    verb, *rest = options.training_script_args
    seen: list[object] = []
    monkeypatch.setattr(
        train, "run_command", lambda *given, **named: seen.append((named["command"], named["argv"])) or 0
    )
    assert verb == "train" and train.main(rest) == 0
    assert seen == [("train_gi_ppo", ["--config", CONFIG, "run.name=large", "device=cuda"])]


def test_what_is_not_here_may_be_on_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _launch("model.policy=models/sfft", "model.reward=runs/rewrad", "data.prompts=p.jsonl", "data.domains=[]") == 0
    )
    said = capsys.readouterr().err
    for part in (
        "note: model.policy=models/sfft: there is no such folder here; taken for a name on the hub.",
        "warning: model.reward=runs/rewrad: there is no such folder.",
        "warning: data.prompts: there is no file p.jsonl",
    ):
        assert part in said
    assert _launch("model.reward=python:nope_of_mine:reward", "model.policy=models/sft") == 0
    said = capsys.readouterr().err
    assert "warning: model.reward=python:nope_of_mine:reward: there is no module of this name." in said


def test_rows_that_are_here_and_wrong_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "a b"}\n')
    assert _launch(f"data.prompts={tmp_path}/p.jsonl", "data.domains=[]") == 2
    assert "data.columns.prompt=question" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "carried"),
    [
        ([], "device=cuda"),
        (["device=cpu"], "device=cpu"),
        (["device=auto"], "device=auto"),
        (["dtype=float32"], "cuda"),
    ],
)
def test_ranks_for_gpus_do_not_take_the_cpu_in_silence(
    words: list[str], carried: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _launch("--gpus", "4", *words) == 0 and _launch("--gpus", "4", "--slurm", *words) == 0
    line, *script = capsys.readouterr().out.splitlines()
    [settings] = [one for one in script if one.startswith("set -- ")]
    assert line.endswith(carried) and settings.endswith(carried)
    assert (line + settings).count("device=") == 2


def test_a_device_that_the_file_names_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "own.yaml").write_text(Path(CONFIG).read_text() + "\ndevice: auto\n")
    assert launch.main(["--config", str(file), "--gpus", "4"]) == 0
    assert "device=" not in capsys.readouterr().out


def test_one_node_needs_no_meeting_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert _launch("--gpus", "4", "--quiet") == 0
    found = capsys.readouterr()
    assert found.out.startswith("torchrun --standalone --nproc-per-node 4 -m gipo_mc train gi-ppo --config ")
    assert found.err == ""


def test_json_holds_the_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert _launch("--nodes", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == {"tensor": 4, "pipeline": 1, "virtual": 1, "data": 4}
    assert found["torchrun"][:2] == ["--nnodes", "2"]
    assert (found["command"], found["nodes"], found["ranks_per_node"]) == ("train_gi_ppo", 2, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "3"], "does not divide the 3 ranks"),
        (["--gpus", "8", "policy.lrr=1"], "policy.lrr"),
        (["--gpus", "8", "parallel.tensor=8"], "does not divide the model's 4 attention heads: use one of 1, 2, 4"),
        (["--gpus", "8", "parallel.pipeline=2", "parallel.tensor=2", "model.policy=runs/three"], "model's 3 layers"),
        (["--gpus", "8", "model.reward="], "model.reward is empty, and gipo-mc train gi-ppo needs it"),
        (["--gpus", "8", "--slurm", "--go"], "There is no sbatch here"),
    ],
)
def test_what_would_not_start_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    Path("runs/three").mkdir()
    three = json.loads(Path("runs/paper_hh_sft/config.json").read_text()) | {"num_hidden_layers": 3}
    Path("runs/three/config.json").write_text(json.dumps(three))
    assert _launch(*words) == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--nodes 2 --go", "--sbatch=--time=1", "--go --json", "--command train_ppo"])
def test_options_that_do_not_go_together(words: str) -> None:
    with pytest.raises(SystemExit) as end:
        _launch(*words.split())
    assert end.value.code == 2


def test_without_a_configuration_the_trainers_task_is_sized_to_the_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--gpus", "4"]) == 2 and "give --config FILE" in capsys.readouterr().err
    assert launch.main(["--gpus", "4", "--command", "train_sft"]) == 0
    assert "TP2 x PP2 x DP1" in capsys.readouterr().err


def test_a_tensor_group_over_nodes_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert _launch("--nodes", "2", "--gpus", "2") == 0
    assert "warning: parallel.tensor=4 reaches over nodes of 2 ranks" in capsys.readouterr().err


def test_the_batch_script_runs_the_trainer_on_each_node_and_ends_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a shell where Slurm's programs, and Python, are stand-ins that note what they are given."""
    words = ["--nodes", "2", "--gpus", "8", "--slurm", "--sbatch=--time=8:00:00", f"run.dir={tmp_path}/my runs"]
    assert _launch(*words, "--sbatch=--cpus-per-task=24") == 0
    found = capsys.readouterr()
    assert "asks for GPUs alone" not in found.err
    assert _launch(*words) == 0
    assert "--sbatch=--exclusive --sbatch=--mem=0, or --sbatch=--cpus-per-task=N" in capsys.readouterr().err
    script = found.out
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert {"--cpus-per-task=24", "--nodes=2", "--gpus-per-node=8", "--time=8:00:00", "--signal=B:USR1@120"} <= set(
        directives
    )
    assert script.startswith("#!/bin/bash\n# train_gi_ppo on 2 x 8 ranks")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("srun", 'echo "$@" >srun.txt'),
        ("scontrol", "echo node1"),
        ("py", 'echo "$@" >py.txt; exit 5'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": "py",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "24",
    }
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    done = subprocess.run(["bash", "-s"], input=script, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 5  # of `gipo-mc status`, which knows the run's
    started = (tmp_path / "srun.txt").read_text()
    assert started.startswith("--cpus-per-task=24 --kill-on-bad-exit=1 py -m gipo_mc.tools.torchrun --nnodes")
    assert "--nnodes=2 --rdzv-backend=c10d --rdzv-id=7 --rdzv-endpoint=node1:20007" in started
    assert (
        f"--nproc-per-node=8 --max-restarts=0 --shutdown-timeout=120 -m gipo_mc train gi-ppo --config {CONFIG}"
        in started
    )
    assert f"run.dir={tmp_path}/my runs run.name=paper_hh_gi_ppo run.grace_seconds=100" in started
    assert (
        (tmp_path / "py.txt").read_text().startswith(f"-m gipo_mc status {tmp_path}/my runs/paper_hh_gi_ppo --since ")
    )


def _directives(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert _launch("--gpus", "4", "--slurm", *words) == 0
    script = capsys.readouterr().out
    assert "usage: sbatch" not in script and "\nname=$1\n" in script
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_an_option_of_sbatch_replaces_the_scripts_own(capsys: pytest.CaptureFixture[str]) -> None:
    own = _directives(capsys, "device=cpu", "run.name=my first/run")
    assert "--job-name=my_first_run" in own and "--cpus-per-task=4" in own and "--output=%x-%j.out" in own
    given = ["--cpus-per-task=2", "-J mine", "--output=out.txt", "--mem=8G"]
    lines = _directives(capsys, "device=cpu", *(f"--sbatch={option}" for option in given))
    assert len(lines) == len(own) + 1 and lines[-4:] == given
    assert not {"--cpus-per-task=4", "--job-name=paper_hh_gi_ppo", "--output=%x-%j.out"} & {*lines}


@pytest.mark.parametrize(
    "option", ["--gres=gpu:h100:8", "--gres gpu:8", "--gres=shard:2,gpu:8", "--gpus=16", "-G 16", "--gpus-per-task=8"]
)
def test_gpus_that_are_asked_for_otherwise_are_not_asked_for_twice(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _directives(capsys, f"--sbatch={option}")
    assert option in lines and not any(line.startswith("--gpus-per-node") for line in lines)
    assert "--gpus-per-node=4" in _directives(capsys, "--sbatch=--gres=tmp:100", "--sbatch=--gpus-per-node=4")
    assert "--gpus-per-node=4" in _directives(capsys, "--sbatch=--gres=tmp:100")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--exclusive"], "--exclusive gives a job all cores of its nodes, and no more memory than it asks for: add"),
        (["--exclusive", "--mem=0"], ""),
        (["--exclusive=user", "--mem-per-cpu=8G"], ""),
        (["-c 32"], ""),
    ],
)
def test_a_whole_node_is_asked_for_with_its_memory(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _launch("--gpus", "4", "--slurm", *(f"--sbatch={option}" for option in options)) == 0
    found = capsys.readouterr().err
    assert said in found and ("add --sbatch" in found) == bool(said)


def _sizes(**changed: int) -> None:
    """Gives the models of CONFIG other sizes."""
    for run in ("paper_hh_sft", "paper_hh_reward"):
        file = Path(f"runs/{run}/config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_what_does_not_fit_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert _launch("--gpus", "8") == 0 and "gipo-mc plan" not in capsys.readouterr().err
    sizes = {"num_attention_heads": 64, "num_hidden_layers": 80, "vocab_size": 128256, "hidden_size": 8192}
    _sizes(**sizes, intermediate_size=28672)
    assert _launch("--gpus", "8") == 0
    assert "note: gipo-mc plan, on H100 80GB: It does not fit: " in capsys.readouterr().err
    assert _launch("--gpus", "8", "device=cpu") == 0 and "not fit" not in capsys.readouterr().err
    # A name of the hub, of unknown size.
    assert _launch("--gpus", "8", "model.policy=some/model") == 0 and "not fit" not in capsys.readouterr().err


def test_a_lead_that_is_short_for_the_save_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert _launch("--gpus", "8", "--slurm") == 0 and "the signal comes" not in capsys.readouterr().err
    _sizes(num_attention_heads=64, num_hidden_layers=80, vocab_size=128256, hidden_size=8192, intermediate_size=28672)
    assert _launch("--gpus", "8", "--slurm") == 0
    said = capsys.readouterr().err
    wanted = re.search(r"the signal comes 120 seconds before .* it is --sbatch=(--signal=B:USR1@\d+)\.", said)
    assert wanted, said
    assert _launch("--gpus", "8", "--slurm", f"--sbatch={wanted[1]}") == 0
    assert "the signal comes" not in capsys.readouterr().err


@pytest.mark.parametrize("cuda", [True, False])
def test_an_installation_that_is_not_for_gpus_is_noted(
    cuda: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _kernels(monkeypatch, cuda)
    said, torch = "note: this installation has no CUDA kernels, and refuses", "note: torch is a build for the CPU"
    assert _launch("--gpus", "8") == 0 and (torch in capsys.readouterr().err) is not cuda
    assert _launch("--gpus", "8") == 0 and (said in capsys.readouterr().err) is not cuda
    assert _launch("--gpus", "8", "device=cpu") == 0 and said not in capsys.readouterr().err
    monkeypatch.setenv("GIPO_MC_OPS", "reference")
    assert _launch("--gpus", "8") == 0 and said not in capsys.readouterr().err


def test_chunks_are_part_of_the_layout(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["parallel.tensor=2", "parallel.pipeline=1", "parallel.virtual_pipeline=1"]
    assert _launch("--gpus", "4", *layout) == 0 and "TP2 x PP1 x DP2." in capsys.readouterr().err
    _sizes(num_hidden_layers=4)
    layout = ["parallel.tensor=2", "parallel.pipeline=2", "parallel.virtual_pipeline=2"]
    assert _launch("--gpus", "4", *layout) == 0 and "TP2 x PP2 (2 chunks) x DP1." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sbatch", "--exclusive"], "expected one argument; write --sbatch=--exclusive"),
        (["--sbatch=exclusive"], "begins with dashes and is one line: --sbatch=--exclusive"),
        (["--sbatch=--mem=1\nreboot"], "begins with dashes and is one line"),
        (["--sbatch="], "begins with dashes"),
        (["--sbatch=--=3"], "begins with dashes"),
    ],
)
def test_what_is_no_option_of_sbatch_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        _launch("--slurm", *words)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_go_starts_the_ranks_here_and_submits_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(torchrun, "main", lambda words: started.append(list(words)) or 7)
    assert _launch("--gpus", "4", "--go") == 7 and started[0][:3] == ["--standalone", "--nproc-per-node", "4"]
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat >{tmp_path}/job\nexit 3\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert _launch("--gpus", "4", "--go", "--slurm") == 3
    assert (tmp_path / "job").read_text().startswith("#!/bin/bash\n")
