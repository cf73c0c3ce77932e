"""Digests of whole runs: what a change of the code that is meant to change no number has to leave as it was.

    python tests/golden/digests.py                       run everything, compare with tests/golden/digests.json
    python tests/golden/digests.py --record FILE.json    run everything, write the digests
    python tests/golden/digests.py --only gi_ppo         the runs whose name begins with this

Ten iterations of SFT, reward model, DPO, PPO and GI-PPO, and of the forms of GI-PPO that take other paths, in the
layouts 1, TP2, TP2 x PP2 and DP2. A digest is the SHA-256 of every parameter and Adam moment of the last checkpoint, of
what it remembers between iterations, and of every metric but times. The configuration stands here, down to the models,
so that no default of the project is part of it; trainers are started through their scripts.

Sums depend on the processor's instruction set and on torch, so a record is only compared where both are the same.
Exit code: 0 all the same, 1 something differs, 2 the record is another machine's: record there with the old code first.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import platform
import runpy
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", CUDA_DEVICE_MAX_CONNECTIONS="1", HF_HUB_OFFLINE="1", GLOO_SOCKET_IFNAME="lo")

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from gipo_mc.data.synthetic import builtin_llama_config, builtin_tokenizer  # noqa: E402

RECORD = ROOT / "tests" / "golden" / "digests.json"
ITERATIONS = 10
LAYOUTS = {
    "1": (1, []),
    "TP2": (2, ["parallel.tensor=2"]),
    "TP2xPP2": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
    "DP2": (2, []),
}
COMMON = [
    f"run.iterations={ITERATIONS}",
    "run.seed=5",
    "device=cpu",
    "dtype=float32",
    "data.prompt_length=8",
    "data.sequence_length=24",
    "data.max_rows=96",
    "data.evaluation=[builtin:easy,builtin:hard]",
    "parallel.micro_batch_size=4",
    "parallel.timeout_minutes=3",
    "checkpoint.every=0",
    "policy.lr=0.001",
    "policy.warmup=2",
]
SUPERVISED = ["train.batch_size=18", "eval.every=5", "eval.prompts=12"]
RL = [
    "data.prompts=[builtin]",
    "rollout.batch_size=18",
    "rollout.max_new_tokens=8",
    "algorithm.mini_batch_size=6",
    "algorithm.epochs=2",
    "algorithm.kl_coef=0.1",
    "algorithm.beta_policy=0.3",
    "algorithm.reweight_cap=0.8",
    "algorithm.beta_ramp=4",
    "critic.lr=0.001",
    "eval.every=5",
    "eval.prompts=4",
    "eval.reward=python:gipo_mc.data.synthetic:gold",
]
#: name -> (script, options). The last three take the paths of other signals, trunks, advantages and group weights.
RUNS: dict[str, tuple[str, list[str]]] = {
    "sft": ("train_sft.py", ["data.demonstrations=[builtin]", *SUPERVISED]),
    "reward": ("train_reward.py", ["data.preferences=[builtin]", "train.margin=0.1", *SUPERVISED]),
    "dpo": ("train_dpo.py", ["data.preferences=[builtin]", "dpo.label_smoothing=0.1", *SUPERVISED]),
    "ppo": ("train_gi_ppo.py", ["algorithm.name=ppo", "algorithm.entropy_coef=0.01", *RL]),
    "gi_ppo": ("train_gi_ppo.py", ["algorithm.name=gi_ppo", "parallel.logit_rows=16", *RL]),
    "gi_ppo_shared": (
        "train_gi_ppo.py",
        [
            "algorithm.group_trunk=shared",
            "algorithm.signal=return",
            "algorithm.signal_form=log_prob",
            "algorithm.weights=population",
            "algorithm.best_group=objective",
            "algorithm.kl_in=loss",
            "algorithm.kl_estimator=k2",
            "algorithm.kl_target=2.0",
            "algorithm.balance=0.1",
            *RL,
        ],
    ),
    "gi_rloo": (
        "train_gi_ppo.py",
        ["algorithm.name=gi_rloo", "algorithm.assignment=hard", "rollout.samples_per_prompt=3", *RL],
    ),
    "group_dro": ("train_gi_ppo.py", ["algorithm.name=oracle_group_dro", "algorithm.normalize_reward=true", *RL]),
}
#: Runs beside the five of the contract are made in one layout with a pipeline, and in one process.
OTHERS = ("gi_ppo_shared", "gi_rloo", "group_dro")


def machine() -> dict[str, str]:
    """What the last bits of a sum depend on."""
    from gipo_mc.ops import describe_build

    return {
        "processor": platform.machine(),
        "torch": torch.__version__,
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "kernels": describe_build().split("(", 1)[1].split(";")[0],
    }


def save_models(folder: Path) -> dict[str, str]:
    """A random policy and a random reward model for the built-in task, by transformers alone."""
    fields = {**builtin_llama_config(), "initializer_range": 0.2}
    tokenizer = builtin_tokenizer()
    torch.manual_seed(3)
    for name, kind, own in (
        ("policy", LlamaForCausalLM, {}),
        ("reward", LlamaForSequenceClassification, {"num_labels": 1}),
    ):
        kind(LlamaConfig(**own, **fields)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"policy": str(folder / "policy"), "reward": str(folder / "reward")}


def run_ranks(script: str, options: list[str], ranks: int, log: Path) -> None:
    """`torchrun --nproc-per-node <ranks> scripts/<script> options`, as forks of this process: torch is here already."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(ranks):
        if not (pid := os.fork()):
            _rank(script, options, rank, ranks, port, log)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        raise RuntimeError(f"{script} {' '.join(options)} ended with {codes}:\n{log.read_text()[-3000:]}")


