"""Hosts that are one machine: each has a name, an address, processes, /tmp and /dev/shm of its own, and a cable to one
switch. Made of Linux namespaces, as root. Nothing of them has a name outside: when the process that made them ends,
however it ends, they are gone.

    with Hosts(2) as hosts:
        hosts[0].start(["python", "-c", "print('hello')"], log)
        hosts[1].cut()
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import TracebackType
from typing import Any

NETWORK = "10.77.0"
_PROGRAMS = ("unshare", "nsenter", "ip", "mount", "hostname")
_KINDS = ["--net", "--mount", "--uts", "--ipc"]


@functools.cache
def why_not() -> str:
    """Why no hosts can be made here, or ""."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"needs {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    tried = subprocess.run(
        ["unshare", *_KINDS, "--pid", "--fork", "--mount-proc", "sh", "-ec"]
        + ["ip link add sw type bridge; ip link add h1 type veth peer name up1; mount -t tmpfs none /tmp; hostname x"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    return f"namespaces are refused here: {tried.stderr.strip()[:200]}" if tried.returncode else ""


class _Namespace:
    """Namespaces that live as long as this process, or until `end`.

    Their first process waits for the end of its input, which is a pipe from here.
    """

    #: The ends of those pipes in this process.
    pipes: set[int] = set()  # noqa: RUF012 - of all of them

    def __init__(self, script: str) -> None:
        words = ["unshare", *_KINDS, "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"]
        self._process = subprocess.Popen(
            [*words, f"{script}\necho ready\nread -r line || true"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stdin is not None
        self.pipes.add(self._process.stdin.fileno())
        if self._process.stdout.readline() != "ready\n":
            self.end()
            raise RuntimeError(f"these namespaces could not be made: {script}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        #: Of the first process, whose end is that of all others there.
        self.pid = int(children[0])

    def inside(self, words: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid", *words]

    def run(self, script: str) -> str:
        done = subprocess.run(
            self.inside(["sh", "-ec", script]), capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout

    def end(self) -> None:
        """Kill every process there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self.pipes.discard(self._process.stdin.fileno())
        self._process.kill()  # --kill-child takes the first process along
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Host(_Namespace):
    """One host. Its processes are started with `start`."""

    def __init__(self, switch: _Namespace, number: int, count: int, resolves: str, mounts: Mapping[Path, Path]) -> None:
        self.name, self.address = f"node{number}", f"{NETWORK}.{number}"
        self._switch = switch
        names = [f"{NETWORK}.{other} node{other}" for other in range(1, count + 1) if other != number]
        own = {"address": [f"{self.address} {self.name}"], "loopback": [f"127.0.1.1 {self.name}"], "nothing": []}
        table = "\n".join(["127.0.0.1 localhost", *own[resolves], *names])
        # The shared folders are bound before /tmp is covered: they may lie there.
        binds = [f"mkdir -p /run/gipo/{at}; mount --bind {_q(source)} /run/gipo/{at}"
                 for at, source in enumerate(mounts.values())]  # fmt: skip
        rebinds = [f"mkdir -p {_q(target)}; mount --bind /run/gipo/{at} {_q(target)}"
                   for at, target in enumerate(mounts)]  # fmt: skip
        script = [
            "mount --make-rprivate /", f"hostname {self.name}", "ip link set lo up", "mount -t tmpfs run /run",
            f"printf '%s\\n' {_q(table)} >/run/hosts", "mount --bind /run/hosts /etc/hosts",
            *binds, "mount -t tmpfs tmp /tmp", "mount -t tmpfs shm /dev/shm", *rebinds,
        ]  # fmt: skip
        super().__init__("\n".join(script))
        # From here, where the machine's process ids are known.
        cable = f"h{number}"
        switch.run(f"ip link add {cable} type veth peer name up{number} && ip link set {cable} master sw up")
        subprocess.run(
            ["nsenter", "--target", str(switch.pid), "--net", "ip", "link", "set", f"up{number}", "netns",
             str(self.pid)], check=True, timeout=20,
        )  # fmt: skip
        self.run(f"ip link set up{number} name eth0 && ip addr add {self.address}/24 dev eth0 && ip link set eth0 up")
        self._cable = cable

    def start(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command here; what it prints is added to `log`, which lies outside."""
        with open(log, "ab") as output:
            return subprocess.Popen(
                self.inside(words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip

    def fork(self, work: Callable[..., Any], *args: Any) -> ForkProcess:
        """Call `work` here, in a fork of this process, which has imported everything. Its exit code is 0, 1 after an
        error, or what `work` ended it with."""
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._enter, args=(work, args))
        process.start()
        return process

    def _enter(self, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        handles = [os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts", "ipc", "pid", "mnt")]
        for pipe in _Namespace.pipes:
            os.close(pipe)  # whose end in the process that made the hosts is to be the end of them
        for handle in handles:
            if ctypes.CDLL(None, use_errno=True).setns(handle, 0):
                raise OSError(ctypes.get_errno(), "setns")
        child = os.fork()  # of the host's own processes; this one stays outside of them
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
        try:
            work(*args)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def cut(self) -> None:
        """Pull the cable at the switch: what is sent is lost, and nobody is told."""
        self._switch.run(f"ip link set {self._cable} nomaster")

    def plug(self) -> None:
        """Put the cable back."""
        self._switch.run(f"ip link set {self._cable} master sw")

    def kill(self) -> None:
        """SIGKILL to every process of the host but the first; its kernel closes the connections."""
        self.run("kill -KILL -1")


class Hosts:
    """A switch and `count` hosts, node1 (10.77.0.1), node2, ...

    resolves: what a host's own name stands for there: its "address", "loopback" (127.0.1.1, as Debian has it), or
    "nothing". mounts: folder that hosts see -> folder of this machine; what else lies below /tmp they do not see.
    private: folders that each host has of its own, empty.
    """

    def __init__(
        self, count: int, *, resolves: str = "address", shared: Sequence[Path] = (), private: Sequence[Path] = ()
    ) -> None:
        self._all: list[Host] = []
        self._switch = _Namespace("ip link set lo up; ip link add sw type bridge; ip link set sw up")
        try:
            for number in range(1, count + 1):
                # The environment that these tests run in may lie below /tmp, as a checkout may.
                mounts = {path: path for path in (*shared, Path(sys.prefix))}
                for path in private:
                    own = path.with_name(f"{path.name}-of-node{number}")
                    own.mkdir(parents=True, exist_ok=True)
                    mounts[path] = own
                self._all.append(Host(self._switch, number, count, resolves, mounts))
        except BaseException:
            self.end()
            raise

    def __getitem__(self, number: int) -> Host:
        return self._all[number]

    def __len__(self) -> int:
        return len(self._all)

    def end(self) -> None:
        for host in self._all:
            host.end()
        self._switch.end()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _q(text: Path | str) -> str:
    return shlex.quote(str(text))
