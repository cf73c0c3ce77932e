"""Stand-ins for the commands that a plan runs, called in place of starting them: they leave the same files.

A run's folder gets config.yaml, run_status.json and a checkpoint's manifest, as the trainers leave them. What goes
wrong is in the file `orders.json` of the working folder: {"hh/ppo": {"code": 5}}, or {"wait": 30} for a process that
waits so many seconds. `calls.txt` there has a line for each that was started.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gipo_mc.config import as_yaml, load_config
from gipo_mc.run.folder import RunFolder
from gipo_mc.tools.paper import drive

ATTEMPT = drive.attempt
#: Another process, which takes signals as a run does.
_WAITS = """
import os, signal, sys, time
def stop(*_):
    print("\\nasked to stop", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
open("waiting", "w").write(str(os.getpid()))
time.sleep(float(sys.argv[1]))
"""


def attempt(words: list[str], *, aside: bool = False) -> tuple[int, int]:
    """In place of `drive.attempt`."""
    _, verb, *rest = words[words.index("gipo_mc") :]
    return _train(f"train_{rest[0]}".replace("-", "_"), rest[1:]) if verb == "train" else _other(verb, rest)


def _orders(name: str) -> dict[str, int]:
    with open("calls.txt", "a") as file:
        file.write(f"{name}\n")
    path = Path("orders.json")
    return json.loads(path.read_text()).get(name, {}) if path.exists() else {}  # type: ignore[no-any-return]


def _train(command: str, words: list[str]) -> tuple[int, int]:
    config = load_config(words[1], words[2:])
    own = _orders(f"{Path(config.run.dir).name}/{config.run.name}")
    run = RunFolder(Path(config.run.dir) / config.run.name, command)
    if "refused" in own:
        run.note("failed", own["refused"], "no such model")  # nothing, where there is no folder
        return 1, 0
    at = 1 if own else config.run.iterations
    checkpoint = run.checkpoints / f"step_{at:08d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    run.config.write_text(as_yaml(config))
    (checkpoint / "MANIFEST.json").write_text(json.dumps([at, config.policy.lr, config.run.seed]))
    run.write_status("running", None, "", at)
    if "wait" in own:
        code, asked = ATTEMPT([sys.executable, "-IS", "-c", _WAITS, str(own["wait"])])
        run.write_status("requeue", 75, "asked to stop", at)
        return code, asked
    if "code" in own:
        run.write_status("failed", own["code"], "the numbers went wrong", at)
        return 1, 0  # what torchrun makes of it
    run.write_status("done", 0, "", at)
    return 0, 0


def _other(command: str, words: list[str]) -> tuple[int, int]:
    what = words[0] if command == "evaluate" else command
    out = Path(words[words.index("--out") + 1] if "--out" in words else os.path.join(words[1], "table.json"))
    if code := _orders(f"{what} {out.name}").get("code"):
        print(f"error: {what} went wrong", file=sys.stderr)
        return code, 0
    if what in ("judge", "new-model"):
        out.mkdir(parents=True, exist_ok=True)
        for file in ("pairs.jsonl", "verdicts.jsonl") if what == "judge" else ("config.json",):
            (out / file).write_text(" ".join(words))
    else:
        out.write_text(" ".join(words))
    return 0, 0


def write_plan(folder: Path) -> None:
    """plan.yaml: one task with two opponents; its configurations, rows and judge beside it."""
    for name in ("sft", "reward", "rl"):
        (folder / f"{name}.yaml").write_text("# made\nrun: {iterations: 4}\n")
    (folder / "judge.yaml").write_text("kind: reward\nmodel: runs/other\n")
    (folder / "rows.jsonl").write_text('{"prompt": "a"}\n')
    runs = {
        "sft": {"command": "train_sft", "config": "sft.yaml", "minutes": 4},
        "reward": {"command": "train_reward", "config": "reward.yaml"},
        "ppo": {"command": "train_gi_ppo", "config": "rl.yaml", "set": ["algorithm.name=ppo"]},
        "gi_ppo": {"command": "train_gi_ppo", "config": "rl.yaml"},
    }
    task = {
        "set": [f"data.{key}=[rows.jsonl]" for key in ("demonstrations", "preferences", "prompts")],
        "runs": runs,
        "ours": "gi_ppo",
        "against": ["sft", "ppo"],
        "evaluations": {"all": {"prompts": {"one": "rows.jsonl"}, "rows": 8, "judges": ["judge.yaml"]}},
    }
    plan = {"folder": "table", "model": {"data": ["rows.jsonl"]}, "tasks": {"hh": task}}
    (folder / "plan.yaml").write_text(json.dumps(plan))