def _rank(script: str, options: list[str], rank: int, ranks: int, port: int, log: Path) -> None:
    code = 1
    gc.freeze()
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.set_num_threads(1)
        path = ROOT / "scripts" / script
        sys.argv = [str(path), *options]
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def digest_of(run: Path) -> dict[str, str]:
    """Digests of a finished run's parameters and moments, of what it remembers, and of its metrics."""
    checkpoint = run / "checkpoints" / f"step_{ITERATIONS:08d}"
    state = json.loads((checkpoint / "state.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/"))} for row in rows]
    return {
        "tensors": _sha256_of_tensors(checkpoint / "shards"),
        "state": _sha256({key: state[key] for key in ("step", "heads", "groups") if key in state}),
        "metrics": _sha256(kept),
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256_of_tensors(folder: Path) -> str:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process: so there is
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def carry_out(only: str) -> dict[str, dict[str, str]]:
    """Digests of every run in every layout, by "<name>/<layout>"."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="digests-") as temporary:
        models = save_models(Path(temporary))
        for name, (script, own) in RUNS.items():
            for layout, (ranks, parallel) in LAYOUTS.items():
                label = f"{name}/{layout}"
                if not label.startswith(only) or (name in OTHERS and layout not in ("1", "TP2xPP2")):
                    continue
                begin = time.monotonic()
                folder = Path(temporary) / label.replace("/", "-")
                words = [f"run.dir={temporary}", f"run.name={folder.name}", f"model.policy={models['policy']}"]
                if script == "train_gi_ppo.py":
                    words.append(f"model.reward={models['reward']}")
                run_ranks(script, [*COMMON, *own, *parallel, *words], ranks, Path(temporary) / f"{folder.name}.txt")
                found[label] = digest_of(folder)
                print(f"{label:22} {found[label]['tensors'][:12]}  {time.monotonic() - begin:5.1f} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the digests there instead of comparing")
    parser.add_argument("--only", default="", metavar="PREFIX", help="runs whose name begins with this [all]")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    here = machine()
    record = {} if options.record else json.loads(RECORD.read_text())
    if record and record["machine"] != here:
        print(f"The digests of {RECORD} were recorded on {record['machine']}, this is {here}: nothing to compare with.")
        return 2
    importlib.import_module("gipo_mc.rl.gi_ppo")  # before the forks: Megatron and what else trainers need
    found = carry_out(options.only)
    if options.record:
        options.record.write_text(json.dumps({"machine": here, "digests": found}, indent=1, sort_keys=True) + "\n")
        return 0
    before = {label: digest for label, digest in record["digests"].items() if label.startswith(options.only)}
    wrong = [
        f"{label}: {part}"
        for label in sorted({*before, *found})
        for part in ("tensors", "state", "metrics")
        if before.get(label, {}).get(part) != found.get(label, {}).get(part)
    ]
    print("\n".join(["These differ from the record:", *wrong]) if wrong else f"{len(found)} runs, all as recorded.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
