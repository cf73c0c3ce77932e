"""Memory and time of policy, critic and reference of 1B in bfloat16, with memory.offload and without.

    python benchmarks/gpu/offload.py [--device cuda] [--tiny] [--rounds 3] [--out FILE.json]

The passes of an iteration, without a rollout: policy, reference and critic score a batch, then critic and policy take a
step each. Every side is a process of its own. Reported of each: the peak of the allocator (on a CPU that of the models'
weights), bytes on the device between iterations, seconds of an iteration and of it those of waiting for copies, and the
sum of the policy's weights in the end: it has to be the same for all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

import torch
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.common.machine import describe_machine
from benchmarks.common.record import write
from benchmarks.gpu.decode import ONE_BILLION, TINY
from gipo_mc.config import OptimizerConfig, ParallelConfig
from gipo_mc.models.build import build_model
from gipo_mc.models.families import read_shape
from gipo_mc.models.micro_batch import MicroBatch, micro_batches, run_backward, run_forward
from gipo_mc.models.readout import response_statistics, response_values, token_log_probs, values_and_groups
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.parallel.memory.movers import mover_for
from gipo_mc.parallel.memory.offload import Offloader
from gipo_mc.types import Sequences

SIDES = {"none": [], "frozen": ["frozen"], "all": ["frozen", "optimizer", "idle"]}
GIB = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the program out")
    parser.add_argument("--rounds", type=int, default=3, help="iterations of each side that are measured [3]")
    parser.add_argument("--out", type=Path, help="write a JSON record")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    sides = {}
    for name in SIDES:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", name]
        sides[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        print(name, " ".join(f"{key} {value:.4g}" for key, value in sides[name].items()), flush=True)
    same = len({side["weights"] for side in sides.values()}) == 1
    if options.out:
        record = {"benchmark": "offload", "machine": describe_machine(), "device": options.device, "sides": sides}
        write(options.out, record | {"same_weights": same})
    if not same:
        print("The weights of the policy differ: offload has changed a result.", file=sys.stderr)
    return 0 if same else 1


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One side: after an iteration to warm up, `rounds` that count."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    layout = runtime.initialize(ParallelConfig(), options.device)
    with tempfile.TemporaryDirectory() as folder:
        kinds = SIDES[options.side]
        offloader = Offloader(kinds, mover_for(layout.device, Path(folder))) if kinds else Offloader()  # type: ignore[arg-type]
        models = Models(layout, offloader, tiny=options.tiny)
        models.iterate()
        waited, begin = offloader.seconds, time.perf_counter()
        peaks, between = [], []
        for _ in range(options.rounds):
            if layout.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            models.iterate()
            peaks.append(models.peak())
            offloader.rest()
            between.append(models.here())
        seconds = (time.perf_counter() - begin) / options.rounds
        with models.policy.whole():
            weights = sum(float(p.detach().double().sum()) for p in models.policy.model.parameters())
        offloader.close()
    return {
        "peak_gib": max(peaks) / GIB, "between_gib": max(between) / GIB, "iteration_s": seconds,
        "waiting_s": (offloader.seconds - waited) / options.rounds, "weights": weights,
    }  # fmt: skip


class Models:
    """Policy, reference and critic, and a batch for them."""

    def __init__(self, layout: Layout, offloader: Offloader, *, tiny: bool) -> None:
        shape = read_shape(LlamaConfig(**(TINY if tiny else ONE_BILLION), tie_word_embeddings=False))
        self.layout, self._most = layout, 0

        def engine(head: str, optimizer: OptimizerConfig | None) -> Engine:
            model = build_model(
                shape, layout, head=head, dtype=torch.bfloat16, trainable=optimizer is not None  # type: ignore[arg-type]
            )  # fmt: skip
            made = Engine(model, layout, optimizer, distributed_optimizer=True)
            made.offload(offloader, head)
            return made

        self.policy = engine("lm", OptimizerConfig(lr=1e-4))
        self.reference = engine("lm", None)
        self.critic = engine("value", OptimizerConfig(lr=1e-4))
        offloader.in_turn(one.resident for one in (self.policy, self.reference, self.critic))
        rows, length = (4, 16) if tiny else (16, 1024)
        tokens_BL = torch.randint(0, shape.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
        half_B = torch.full((rows,), length // 2)
        self._width = length // 2
        sequences = Sequences(*(tensor.to(layout.device) for tensor in (tokens_BL, half_B, half_B)))
        self._batch = micro_batches(sequences, ParallelConfig(micro_batch_size=4), layout)

    def iterate(self) -> None:
        """Everybody scores, and the trained ones take a step."""
        for model in (self.policy, self.reference):
            run_forward(model, self._batch, token_log_probs(1.0, 1024), {"logp": self._width})
            self._look()
        run_forward(self.critic, self._batch, values_and_groups(1, "xy"), {"values": self._width})
        self._look()
        for model, loss in ((self.critic, _value_loss), (self.policy, _log_prob_loss)):
            run_backward(model, self._batch, loss, {}, ("loss",))
            model.step()
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, self._held())

    def _held(self) -> int:
        engines = (self.policy, self.reference, self.critic)
        storages = [p.untyped_storage() for engine in engines for p in engine.model.parameters()]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def peak(self) -> int:
        """Bytes of an iteration at its peak."""
        return torch.cuda.max_memory_allocated() if self.layout.device.type == "cuda" else self._most

    def here(self) -> int:
        """Bytes now."""
        return torch.cuda.memory_allocated() if self.layout.device.type == "cuda" else self._held()


def _log_prob_loss(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> dict[str, Tensor]:
    return {"loss": -response_statistics(model, hidden_LBH, part, 1.0, 1024).logp_N.sum() / 1e4}


def _value_loss(model: Any, hidden_LBH: Tensor, part: MicroBatch) -> dict[str, Tensor]:
    return {"loss": (response_values(model, hidden_LBH, part) - 1.0).square().sum() / 1e4}


if __name__ == "__main__":
    sys.exit(main())
