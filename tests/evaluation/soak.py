"""Kill `scripts/evaluate.py judge` at random moments, against a server that fails at random.

    python tests/evaluation/soak.py --kills 20 --seed 7        about a minute

The command loses its process to SIGKILL while it starts, asks, waits, is answered or writes, and is started again until
it has ended. Then the folder has to hold what that of an undisturbed command holds, line for line but for their order;
no comparison is missing or there twice; nothing that was in the journal was asked again; and the server's answers that
nobody had use of are no more than the requests that were under way at the kills. The key is in no file and no output.

Exit code: 0 all is so, 1 it is not (the folder is kept and named).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gipo_mc.evaluation.reading import games_of  # noqa: E402
from tests.evaluation.server import Body, Standin, drawn, error  # noqa: E402

KEY = "sk-soak-31b7a9e05d"
OPPONENTS, WORKERS = ("sft", "ppo"), 4
#: Of a hundred questions, those whose first answer has no verdict; the command then asks once more.
UNCLEAR = 10


def judged(body: Body) -> str:
    """The answer to a request, from its text alone: a mark of the question, and a verdict; for some none at first."""
    question = _question(body)
    mark = hashlib.sha256(question.encode()).hexdigest()
    if int(mark[:8], 16) % 100 < UNCLEAR and body["messages"][-1]["content"] == question:
        return f"{mark} I cannot decide."
    return decided(body)


def decided(body: Body) -> str:
    """`judged`, with a verdict at once."""
    mark = hashlib.sha256(_question(body).encode()).hexdigest()
    return f"{mark} I can.\n[[{'ABC'[int(mark[:8], 16) % 3]}]]"


def _question(body: Body) -> str:
    return str(next(message["content"] for message in body["messages"] if message["role"] == "user"))


def mark_of(body: Body) -> str:
    return judged(body).split(" ", 1)[0]


def write_inputs(folder: Path, url: str, prompts: int) -> list[str]:
    """Responses of ours and of the opponents, and a judge. Returns the command, without --out."""
    folder.mkdir(parents=True)
    for who in ("ours", *OPPONENTS):
        rows = [
            {
                "prompt": f"\n\nHuman: Question {n}?\n\nAssistant:",
                "response": f"{'same' if n % 8 == 0 else who} {n} [[A]] }}",
                "domain": "ab"[n % 2],
                "tokens": n + len(who),
            }
            for n in range(prompts)
        ]
        (folder / f"{who}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = folder / "judge.yaml"
    judge.write_text(
        f"kind: openai\nname: soak\nbase_url: {url}\nmodel: judge-1\nkey_variable: SOAK_JUDGE_KEY\n"
        f"prompt: helpful\nworkers: {WORKERS}\nretries: 30\ntimeout_seconds: 20\n"
    )
    against = [f"{who}={folder / who}.jsonl" for who in OPPONENTS]
    script = str(ROOT / "scripts" / "evaluate.py")
    return [sys.executable, script, "judge", "--ours", str(folder / "ours.jsonl"), "--against", *against] + [
        "--judge",
        str(judge),
    ]


@dataclass
class Run:
    """The command, started again and again into one folder, and all that it printed."""

    command: list[str]
    out: Path
    log: Path

    def start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "SOAK_JUDGE_KEY": KEY, "PYTHONPATH": str(ROOT)}
        with open(self.log, "ab") as log:
            return subprocess.Popen([*self.command, "--out", str(self.out)], stdout=log, stderr=log, env=env)

    def finish(self) -> None:
        status = self.start().wait(timeout=120)
        assert status == 0, f"exit code {status}: {self.log.read_text()[-2000:]}"

    def rows(self, name: str = "verdicts.jsonl") -> list[dict[str, Any]]:
        """Whole lines; one that was being written at a kill is none."""
        path = self.out / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]


def kill_somewhere(run: Run, server: Standin, draw: random.Random, most: int) -> bool:
    """Start the command and kill it: in its start, or after so many requests. False where it ended before."""
    before = len(server.requests)
    process = run.start()
    wanted = draw.randrange(-2, most)
    if wanted < 0:
        time.sleep(draw.uniform(0, 0.8))
    while process.poll() is None and len(server.requests) - before < wanted:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def soak(folder: Path, kills: int, seed: int, prompts: int = 40) -> str:
    """One line of what was seen. Raises AssertionError with what is wrong."""
    draw = random.Random(seed)
    refuses = {"max_tokens": (400, error("Unsupported parameter: 'max_tokens'", param="max_tokens"))}
    server = Standin(script=drawn(seed, 0.25), reply=judged, refuses=refuses, slow=0.05)
    try:
        command = write_inputs(folder / "in", server.url, prompts)
        calm, killed = Run(command, folder / "calm", folder / "calm.log"), Run(command, folder / "out", folder / "log")
        calm.finish()
        all_questions = {mark_of(body) for body in server.requests}
        needed = sum(server.answered.values())
        server.answered.clear()
        done = again = 0
        most = max(4, 2 * needed // max(kills, 1))
        while done < kills:
            asked_before = len(server.requests)
            journal = {row["text"].split(" ", 1)[0] for row in killed.rows()}
            if not kill_somewhere(killed, server, draw, most):
                shutil.rmtree(killed.out)  # it had ended: from the start again, until there were enough kills
                server.answered.clear()
                again += 1
                continue
            done += 1
            asked = {mark_of(body) for body in server.requests[asked_before:]}
            assert not asked & journal, "a request was made whose verdict was in the journal"
        killed.finish()
        compare(killed, calm, folder, prompts)
        # A question under way may have been answered twice by then: without a verdict, and again.
        wasted, limit = sum(server.answered.values()) - needed, 2 * WORKERS * kills
        assert 0 <= wasted <= limit, f"{wasted} answers were paid for in vain, more than {limit}"
        assert set(server.answered) and len(all_questions) == len({mark_of(body) for body in server.requests})
        return (
            f"{kills} kills, {again} new starts, {len(server.requests)} requests, {needed} answers needed, "
            f"{wasted} paid for twice: the same {len(killed.rows())} verdicts"
        )
    finally:
        server.close()


def compare(killed: Run, calm: Run, folder: Path, prompts: int) -> None:
    lines = [sorted(json.dumps(row, sort_keys=True) for row in run.rows()) for run in (killed, calm)]
    assert lines[0] == lines[1], "the verdicts differ from those of the command that nobody disturbed"
    places = [(row["setup"], row["pair"], row["ours_first"], row["repeat"]) for row in killed.rows()]
    assert len(set(places)) == len(places), "a comparison is in the journal twice"
    assert killed.rows("invalid.jsonl") == []
    games = games_of(killed.out)
    assert games == games_of(calm.out) and len(games) == 2 * prompts * len(OPPONENTS)
    assert sum(game.outcome == "identical" for game in games) == 2 * len(OPPONENTS) * len(range(0, prompts, 8))
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    own = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="judge-soak-"))
    print(f"seed {own.seed}, in {folder}", flush=True)
    try:
        print(soak(folder, own.kills, own.seed))
    except AssertionError as problem:
        print(f"NOT as it should be: {problem}\n{folder} is kept.")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
