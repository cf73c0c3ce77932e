"""The GPUs that a plan knows, and the shares of their rates that it expects. Every constant has its source."""

from __future__ import annotations

from dataclasses import dataclass

from gipo_mc.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One kind of device.

    memory: bytes that it has; 0: not judged. flops: dense bf16 operations a second. bandwidth: bytes a second of its
    memory. nvlink: bytes a second and direction to the GPUs of its node. network: the same to other nodes. host: the
    same to the memory of the host.
    cuda: the plan follows the code's paths on CUDA, else those on a CPU. host_memory: bytes that a node's host has for
    the ranks on it; 0: not judged.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    nvlink: float
    network: float
    host: float
    cuda: bool = True
    host_memory: float = 0.0


@dataclass(frozen=True)
class Program:
    """What a program's host adds to the arithmetic.

    layer: seconds that nothing hides, for each layer of a pass and each of its ways (forward, backward). row: seconds
    of the host for each row of a decoding step. captured: are decoding steps CUDA graphs? Else the host starts their
    kernels one by one. reserves: does a row of generation wait for the pages of its longest response? Else it
    takes them as it grows, and the plan lets all rows have room.
    """

    name: str
    layer: float = 0.0
    row: float = 0.0
    captured: bool = True
    reserves: bool = False


#: This package: nothing beside the launches below, which arithmetic may hide, because nothing was measured yet.
OURS = Program("gipo_mc", reserves=True)

#: NVIDIA's data sheets: "A100 80GB SXM" (2021), "H100 SXM" (2023), "H200 SXM" (2024), "HGX B200" (2025); dense rates,
#: NVLink's total halved for one direction. The network is a port for each GPU as in DGX systems: 200 Gb/s (A100) and
#: 400 Gb/s (the others). The host is behind PCIe of 16 lanes: generation 4 (A100) or 5. Memory is what CUDA reports of
#: it, about 1 % less than the sheet's.
HARDWARE = {
    "a100": Hardware("A100 80GB", 79.2 * GIB, 312e12, 2.04e12, 300e9, 25e9, 32e9),
    "h100": Hardware("H100 80GB", 79.1 * GIB, 989e12, 3.35e12, 450e9, 50e9, 64e9),
    "h200": Hardware("H200 141GB", 139.8 * GIB, 989e12, 4.8e12, 450e9, 50e9, 64e9),
    "b200": Hardware("B200 180GB", 178.0 * GIB, 2250e12, 7.7e12, 900e9, 50e9, 64e9),
    "cpu": Hardware("CPU", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, cuda=False),
}
#: Share of the bf16 peak that matrix products reach in whole passes. Llama 3 405B trains at 38 to 43 % on H100 (arXiv
#: 2407.21783, table 4); Megatron-LM at 44 to 52 % on A100 (arXiv 2104.04473, table 1). Nothing of this package was
#: timed on a GPU: `--utilisation` replaces it.
UTILISATION = 0.40
#: Share of the memory's and the links' rate that is reached: an assumption. STREAM-like kernels reach 0.85 to 0.9 of
#: the former; all-reduces of large tensors 0.75 to 0.8 of the latter (nccl-tests, bus bandwidth).
MEMORY_SHARE, LINK_SHARE = 0.80, 0.75
#: Seconds of the host for one kernel of eager torch: an assumption, 5 to 10 us on current servers.
LAUNCH = 8e-6
#: Kernels of a layer, by the calls in its code: forward in training, forward and backward, and in generation.
LAUNCHES_FORWARD, LAUNCHES_BOTH, LAUNCHES_CACHED = 40, 120, 14
#: Seconds until a small collective has passed, for each of its ranks' hops: an assumption.
LATENCY_NVLINK, LATENCY_NETWORK = 10e-6, 30e-6
#: Bytes a second that one rank writes to a shared file system: an assumption.
DISK = 1e9
#: Bytes of each GPU that torch's allocator does not hold: CUDA context, cuBLAS workspaces, NCCL's buffers for the
#: groups of a rank. An assumption, not measured here.
RESERVED = 2.0 * GIB
#: Share of the rest that fragmentation leaves unusable: an assumption.
FRAGMENTED = 0.04


def hardware(name: str) -> Hardware:
    """The device of that name. Raises ConfigError."""
    if name not in HARDWARE:
        raise ConfigError(f"--gpu {name} is not known to the plan: write one of {', '.join(HARDWARE)}.")
    return HARDWARE[name]
