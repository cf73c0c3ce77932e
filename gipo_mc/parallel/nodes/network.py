"""Over which network gloo joins the ranks of several hosts.

gloo offers the other ranks the address that this host's own name stands for. Where that is 127.0.1.1 (Debian's
/etc/hosts) or nothing, it offers loopback, and ranks of other hosts connect to themselves. NCCL looks at the interfaces
and not at the name.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import MutableMapping
from pathlib import Path

from gipo_mc.errors import ConfigError

VARIABLE = "GLOO_SOCKET_IFNAME"
#: ioctl of Linux: the IPv4 address of an interface.
_SIOCGIFADDR = 0x8915


def choose_interface(meeting: str, environment: MutableMapping[str, str] | None = None) -> tuple[str, str]:
    """(the address that gloo offers other hosts, a sentence where this function chose it or "").

    meeting: the host where the ranks meet. Where the name of this host leads to no address that others reach and
    GLOO_SOCKET_IFNAME is not set, it is set to the interface that faces the meeting point; on the host of that, to the
    only one or the one that leads out. Raises ConfigError where the variable names loopback or no interface of this
    host, or none can be found.
    """
    env = os.environ if environment is None else environment
    host, interfaces = socket.gethostname(), addresses()
    if named := env.get(VARIABLE, "").split(",")[0]:
        if named not in interfaces:
            raise ConfigError(
                f"{VARIABLE}={named}, and host {host} has no such interface with an IPv4 address; it has "
                f"{_listed(interfaces)}. Export the one that the other hosts are reached by, or none."
            )
        if _is_loopback(interfaces[named]):
            raise ConfigError(
                f"{VARIABLE}={named} on host {host} is loopback ({interfaces[named]}), which no other host reaches. It "
                f"has {_listed(interfaces)}: export the one that the other hosts are reached by, or none."
            )
        return interfaces[named], ""
    found = _address_of(host)
    if found and not _is_loopback(found) and found in interfaces.values():
        return found, ""
    usable = {address: name for name, address in interfaces.items() if not _is_loopback(address)}
    if not usable:
        return found, ""  # "hosts" that are this machine
    facing = _address_facing(meeting)
    if facing not in usable:  # the ranks meet on this host
        facing = next(iter(usable)) if len(usable) == 1 else interfaces.get(_default_interface(), "")
    if facing not in usable:
        raise ConfigError(
            f"The name of host {host} stands for {found or 'no address'}, which no other host reaches. It has "
            f"{_listed(interfaces)}: export {VARIABLE} with the one that the other hosts are reached by."
        )
    env[VARIABLE] = usable[facing]
    return facing, (
        f"The name of host {host} stands for {found or 'no address'}, which no other host reaches: gloo uses "
        f"{usable[facing]} ({facing}). {VARIABLE} chooses another."
    )


def addresses() -> dict[str, str]:
    """Interface -> IPv4 address, of the interfaces that have one."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has none
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _address_of(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _address_facing(host: str) -> str:
    """This host's address on the way to `host`; "" where there is no way. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _default_interface() -> str:
    """Of the route that is taken where no other leads to an address; "" where there is none."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return next((row[0] for row in rows if row[1] == "00000000"), "")


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _listed(interfaces: dict[str, str]) -> str:
    usable = [f"{name} ({address})" for name, address in interfaces.items() if not _is_loopback(address)]
    return ", ".join(usable) or "none but loopback"
