"""The ranks of several hosts meet: before any collective they compare what they are, over the rendezvous store.

Ranks with other versions, other code or other options would hang in different collectives, or train something that
nobody wrote down. A rank that cannot start at all (its configuration file is not on its host) says so here, too: the
others would wait for it until the time-out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gipo_mc.config import hide
from gipo_mc.errors import ConfigError, GipoError, PeerError
from gipo_mc.parallel.launcher import several_hosts
from gipo_mc.parallel.nodes import network

#: Differences that an error lists.
_SHOWN = 5
#: Seconds that a rank waits for the store, to tell why it does not start.
_REFUSAL_SECONDS = 10.0


@dataclass(frozen=True)
class Host:
    """A host of the job. key: its own among all; address: what gloo offers the others; ranks: how many run there."""

    key: str
    name: str
    address: str
    ranks: int
    first: int


_hosts: tuple[Host, ...] = ()


def hosts() -> tuple[Host, ...]:
    """The hosts of this job, by their first rank; none where all ranks run on one."""
    return _hosts


def host_key() -> str:
    """What stands for this host among those of the job: agents of torchrun that share a machine are several."""
    number = os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or ""
    return f"{number}:{socket.gethostname()}"


def place() -> str:
    """Where this rank runs, to be added to a sentence; "" where all run on one host."""
    return f" (rank {os.environ.get('RANK', '0')} on host {socket.gethostname()})" if several_hosts() else ""


def meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """(the store of the rendezvous, this rank, all ranks), as the launcher's variables say. Raises PeerError."""
    with _store_answers():
        store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        return store, rank, world


def greet(store: dist.Store, rank: int, world: int, same: Mapping[str, object]) -> None:
    """Compare this rank with rank 0; returns when all ranks have come and are alike.

    store: of the rendezvous; its time-out is the longest wait. same: what else has to be the same on all ranks, by
    name. Raises on every rank: ConfigError where one is unlike rank 0, that rank's error where one cannot start,
    PeerError where one does not come or rank 0 is gone.
    """
    global _hosts
    address, chosen = network.choose_interface(os.environ.get("MASTER_ADDR", ""))
    leads = os.environ.get("LOCAL_RANK", "0") == "0"
    if chosen and leads:
        print(f"warning: {chosen}", file=sys.stderr, flush=True)
    own = Host(host_key(), socket.gethostname(), address, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), rank)
    mine = {**_versions(), **{name: hide(str(value)) for name, value in same.items()}}
    with _store_answers():
        said = _compared(_room(store), own if leads else None, rank, world, mine)
    _hosts = _understood(said)


def _compared(room: dist.Store, own: Host | None, rank: int, world: int, mine: Mapping[str, str]) -> dict[str, Any]:
    """What the last rank to come said to all, or one that refused. own: this host, on its first rank."""
    name = own.name if own else socket.gethostname()
    if own:
        room.append("hosts", json.dumps(asdict(own)) + "\n")  # type: ignore[attr-defined]
    if rank == 0:
        room.set("first", json.dumps({"host": name, "is": mine}))
    first = json.loads(room.get("first"))
    if "is" in first and (unlike := _differences(first, mine, name, rank)) and room.add("complaints", 1) == 1:
        room.set("complaint", unlike)
    if room.add("came", 1) == world:
        complaint = room.get("complaint").decode() if room.check(["complaint"]) else ""
        room.set("all", json.dumps({"table": room.get("hosts").decode(), "complaint": complaint}))
    said: dict[str, Any] = json.loads(room.get("all"))
    return said


def _understood(said: Mapping[str, Any]) -> tuple[Host, ...]:
    if "refusal" in said:
        error = GipoError(said["refusal"]["message"])
        error.exit_code = said["refusal"]["exit_code"]
        raise error
    if said["complaint"]:
        raise ConfigError(said["complaint"])
    return tuple(sorted((Host(**json.loads(line)) for line in said["table"].splitlines()), key=lambda one: one.first))


def tell_refusal(message: str, exit_code: int) -> None:
    """Tell ranks that wait in `greet` that this one does not start. Does nothing where this rank has been through that,
    or no store answers."""
    if _hosts:
        return
    seconds = timedelta(seconds=_REFUSAL_SECONDS)
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=seconds))
        _refuse(_room(store), hide(message) + place(), exit_code)
    except (dist.DistNetworkError, dist.DistStoreError, ValueError):
        return  # the others wait for their time-out, or are gone


def _refuse(room: dist.Store, message: str, exit_code: int) -> None:
    said = json.dumps({"refusal": {"message": message, "exit_code": exit_code}})
    room.set("all", said)
    room.set("first", said)


def host_at(text: str) -> str:
    """A sentence on the host whose address a collective's error names, or ""."""
    for host in _hosts:
        if f"[{host.address}]" in text:
            return f"The connection is to host {host.name} ({host.address}). "
    return ""


def _room(store: dist.Store) -> dist.Store:
    return dist.PrefixStore(f"gipo_mc/hosts/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def _store_answers() -> Iterator[None]:
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise PeerError(
            f"Not all hosts of this job came: rank {os.environ.get('RANK')} on host {socket.gethostname()} waited in "
            f"vain at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}, where the ranks meet. A start "
            f"that was refused on another host says why there. The store said: {error}"
        ) from error


def _differences(first: Mapping[str, Any], mine: Mapping[str, str], name: str, rank: int) -> str:
    theirs: Mapping[str, str] = first["is"]
    unlike = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
    if not unlike:
        return ""
    lines = [f"  - {key}: {mine.get(key, '-'):.80} and {theirs.get(key, '-'):.80}" for key in unlike[:_SHOWN]]
    if len(unlike) > _SHOWN:
        lines.append(f"  - and {len(unlike) - _SHOWN} more")
    return (
        f"The ranks of this job are not alike. On host {name} (rank {rank}) and on host {first['host']} (rank 0):\n"
        + "\n".join(lines)
        + "\nGive every host the same code, environment, variables "
        "and command."
    )


@cache
def _versions() -> dict[str, str]:
    digest = hashlib.sha256()
    package = Path(__file__).parents[2]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    names = ("megatron-core", "transformers", "tokenizers", "safetensors")
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in names},
        "gipo_mc": f"{version('gipo_mc')}, code {digest.hexdigest()[:8]}",
    }
