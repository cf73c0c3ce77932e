"""The built-in task, from nothing to a report, opens no connection but loopback and asks no name server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

from gipo_mc.report.report import build_report
from gipo_mc.rl import gi_ppo
from gipo_mc.run.command import run_command
from gipo_mc.tools import builtin
from tests.ranks import run_ranks

SMALL = ["run.iterations=1", "rollout.batch_size=8", "algorithm.mini_batch_size=8", "eval.prompts=2", "device=cpu"]


def _run(rank: int, folder: Path) -> list[str]:
    """What was asked of the network, in a process without the settings that keep the hub's libraries offline."""
    asked: list[str] = []

    def refuse(kind: str) -> Any:
        def refused(*arguments: object, **_: object) -> NoReturn:
            asked.append(f"{kind} {arguments[-1]}")
            raise OSError("the test has no network")

        return refused

    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or str(address[0]).startswith(("127.", "::1")):
            return real(self, address)
        return refuse("connect")(address)  # type: ignore[no-any-return]

    socket.socket.connect = connect  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = refuse("getaddrinfo")
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False
    sft = builtin.SFT
    small_sft = {"run": {"iterations": 2}, "data": {"max_rows": 64}, "eval": {"prompts": 0}}

    def base() -> dict[str, Any]:
        made = sft.base()
        return made | {key: made[key] | small for key, small in small_sft.items()}

    builtin.SFT = builtin.BuiltinTask(base, sft.prepare)
    words = [*SMALL, f"run.dir={folder}"]
    assert run_command("test", gi_ppo.train, argv=words, builtin=builtin.GI_PPO) == 0
    build_report([folder / "builtin_gi_ppo"], folder / "report.html")
    return asked


def test_the_built_in_task_asks_nothing_of_the_network(tmp_path: Path) -> None:
    assert run_ranks(_run, 1, tmp_path) == [[]]
    assert (tmp_path / "report.html").is_file()
