"""Kill runs at random moments; each has to end as the run that nobody disturbed.

    make soak                                    200 kills, with a seed that is printed
    make soak N=20 SEED=7                        or: python tests/soak/soak.py --kills 20 --seed 7

SFT, reward model, DPO, PPO and GI-PPO on the built-in task, in the layouts 1, TP2, DP2, PP2 and TP2 x PP2. A run loses
a random rank to SIGKILL at a random moment, one to three times, wherever it is then: reading, training, logging, in a
save or in a start. The other ranks are ended two seconds later, if they have not left, as torchrun does. Then every
checkpoint that can be seen has to verify; and the run, started again with the same command, has to end with the bytes
of the undisturbed one: shards, state, metrics, samples. Every other run writes its checkpoints in the background
(checkpoint.async); the undisturbed ones wait for theirs.

Exit code: 0 all ended so, 1 one did not (its folder is kept and named).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", CUDA_DEVICE_MAX_CONNECTIONS="1", HF_HUB_OFFLINE="1")

import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from gipo_mc.config import Config, load_config  # noqa: E402
from gipo_mc.errors import CheckpointError, GipoError  # noqa: E402
from gipo_mc.rl import gi_ppo  # noqa: E402
from gipo_mc.run import checkpoint  # noqa: E402
from gipo_mc.supervised import dpo, reward_model, sft  # noqa: E402
from tests.runs import save_models  # noqa: E402

STEPS = 4
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "1": (1, []),
    "TP2": (2, ["parallel.tensor=2"]),
    "DP2": (2, []),
    "PP2": (2, ["parallel.pipeline=2"]),
    "TP2xPP2": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
}
_RL = ["data.prompts=[builtin]", "eval.reward=python:gipo_mc.data.synthetic:gold", "data.evaluation=[builtin:easy]"]
TRAINERS: dict[str, tuple[Callable[[Config], None], list[str]]] = {
    "sft": (sft.train, ["data.demonstrations=[builtin]"]),
    "reward": (reward_model.train, ["data.preferences=[builtin]"]),
    "dpo": (dpo.train, ["data.preferences=[builtin]"]),
    "ppo": (gi_ppo.train, [*_RL, "algorithm.name=ppo"]),
    "gi_ppo": (gi_ppo.train, [*_RL, "algorithm.name=gi_ppo"]),
}
_BASE: dict[str, Any] = {
    "run": {"iterations": STEPS, "seed": 5},
    "device": "cpu",
    "data": {"max_rows": 18, "prompt_length": 8, "sequence_length": 24},
    "train": {"batch_size": 8},
    "rollout": {"batch_size": 8, "max_new_tokens": 6},
    "algorithm": {"mini_batch_size": 4, "beta_ramp": 2},
    "parallel": {"micro_batch_size": 4, "timeout_minutes": 1},
    "policy": {"lr": 1e-3, "schedule": "linear", "warmup": 1},
    "critic": {"lr": 1e-3},
    "eval": {"prompts": 2, "every": 2},
    "checkpoint": {"every": 1},
}
#: Seconds that the ranks which were not killed have to leave by themselves.
_LEAVE = 2.0


class Disturbed(Exception):
    """A run did not end as it should."""


@dataclass
class Case:
    """One trainer in one layout. expected: what its undisturbed run ended with, which took `seconds`."""

    trainer: str
    layout: str
    folder: Path
    models: dict[str, str]
    expected: Any = None
    seconds: float = 0.0
    asynchronous: bool = False

    def config(self, name: str) -> Config:
        models = {"policy": self.models["policy"]}
        if self.trainer in ("ppo", "gi_ppo"):
            models["reward"] = self.models["reward"]
        base = _BASE | {"model": models, "run": _BASE["run"] | {"dir": str(self.folder), "name": name}}
        saves = f"checkpoint.async={str(self.asynchronous).lower()}"
        return load_config(None, [*TRAINERS[self.trainer][1], *LAYOUTS[self.layout][1], saves], base)

    def undisturbed(self) -> None:
        """The run that the others have to equal."""
        begin = time.monotonic()
        name = f"{self.trainer}-{self.layout}"
        self._finish(name)
        self.seconds = time.monotonic() - begin
        self.expected = outcome_of(self.folder / name)
        shutil.rmtree(self.folder / name)

    def disturbed(self, kills: int, choice: random.Random) -> int:
        """Run once with up to `kills` kills; returns how many came before the run was over. Raises Disturbed."""
        name = f"{self.trainer}-{self.layout}-disturbed"
        done, moments = 0, []
        while done < kills:
            moments.append(f"{(delay := choice.uniform(0.0, self.seconds)):.3f} s")
            if not self._kill_after(name, delay, choice):
                break
            done += 1
        try:
            self._finish(name)
            found = outcome_of(self.folder / name)
            if differs := [part for part in self.expected if found.get(part) != self.expected[part]]:
                raise Disturbed(f"{', '.join(differs)} differ from the undisturbed run")
        except Disturbed as error:
            raise Disturbed(f"{self.folder / name}, killed after {', '.join(moments)}: {error}") from None
        shutil.rmtree(self.folder / name)
        return done

    def _kill_after(self, name: str, delay: float, choice: random.Random) -> bool:
        """Start the ranks and kill one after `delay` seconds; False where the run was over before."""
        ranks = _start(self, name)
        victim = choice.choice(ranks)
        end = time.monotonic() + delay
        left = dict.fromkeys(ranks)
        while time.monotonic() < end and left:
            _reap(left)
            time.sleep(0.002)
        if not left:
            return False
        killed = victim in left
        if killed:
            os.kill(victim, signal.SIGKILL)
        end = time.monotonic() + _LEAVE
        while left and time.monotonic() < end:
            _reap(left)
            time.sleep(0.002)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for path in (self.folder / name / "checkpoints").glob("step_*"):
            try:
                checkpoint.verify(path)
            except CheckpointError as error:
                raise Disturbed(f"a checkpoint can be seen that does not verify: {error}") from error
        return killed

    def _finish(self, name: str) -> None:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in _start(self, name)]
        if any(codes):
            log = (self.folder / f"{name}.txt").read_text()
            raise Disturbed(f"exit codes {codes} of the ranks:\n{log[-3000:]}")


def outcome_of(run: Path) -> dict[str, Any]:
    """What a finished run left: hashes of its shards, its state, and its logs but for times."""
    last = run / "checkpoints" / f"step_{STEPS:08d}"
    checkpoint.verify(last)
    files = json.loads((last / "MANIFEST.json").read_text())["files"]
    return {
        "shards": {name: entry for name, entry in files.items() if name.endswith(".distcp")},
        "state": json.loads((last / "state.json").read_text()),
        "metrics": list(_rows(run / "metrics.jsonl")),
        "samples": list(_rows(run / "samples.jsonl")),
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        yield {key: value for key, value in row.items() if not key.startswith(("time/", "throughput/"))}


def _start(case: Case, name: str) -> list[int]:
    """Ranks as forks of this process, which has imported everything: their process ids."""
    count = LAYOUTS[case.layout][0]
    meeting = tempfile.mkdtemp(dir=case.folder)
    children = []
    for rank in range(count):
        if not (pid := os.fork()):
            _rank(case, name, rank, count, meeting)
        children.append(pid)
    return children


def _rank(case: Case, name: str, rank: int, count: int, meeting: str) -> None:
    code = 1
    gc.freeze()
    try:
        log = os.open(case.folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}/store", rank=rank, world_size=count)
        TRAINERS[case.trainer][0](case.config(name))
        code = 0
    except GipoError as error:
        print(f"rank {rank}: {error}", flush=True)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _reap(left: dict[int, Any]) -> None:
    for pid in list(left):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del left[pid]


def soak(
    kills: int,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    cases: list[tuple[str, str]],
    in_a_run: tuple[int, ...] = (1, 2, 3),
) -> int:
    """Runs of `cases` in turn until `kills` kills were made; returns how many runs there were. Raises Disturbed.

    in_a_run: how many kills a run may get before it ends, one of them drawn for each.
    """
    choice = random.Random(seed)
    models = save_models(folder / "models")
    prepared: dict[tuple[str, str], Case] = {}
    made = runs = 0
    while made < kills:
        trainer, layout = cases[runs % len(cases)]
        case = prepared.get((trainer, layout))
        if case is None:
            case = prepared[trainer, layout] = Case(trainer, layout, folder, models)
            case.undisturbed()  # whose saves are waited for
        case.asynchronous = runs % 2 == 0
        done = case.disturbed(min(choice.choice(in_a_run), kills - made), choice)
        made, runs = made + done, runs + 1
        how = "in the background" if case.asynchronous else "waited for"
        say(f"{made:4} of {kills} kills: {trainer} {layout}, saves {how}, killed {done} times, ended as undisturbed")
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="kills to make [200]")
    parser.add_argument("--seed", type=int, default=None, help="of the moments and the ranks [a new one]")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    transformers_logging.disable_progress_bar()
    print(f"seed {seed}: --kills {options.kills} --seed {seed} draws the same moments again", flush=True)
    cases = [(trainer, layout) for trainer in TRAINERS for layout in LAYOUTS]
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    begin = time.monotonic()
    try:
        runs = soak(options.kills, seed, folder, lambda text: print(text, flush=True), cases)
    except Disturbed as error:
        print(f"seed {seed}: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(f"seed {seed}: {options.kills} of {options.kills} kills, {runs} runs, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
