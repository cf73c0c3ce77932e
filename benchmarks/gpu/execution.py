"""What a GPU must settle of how a model is computed: each way beside the plain one, three steps of the same batch.

    python benchmarks/gpu/execution.py [--device cuda] [--tiny] [--out FILE]

One rank, bfloat16. For TransformerEngine's layers, recomputation, overlap, float32 logits and FP8: seconds of a step,
memory at its peak, losses, and how far the gradients of the first step are from those of the plain way (the norm of the
difference over the norm). Exit code: 0 where all that can run here is as it should be, 1 where something is not; the
last lines say what.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from gipo_mc.config import OptimizerConfig, ParallelConfig  # noqa: E402
from gipo_mc.models import layers  # noqa: E402
from gipo_mc.models.build import build_model  # noqa: E402
from gipo_mc.models.execution import PLAIN, Execution  # noqa: E402
from gipo_mc.models.micro_batch import MicroBatch, micro_batches  # noqa: E402
from gipo_mc.models.shape import ModelShape  # noqa: E402
from gipo_mc.parallel import runtime, sharded_files  # noqa: E402
from gipo_mc.parallel.engine import Engine  # noqa: E402
from gipo_mc.parallel.layout import Layout  # noqa: E402
from gipo_mc.parallel.megatron import transformer_engine  # noqa: E402
from gipo_mc.supervised.sft import response_loss  # noqa: E402
from gipo_mc.types import Sequences  # noqa: E402

STEPS, ROWS = 3, 4
#: Largest difference of gradients that is rounding: of bfloat16 sums in another order, and of FP8's three bits.
BFLOAT16, FP8 = 0.03, 0.3


class Way:
    """One engine, trained for `STEPS` steps."""

    def __init__(self, layout: Layout, shape: ModelShape, execution: Execution, *, te: bool, **options: Any) -> None:
        found = layers.has_transformer_engine
        layers.has_transformer_engine = lambda config: te
        try:
            model = build_model(
                shape, layout, head="lm", dtype=torch.bfloat16, trainable=True, seed=1, execution=execution
            )
        finally:
            layers.has_transformer_engine = found
        self.engine = Engine(model, layout, OptimizerConfig(lr=1e-4), total_steps=9, **options)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.memory = 0

    def step(self, parts: list[MicroBatch]) -> None:
        def loss(model: Any, hidden_LBH: torch.Tensor, part: MicroBatch) -> dict[str, torch.Tensor]:
            outputs = response_loss(model, hidden_LBH, part, 128)
            return outputs | {"loss": outputs["loss_sum"] / int(part.sequences.response_length_B.sum()) / len(parts)}

        on_cuda = parts[0].tokens_BL.is_cuda
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before, begin = torch.cuda.memory_allocated() if on_cuda else 0, time.perf_counter()
        outputs = self.engine.forward_backward(parts, loss)
        self.losses.append(sum(float(output["loss"]) for output in outputs))
        if on_cuda:
            torch.cuda.synchronize()
            self.memory = torch.cuda.max_memory_allocated() - before
        self.seconds.append(time.perf_counter() - begin)

    def gradients(self) -> torch.Tensor:
        """All of them, by the names that weights have without TransformerEngine."""
        named = {
            name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.").replace(
                "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."
            ): parameter.main_grad.flatten()  # type: ignore[attr-defined]
            for name, parameter in self.engine.model.named_parameters()
        }
        return torch.cat([named[name] for name in sorted(named)])

    def run(self, parts: list[MicroBatch]) -> torch.Tensor:
        """The gradients of the first step."""
        first = torch.zeros(0)
        for number in range(STEPS):
            self.step(parts)
            if number == 0:
                first = self.gradients().clone()
            self.engine.step()
        return first

    def continues(self, again: Way, parts: list[MicroBatch], folder: Path) -> tuple[bool, bool]:
        """Has `again`, filled from a checkpoint of this one, the same weights, and does it take the same next step?"""
        folder.mkdir()
        sharded_files.write(self.engine.sharded_state("m"), folder)
        state = sharded_files.read(again.engine.sharded_state("m", is_loading=True), folder)
        again.engine.load_sharded_state("m", state)
        loaded = self._same_weights(again)
        for way in (self, again):
            way.step(parts)
            way.engine.step()
        return loaded, self._same_weights(again)

    def _same_weights(self, other: Way) -> bool:
        pairs = zip(self.engine.model.parameters(), other.engine.model.parameters(), strict=True)
        return all(torch.equal(one, two) for one, two in pairs)


def check(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """(figures, what is not as it should be)."""
    layout = runtime.initialize(ParallelConfig(), options.device)
    hidden, count, length = (64, 2, 32) if options.tiny else (1024, 8, 512)
    shape = ModelShape(
        vocab_size=1024 if options.tiny else 32000, hidden_size=hidden, intermediate_size=hidden * 2, layers=count,
        heads=hidden // 32, kv_heads=hidden // 64, head_dim=32,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    tokens_BL = torch.randint(shape.vocab_size, (2 * ROWS, length), generator=generator)
    half = torch.full((2 * ROWS,), length // 2)
    parts = micro_batches(Sequences(tokens_BL, half, half), ParallelConfig(micro_batch_size=ROWS), layout).parts
    te = not transformer_engine.problem() if options.device == "cuda" else False
    ways: dict[str, tuple[Execution, float, dict[str, Any]]] = {
        "selective": (Execution("selective"), BFLOAT16, {}),
        "full": (Execution("full"), BFLOAT16, {}),
        "overlap": (PLAIN, BFLOAT16, {"overlap": True, "distributed_optimizer": True}),
        "fp32_logits": (Execution(fp32_logits=True), BFLOAT16, {}),
    }
    if te:
        ways |= {"transformer_engine": (PLAIN, BFLOAT16, {"te": True})}
        ways |= {"te_overlap": (Execution("full"), BFLOAT16, {"te": True, "overlap": True})}
        if torch.cuda.get_device_capability() >= (8, 9):
            ways |= {"fp8": (Execution(fp8=True), FP8, {"te": True})}
            ways |= {"fp8_full": (Execution("full", fp8=True), FP8, {"te": True})}
    plain = Way(layout, shape, PLAIN, te=False)
    expected = plain.run(parts)
    figures: dict[str, Any] = {"transformer_engine": transformer_engine.problem() or "used", "plain": _figures(plain)}
    problems = []
    for name, (execution, most, given) in ways.items():
        way = Way(layout, shape, execution, **({"te": False} | given))
        difference = float((way.run(parts) - expected).norm() / expected.norm())
        figures[name] = {**_figures(way), "difference": difference, "same_bits": difference == 0.0}
        if not difference <= most or not all(map(math.isfinite, way.losses)):
            problems.append(f"{name}: gradients differ by {difference:.3g}, more than {most}; losses {way.losses}")
    for sharded in (False, True):
        pair = [Way(layout, shape, PLAIN, te=te, distributed_optimizer=sharded) for _ in range(2)]
        pair[0].run(parts)
        loaded, same = pair[0].continues(pair[1], parts, folder / f"{sharded}")
        name = f"continues, distributed_optimizer={'on' if sharded else 'off'}"
        figures[name] = {"same_weights": loaded, "same_next_step": same}
        # torch's attention may add up gradients on a GPU in any order.
        if not loaded or not (same or options.device == "cuda"):
            problems.append(f"{name}: {figures[name]}")
    return figures, problems


def _figures(way: Way) -> dict[str, Any]:
    return {"seconds": min(way.seconds[1:]), "memory": way.memory, "losses": way.losses}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try this program out")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if options.device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/one", rank=0, world_size=1)
        figures, problems = check(options, Path(folder))
        torch.distributed.destroy_process_group()
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures))
    print("\n".join(problems) or "all as it should be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
