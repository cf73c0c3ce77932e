"""The driver of the paper's table: what it starts, what it takes for done, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gipo_mc.config import load_config
from gipo_mc.errors import ConfigError, StorageError
from gipo_mc.tools.paper import drive, rows
from gipo_mc.tools.paper.plan import load_plan, only
from gipo_mc.tools.paper.show import rows_of, show
from gipo_mc.tools.paper.standing import Journal, standing, with_followers
from gipo_mc.tools.paper.steps import Step, steps_of
from gipo_mc.tools.verbs.paper import main
from tests.scripts import Script
from tests.source_rules import ROOT
from tests.tools.paper.fake_commands import attempt, write_plan

RUNS = ["hh/sft", "hh/reward", "hh/ppo", "hh/gi_ppo"]
RESPONSES = [f"generate {name}.jsonl" for name in ("gi_ppo", "sft", "ppo", "self")]
LAST = ["judge judged_all", "page page.html", "table table.json", "export table.md", "report report.html"]
ALL = ["new-model model", *RUNS, *RESPONSES, *LAST]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive, "attempt", attempt)
    write_plan(tmp_path)
    return tmp_path


def steps() -> list[Step]:
    return steps_of(load_plan("plan.yaml"))


def run(*again: str) -> int:
    found = steps()
    return drive.drive(found, Path("table"), with_followers(found, again))


def calls() -> list[str]:
    """What was started since the last call of this."""
    path = Path("calls.txt")
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def order(**what: Any) -> None:
    Path("orders.json").write_text(json.dumps({name.replace("__", "/"): value for name, value in what.items()}))


def change_plan(task: str = "", **changed: Any) -> None:
    plan = json.loads(Path("plan.yaml").read_text())
    plan["tasks"]["hh"] |= changed
    Path("plan.yaml").write_text(json.dumps(plan))


def test_the_whole_table_is_made_once(place: Path) -> None:
    assert run() == 0 and calls() == ALL
    assert run() == 0 and calls() == []  # all of it is done
    joined = drive.join_tables(steps(), Path("table"))
    assert joined and joined.read_text().startswith("# hh/all\n\nexport table/hh/judged_all --format markdown")


def test_what_came_from_the_environment_is_hidden_and_compared(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HH_DATA in the shipped plan: the journal has no path of it, and the steps are done all the same."""
    monkeypatch.setenv("OF_A_TEST", str(place / "rows.jsonl"))
    for name in ("sft", "reward", "rl"):
        Path(f"{name}.yaml").write_text("run: {iterations: 4}\ndata: {evaluation: ['${oc.env:OF_A_TEST}']}\n")
    prompts = {"prompts": {"one": "${oc.env:OF_A_TEST}"}, "rows": 8, "judges": ["judge.yaml"]}
    change_plan(evaluations={"all": prompts})
    assert run() == 0 and calls() == ALL
    assert run() == 0 and calls() == []
    assert str(place / "rows.jsonl") not in Path("table/steps.jsonl").read_text()


def test_a_step_is_wired_to_those_before_it(place: Path) -> None:
    found = {step.name: step for step in steps()}
    rl = load_config(None, [word for word in found["hh/ppo"].words if "=" in word])
    assert (rl.model.policy, rl.model.reward, rl.algorithm.name) == ("table/hh/sft", "table/hh/reward", "ppo")
    assert found["hh/sft"].config.model.policy == "table/model"
    judge = " ".join(found["hh/all/judge"].words)
    ours, again = (found[f"hh/all/responses/{name}"].words for name in ("gi_ppo", "self"))
    assert {*again} - {*ours} == {"run.seed=2", "table/hh/judged_all/responses/self.jsonl"}  # the calibration row
    responses = "table/hh/judged_all/responses"
    assert f"--ours {responses}/gi_ppo.jsonl --against sft={responses}/sft.jsonl ppo={responses}/ppo.jsonl " in judge


def test_a_folder_that_is_there_is_not_a_finished_step(place: Path) -> None:
    for name in RUNS:
        (Path("table") / name / "checkpoints" / "step_00000004").mkdir(parents=True)
    Path("table/hh/judged_all/responses").mkdir(parents=True)
    Path("table/hh/judged_all/responses/sft.jsonl").write_text("{}\n")
    assert run() == 0 and calls() == ALL


