"""The whole pipeline on the built-in task, as a user would run it: SFT, reward model, PPO and GI-PPO with tensor and
pipeline parallelism on this machine's CPU or GPUs, then one report that compares the two.

Every step is one of the commands below, printed before it runs; run again, it continues where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from gipo_mc.tools.builtin import PPO_KL

#: (what, ranks, script, overrides). Four ranks: TP2 x PP2; two: TP2, or a pipeline of two.
STEPS: tuple[tuple[str, int, str, list[str]], ...] = (
    ("supervised fine-tuning", 2, "train_sft.py", ["parallel.tensor=2"]),
    ("reward model", 2, "train_reward.py", ["parallel.tensor=1", "parallel.pipeline=2"]),
    (
        "PPO with KL penalty",
        4,
        "train_gi_ppo.py",
        ["algorithm.name=ppo", f"algorithm.kl_coef={PPO_KL}", "run.name=builtin_ppo"],
    ),
    ("GI-PPO", 4, "train_gi_ppo.py", []),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default="runs", help="folder for the runs [runs]")
    parser.add_argument("--iterations", type=int, default=0, help="RL iterations [the built-in task's]")
    options = parser.parse_args()
    scripts = Path(__file__).resolve().parent
    begin = time.monotonic()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for what, ranks, script, overrides in STEPS:
        # One GPU for a rank; a machine with fewer shows the same on its CPU cores.
        device = "cuda" if gpus >= ranks else "cpu"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += [str(scripts / script), f"run.dir={options.dir}", f"device={device}", *overrides]
        if options.iterations and script == "train_gi_ppo.py":
            command.append(f"run.iterations={options.iterations}")
        print(f"\n=== {what}\n{shlex.join(command)}", flush=True)
        # Ranks that share a machine's cores do best with one thread each; torchrun would say so at every start.
        code = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}).returncode
        if code:
            print(f"\nerror: {what} ended with exit code {code}; its message stands above.", file=sys.stderr)
            return code
    report = Path(options.dir) / "report.html"
    runs = [
        str(Path(options.dir) / name) for name in ("builtin_ppo", "builtin_gi_ppo", "builtin_reward", "builtin_sft")
    ]
    command = [sys.executable, str(scripts / "report.py"), *runs, "--out", str(report)]
    print(f"\n=== report\n{shlex.join(command)}", flush=True)
    code = subprocess.run(command).returncode
    if not code:
        print(f"\nDone in {(time.monotonic() - begin) / 60:.1f} minutes. Open {report.resolve()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
