"""Which interface gloo is given where a host's own name leads to no address that others reach."""

from __future__ import annotations

import socket

import pytest

from gipo_mc.errors import ConfigError
from gipo_mc.parallel.nodes import network
from gipo_mc.parallel.nodes.network import VARIABLE, choose_interface

LO, ETH, IB = {"lo": "127.0.0.1"}, {"eth0": "10.0.0.2"}, {"ib0": "10.1.0.2"}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch):
    """Give this host interfaces and the address of its own name."""

    def given(interfaces: dict[str, str], own: str) -> None:
        monkeypatch.setattr(network, "addresses", lambda: interfaces)
        monkeypatch.setattr(network, "_address_of", lambda name: own)
        monkeypatch.setattr(network, "_address_facing", lambda name: {"meet": "10.1.0.2"}.get(name, "127.0.0.1"))

    return given


def test_a_name_with_an_address_of_this_host_is_left_alone(host) -> None:
    host(LO | ETH | IB, "10.0.0.2")
    environment: dict[str, str] = {}
    assert choose_interface("meet", environment) == ("10.0.0.2", "") and environment == {}


@pytest.mark.parametrize(("own", "meeting", "chosen"), [("127.0.1.1", "meet", "ib0"), ("", "meet", "ib0")])
def test_another_name_gets_the_interface_that_faces_the_meeting_point(host, own, meeting, chosen) -> None:
    host(LO | ETH | IB, own)
    environment: dict[str, str] = {}
    address, said = choose_interface(meeting, environment)
    assert (address, environment) == ("10.1.0.2", {VARIABLE: chosen})
    assert f"stands for {own or 'no address'}" in said and "ib0 (10.1.0.2)" in said


def test_the_first_host_takes_its_only_interface_or_the_one_that_leads_out_or_asks(
    host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the ranks meet is itself, which its name says to be loopback."""
    host(LO | ETH, "127.0.1.1")
    environment: dict[str, str] = {}
    assert choose_interface("itself", environment)[0] == "10.0.0.2" and environment == {VARIABLE: "eth0"}
    host(LO, "127.0.1.1")
    assert choose_interface("itself", {}) == ("127.0.1.1", ""), "two agents on a machine without a network"
    host(LO | ETH | IB, "127.0.1.1")
    monkeypatch.setattr(network, "_default_interface", lambda: "ib0")
    assert choose_interface("itself", {})[0] == "10.1.0.2"
    monkeypatch.setattr(network, "_default_interface", lambda: "")
    with pytest.raises(
        ConfigError, match=r"It has eth0 \(10\.0\.0\.2\), ib0 \(10\.1\.0\.2\): export GLOO_SOCKET_IFNAME"
    ):
        choose_interface("itself", {})


def test_a_variable_that_cannot_be_meant_is_refused(host) -> None:
    host(LO | ETH, "10.0.0.2")
    with pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME=lo .* is loopback .*eth0 \(10\.0\.0\.2\)"):
        choose_interface("meet", {VARIABLE: "lo"})
    with pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME=ib7, .* no such interface"):
        choose_interface("meet", {VARIABLE: "ib7"})
    assert choose_interface("meet", {VARIABLE: "eth0"}) == ("10.0.0.2", "")


def test_the_interfaces_of_this_machine() -> None:
    assert network.addresses().get("lo") == "127.0.0.1"
    assert network._default_interface() in {"", *(name for _, name in socket.if_nameindex())}
    assert network._address_of("localhost") == "127.0.0.1"
    assert network._address_of(f"nowhere-{socket.gethostname()}.invalid") == ""
