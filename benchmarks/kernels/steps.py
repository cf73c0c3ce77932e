"""One optimizer step of SFT and one PPO iteration's scoring and policy update: the kernels against eager torch.

    python benchmarks/kernels/steps.py [--quick] [--device cuda] [--out FILE.json]

The same code runs twice, the second time with GIPO_MC_OPS=reference, on a small Llama with a large vocabulary that is
made in memory. Every measurement is a process of its own, in rounds that interleave the two, so that its peak memory is
its own: the resident set's highest value during the timed steps less the value before them (on CUDA, what torch's
allocator held). Prints one table; nothing is written but what --out names.

On x86 CPUs without AVX-512 torch multiplies bfloat16 matrices up to a hundred times more slowly than float32 ones, and
a step would show nothing else: there bfloat16 is left out unless --dtypes asks for it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

import torch

from benchmarks.common.host_memory import resident_bytes
from benchmarks.common.machine import describe_machine, show_machine
from benchmarks.common.record import write

STEPS = ("sft", "ppo")
#: The two sides of every comparison: the values of GIPO_MC_OPS.
SIDES = ("native", "reference")
MIB = 2**20


def main() -> int:
    options = arguments()
    warnings.filterwarnings("ignore")
    if options.worker:
        print(json.dumps(measure(options)))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        "benchmark": "steps",
        "machine": describe_machine(),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "sizes": {name: getattr(options, name) for name in SIZES},
        "rounds": options.rounds,
    }
    dtypes = options.dtypes or ["float32", "bfloat16"]
    if not options.dtypes and slow_bfloat16(options.device, record["machine"]["instructions"]):
        dtypes = ["float32"]
        record["not_run"] = [{"dtype": "bfloat16", "reason": "torch's matrix products are too slow without AVX-512"}]
    record["cases"] = list(planned(dtypes, options.logit_rows))
    print(show_machine(record["machine"]))
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["sizes"].items()) + "\n", flush=True)
    for turn in range(options.rounds):
        for number, case in enumerate(record["cases"]):
            # Which side goes first changes from round to round.
            for side in SIDES[:: 1 if (turn + number) % 2 else -1]:
                case["runs"][side].append(child(options, case, side))
                seconds = statistics.median(case["runs"][side][-1]["seconds"])
                print(f"round {turn + 1}: {label(case)}, {side}: {seconds:.3g} s", file=sys.stderr, flush=True)
            case |= summary(case["runs"])
            if options.out:  # after every case, so that what is there survives an interruption
                write(options.out, record)
    print(table(record))
    for left_out in record.get("not_run", []):
        print(f"not run: {left_out['dtype']}: {left_out['reason']}")
    return 0


#: What the sizes mean, and their defaults (--quick: the second).
SIZES: dict[str, tuple[int, int, str]] = {
    "vocabulary": (32000, 4000, "tokens of the vocabulary"),
    "hidden": (256, 64, "hidden size"),
    "layers": (4, 2, "layers"),
    "sequences": (32, 8, "sequences of an SFT step and of a PPO iteration"),
    "mini_batch": (16, 8, "sequences of a PPO optimizer step"),
    "micro_batch": (16, 8, "sequences of one pass"),
    "prompt": (32, 8, "prompt tokens of each sequence"),
    "response": (128, 32, "response tokens of each sequence"),
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: does it run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="[cpu]")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads [torch's default]")
    parser.add_argument("--rounds", type=int, default=0, help="processes for each case and side [3]")
    parser.add_argument("--repeats", type=int, default=0, help="timed steps of a process, after one untimed [3]")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="[both]")
    parser.add_argument(
        "--logit-rows", nargs="+", type=int, default=[0, 512], help="values of parallel.logit_rows [0 512]"
    )
    for name, (default, _, meaning) in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=0, help=f"{meaning} [{default}]")
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    for name, sizes in SIZES.items():
        setattr(options, name, getattr(options, name) or sizes[options.quick])
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.repeats = options.repeats or (1 if options.quick else 3)
    return options


def slow_bfloat16(device: str, instructions: list[str]) -> bool:
    """Does torch multiply bfloat16 matrices with its slow loops here?"""
    return device == "cpu" and "avx2" in instructions and "avx512f" not in instructions


def planned(dtypes: list[str], logit_rows: list[int]) -> Iterator[dict[str, Any]]:
    for step in STEPS:
        for dtype in dtypes:
            for rows in logit_rows:
                yield {"step": step, "dtype": dtype, "logit_rows": rows, "runs": {side: [] for side in SIDES}}


def child(options: argparse.Namespace, case: dict[str, Any], side: str) -> dict[str, Any]:
    """What `measure` found in a process of its own. Raises CalledProcessError with the process's own words above it."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", case["step"], "--dtypes", case["dtype"]]
    command += ["--logit-rows", str(case["logit_rows"]), "--device", options.device]
    for name in ("repeats", "threads", *SIZES):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {**os.environ, "GIPO_MC_OPS": side, "PYTHONWARNINGS": "ignore"}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------- in the child process
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each timed step, by the clock and of the processor (all threads), memory of the process and what the
    steps added to it, and the first step's own figures."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step = {"sft": sft_step, "ppo": ppo_step}[options.worker](options)
    figures = step()  # untimed: first use of everything
    memory = Memory(options.device)
    seconds, processor_seconds = [], []
    for _ in range(options.repeats):
        begin, begin_processor = time.perf_counter(), time.process_time()
        step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        processor_seconds.append(time.process_time() - begin_processor)
    return {"seconds": seconds, "processor_seconds": processor_seconds, **memory.result(), "figures": figures}