def test_a_step_that_fails_ends_it_with_its_code_and_keeps_the_others(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    order(hh__ppo={"refused": 3})
    assert run() == 3 and calls() == ALL[:4]
    assert "hh/ppo ended with exit code 3. It said: no such model The steps before" in capfd.readouterr().err
    order(hh__ppo={"code": 5})
    assert run() == 5 and calls() == ["hh/ppo"]
    said = capfd.readouterr().err
    assert "hh/ppo ended with exit code 5. It said: the numbers went wrong The steps before it are kept" in said
    assert standing(steps()[3], Journal.read(Path("table"))).why == "at iteration 1 of 4, failed with exit code 5"
    order(**{"judge judged_all": {"code": 8}})
    assert run() == 8 and calls() == ["hh/ppo", "hh/gi_ppo", *RESPONSES, "judge judged_all"]
    capfd.readouterr()
    order(**{"table table.json": {"code": 1}})
    assert run() == 1 and calls() == LAST[:3]
    said = capfd.readouterr().err
    assert "error: table went wrong\n" in said and "hh/all/table ended with exit code 1. Its message" in said
    order()
    assert run() == 0 and calls() == LAST[2:]


def test_results_that_went_away_or_changed_are_made_again(place: Path) -> None:
    run()
    calls()
    Path("table/hh/judged_all/responses/ppo.jsonl").unlink()
    assert run() == 0 and calls() == ["generate ppo.jsonl"]  # the same content: nobody is asked again
    Path("table/hh/judged_all/responses/ppo.jsonl").write_text("edited")
    assert run() == 0 and calls() == ["generate ppo.jsonl"]
    Path("judge.yaml").write_text("kind: reward\nmodel: runs/third\n")
    assert run() == 0 and calls() == ["judge judged_all"]
    Path("table/hh/judged_all/votes.jsonl").write_text("{}\n")  # people have voted
    assert run() == 0 and calls() == ["table table.json", "report report.html"]


def test_runs_that_were_trained_otherwise_are_refused_before_anything_starts(place: Path) -> None:
    run()
    calls()
    Path("rl.yaml").write_text("# made\nrun: {iterations: 4}\npolicy: {lr: 0.5}\n")
    with pytest.raises(ConfigError) as found:
        run()
    assert "hh/ppo: policy.lr: 1e-05 -> 0.5" in str(found.value) and "--again hh/ppo hh/gi_ppo" in str(found.value)
    assert calls() == []
    assert run("hh/ppo", "hh/gi_ppo") == 0
    assert calls() == ["hh/ppo", "hh/gi_ppo", *RESPONSES[:1], *RESPONSES[2:], LAST[4]]
    Path("rows.jsonl").write_text('{"prompt": "b"}\n')
    with pytest.raises(ConfigError, match=r"hh/sft: data.demonstrations\[0\] is not what it was made from"):
        run()


def test_what_starts_from_a_run_that_is_made_anew_is_made_anew_too(place: Path) -> None:
    run()
    calls()
    assert with_followers(steps(), ["hh/reward"]) == ["hh/reward", "hh/ppo", "hh/gi_ppo"]
    with pytest.raises(ConfigError, match="--again names nothing; --plan shows"):
        with_followers(steps(), ["nothing"])
    assert "run.resume=false" in drive.command_of(steps()[2], again=True)
    assert run("hh/reward") == 0 and calls() == ["hh/reward", "hh/ppo", "hh/gi_ppo"]  # they came out the same


def test_more_iterations_continue_a_run(place: Path) -> None:
    run()
    calls()
    Path("sft.yaml").write_text("# made\nrun: {iterations: 6}\n")
    assert standing(steps()[1], Journal.read(Path("table"))).why == "at iteration 4 of 6"
    Path("sft.yaml").write_text("# made\nrun: {iterations: 2}\n")
    with pytest.raises(ConfigError, match=r"run\.iterations: 4 -> 2"):
        run()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_table_goes_on_where_it_stopped(place: Path, number: int, code: int) -> None:
    order(hh__reward={"wait": 30})
    Path("drive.py").write_text("import sys; from tests.tools.paper.test_paper import run; sys.exit(run())")
    driver = Script(Path("drive.py"))
    deadline = time.monotonic() + 60
    while not (Path("waiting").exists() and Path("waiting").read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(driver.pid, number)
    assert driver.wait(60)
    ended = driver.ended()
    assert ended.returncode == code
    if number == signal.SIGKILL:
        os.kill(int(Path("waiting").read_text()), signal.SIGKILL)  # nobody was left to tell it
    else:
        assert "asked to stop" in ended.stdout and "the same command goes on from here" in ended.stderr
    assert calls() == ALL[:3]
    order()
    assert run() == 0 and calls() == ALL[2:]


def test_two_drivers_do_not_work_in_one_folder(place: Path) -> None:
    Path("table").mkdir()
    with drive._alone(Path("table")), pytest.raises(StorageError, match=r"Another `gipo-mc paper`"):
        run()


def test_the_plan_says_what_is_left_and_how_it_knows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(rows_of(steps(), Path("table")), Path("table"))
    said = capsys.readouterr().out
    assert "hh/sft                   left     about 4 minutes, stated in the plan" in said
    assert "14 steps in table: 0 done, 14 left, about 5 minutes, and 8 that were never measured." in said
    order(hh__gi_ppo={"code": 5})
    run()
    capsys.readouterr()
    show(rows_of(steps(), Path("table")), Path("table"), commands=True)
    said = capsys.readouterr().out
    assert "hh/sft                   done     4 iterations" in said
    assert re.search(
        r"at iteration 1 of 4, failed with exit code 5; about \d+ s, measured: \S+ s for each iteration of hh/gi_ppo",
        said,
    )
    assert "gipo-mc train gi-ppo --config rl.yaml" in said and "14 steps in table: 4 done, 10 left" in said
    order()
    run()
    capsys.readouterr()
    show(rows_of(steps(), Path("table")), Path("table"))
    assert "14 steps in table: 14 done, nothing left." in capsys.readouterr().out


def test_a_slice_of_the_methods(place: Path) -> None:
    found = steps_of(only(load_plan("plan.yaml"), ["sft"]))
    assert [step.name for step in found if step.run] == ["hh/sft", "hh/reward", "hh/gi_ppo"]
    assert not any("ppo=" in word for step in found for word in step.words if step.kind == "judge")
    with pytest.raises(ConfigError, match="--methods names grpo; the plan judges against ppo, sft"):
        only(load_plan("plan.yaml"), ["grpo"])


def test_ranks_are_torchruns_and_are_checked_first(place: Path) -> None:
    found = steps_of(load_plan("plan.yaml"), 2)
    words = drive.command_of(next(step for step in found if step.name == "hh/sft"))
    assert words[1:5] == ["-m", "gipo_mc.tools.torchrun", "--standalone", "--nproc-per-node=2"]
    change_plan(set=["parallel.tensor=4"])
    with pytest.raises(ConfigError, match=r"Step hh/sft: The layout(.|\n)*parallel.tensor=4 x"):
        steps_of(load_plan("plan.yaml"), 2)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ours": "grpo"}, "ours and against name grpo"),
        ({"against": ["gi_ppo"]}, "gi_ppo is `ours`"),
        ({"against": []}, "evaluations need `ours` and `against`"),
        ({"judge": 1}, "tasks.hh.judge: there is no such key"),
        ({"runs": {"ppo": {"command": "train_gi_ppo", "config": "rl.yaml"}}}, "starts from a run `sft`"),
        ({"runs": {"sft": {"command": "train", "config": "rl.yaml"}}}, "tasks.hh.runs.sft.command"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_words(place: Path, changed: dict[str, Any], words: str) -> None:
    change_plan(**changed)
    with pytest.raises(ConfigError, match=words):
        load_plan("plan.yaml")


def test_rows_are_dealt_out_by_first_question(place: Path) -> None:
    dialogue = "\n\nHuman: {}?\n\nAssistant: {}."
    lines = [{"chosen": dialogue.format(i % 20, i), "rejected": dialogue.format(i % 20, -i)} for i in range(60)]
    Path("one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("two.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert rows.main(["--out", "dealt", "--parts", "a", "b", "--", "one=one.jsonl", "two=two.jsonl"]) == 0
    parts = [
        {json.loads(line)["chosen"].split("?")[0] for name in ("one", "two") for line in _lines(f"{part}_{name}")}
        for part in "ab"
    ]
    assert not parts[0] & parts[1] and sum(map(len, parts)) == 20 and all(parts)
    assert len(_lines("a_one") + _lines("b_one")) == 60
    Path("two.jsonl").write_text('{"prompt": "x"}\n')
    assert rows.main(["--out", "dealt", "--parts", "a", "b", "--", "two=two.jsonl"]) == 3


def _lines(name: str) -> list[str]:
    return Path(f"dealt/{name}.jsonl").read_text().splitlines()


@pytest.mark.parametrize("name", ["llama2_7b", "tiny"])
def test_the_shipped_plans_hold_six_methods(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a folder without data, runs or network."""
    path = str(ROOT / "configs" / "paper" / f"{name}.yaml")
    assert main(["--config", path, "--plan"]) == 0
    assert "never measured" not in capsys.readouterr().out
    for task in load_plan(path).tasks.values():
        if task.evaluations:
            assert list(task.runs) == ["sft", "reward", "ppo", "ppo_kl", "dpo", "gi_ppo"]
            assert task.ours == "gi_ppo" and task.against == ["sft", "ppo", "ppo_kl", "dpo"]