class Memory:
    """Bytes before the timed steps, and the most during them."""

    def __init__(self, device: str) -> None:
        gc.collect()
        self.cuda = device == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        # Give back what the first step left free, and forget its peak.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = resident_bytes("VmRSS")

    def result(self) -> dict[str, int]:
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident_bytes("VmHWM")
        return {"before_bytes": self.before, "peak_bytes": peak, "step_bytes": peak - self.before}


def sft_step(options: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """Forward, backward and optimizer step over the sequences, as supervised/loop.py does it."""
    from gipo_mc.models.micro_batch import MicroBatch, micro_batches, run_backward
    from gipo_mc.supervised.sft import response_loss

    config, engine = configuration(options), engines(options)
    policy = engine("lm", config.policy)
    sequences = random_sequences(options, policy.layout.device)
    tokens = options.sequences * options.response

    def last_stage(model: Any, hidden_LBH: torch.Tensor, part: MicroBatch) -> dict[str, torch.Tensor]:
        outputs = response_loss(model, hidden_LBH, part, config.parallel.logit_rows)
        return outputs | {"loss": outputs["loss_sum"] / tokens}

    def step() -> dict[str, float]:
        packed = micro_batches(sequences, config.parallel, policy.layout)
        outputs = run_backward(policy, packed, last_stage, {"cross_entropy": 0})
        norm = policy.step().grad_norm
        return {"loss": float(outputs["cross_entropy"].sum()) / tokens, "grad_norm": norm}

    return step


def ppo_step(options: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """Scoring, advantages and policy update of a GI-PPO iteration, as rl/gi_ppo.py does them: without the rollout
    and the critic's update, which have no logits or few."""
    from gipo_mc.algorithms.group_source import GroupSource
    from gipo_mc.algorithms.state import RLState
    from gipo_mc.parallel.timing import Phases
    from gipo_mc.rl.scoring import Models, score
    from gipo_mc.rl.shaping import shape
    from gipo_mc.rl.update_policy import update_policy
    from gipo_mc.types import Prompt, Rollout

    config, engine = configuration(options), engines(options)
    policy, reference, critic = engine("lm", config.policy), engine("lm", None), engine("critic", None)
    device, count = policy.layout.device, options.sequences
    rollout = Rollout(
        sequences=random_sequences(options, device),
        prompt_index_B=torch.arange(count, device=device),
        domain_B=("all",) * count,
        sampler_logp_BT=torch.zeros(count, options.response, device=device),
        truncated_B=torch.zeros(count, dtype=torch.bool, device=device),
    )
    prompts = [Prompt(index, (1,), "all", "") for index in range(count)]
    reward_B = torch.linspace(-1, 1, count, device=device)
    models = Models(policy, reference, critic, lambda prompts, rollout: reward_B)
    groups = GroupSource("classifier", config.algorithm.groups)
    state = RLState.initial(groups.groups)

    def step() -> dict[str, float]:
        phases = Phases(policy.layout)
        outputs = score(models, prompts, rollout, config, phases)
        experience, _ = shape(rollout, outputs, state, config, groups)
        with phases("update_policy"):
            metrics = update_policy(policy, experience, config, 0)
        found = {name: metrics[f"policy/{name}"] for name in ("loss", "entropy", "grad_norm", "group_variance")}
        return found | phases.metrics()

    return step


def configuration(options: argparse.Namespace) -> Any:
    from gipo_mc.config import load_config

    base = {
        "parallel": {"micro_batch_size": options.micro_batch, "logit_rows": options.logit_rows[0]},
        "rollout": {"batch_size": options.sequences},
        # The second mini-batch has the forward pass for the group statistics that the first one does not need.
        "algorithm": {"mini_batch_size": options.mini_batch, "beta_ramp": 0, "entropy_coef": 0.01},
        "policy": {"lr": 1e-7},  # so that repeated steps stay alike
    }
    return load_config(None, [], base)


def engines(options: argparse.Namespace) -> Callable[..., Any]:
    """f(head, optimizer) -> the engine of a fresh model, in the process group of this one process."""
    from gipo_mc.config import ParallelConfig
    from gipo_mc.models.build import build_model
    from gipo_mc.models.shape import ModelShape
    from gipo_mc.parallel import runtime
    from gipo_mc.parallel.engine import Engine

    layout = runtime.initialize(ParallelConfig(), options.device)
    shape = ModelShape(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        layers=options.layers,
        heads=4,
        kv_heads=4,
        head_dim=options.hidden // 4,
        max_positions=options.prompt + options.response,
        initializer_range=0.05,
    )

    def engine(head: Any, optimizer: Any) -> Engine:
        dtype = getattr(torch, options.dtypes[0])
        groups = 2 if head == "critic" else 0
        model = build_model(
            shape, layout, head=head, groups=groups, dtype=dtype, trainable=optimizer is not None, seed=1
        )
        return Engine(model, layout, optimizer)

    return engine


def random_sequences(options: argparse.Namespace, device: torch.device) -> Any:
    from gipo_mc.types import Sequences

    shape = (options.sequences, options.prompt + options.response)
    return Sequences(
        torch.randint(0, options.vocabulary, shape).to(device),
        torch.full((options.sequences,), options.prompt, device=device),
        torch.full((options.sequences,), options.response, device=device),
    )


# ------------------------------------------------------------------------------------------------------ the table
def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over all timed steps, what the kernels gain, and by how much the losses of the two sides differ."""
    seconds, processor = (
        {side: statistics.median(s for run in runs[side] for s in run[clock]) for side in SIDES}
        for clock in ("seconds", "processor_seconds")
    )
    memory = {side: statistics.median(run["step_bytes"] for run in runs[side]) for side in SIDES}
    losses = [runs[side][0]["figures"]["loss"] for side in SIDES]
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "step_bytes": memory,
        "times_faster": seconds["reference"] / seconds["native"],
        "times_less_memory": memory["reference"] / max(memory["native"], 1),
        "loss_difference": abs(losses[0] - losses[1]),
    }


def label(case: dict[str, Any]) -> str:
    rows = f"{case['logit_rows']} rows of logits at a time" if case["logit_rows"] else "all logits at once"
    return f"{case['step']}, {case['dtype']}, {rows}"


def table(record: dict[str, Any]) -> str:
    """A line for each case, as Markdown."""
    lines = [
        "| step | kernels | eager torch | | memory, kernels | eager torch | | loss differs by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in record["cases"]:
        seconds, memory = case["seconds"], case["step_bytes"]
        lines.append(
            f"| {label(case)} | {seconds['native']:.3g} s | {seconds['reference']:.3g} s | {case['times_faster']:.2f}x "
            f"| {memory['native'] / MIB:.0f} MiB | {memory['reference'] / MIB:.0f} MiB "
            f"| {case['times_less_memory']:.2f}x | {case['loss_difference']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
