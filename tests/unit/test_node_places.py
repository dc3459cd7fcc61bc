"""Which device and addresses a node takes, and when they count as changed."""

from __future__ import annotations

import ipaddress

import pytest

from agent.config import nodelet
from agent.config.nodelet import OverlaySettings
from agent.node import addresses, places
from agent.node.places import LOOK_SECONDS, Interface, NoAddress, Places
from host.clocks import FakeClock
from host.errors import InputError


def device(name: str, *texts: str) -> Interface:
    return Interface(name, tuple(ipaddress.ip_address(text) for text in texts))


NAT, LAN = device("eth0", "10.0.2.15"), device("eth1", "192.168.56.11", "192.168.56.99", "fd00::11")
DEVICES = [device("lo"), NAT, LAN, device("cbr0")]


def found(node_ips: tuple[str, ...] = (), **wished: str) -> Places:
    return places.find(
        OverlaySettings(**wished), node_ips=node_ips, server="https://127.0.0.1:6443", devices=lambda: DEVICES
    )


def test_the_api_server_decides_where_nobody_else_does():
    assert found() == Places(("127.0.0.1",), ("127.0.0.1",))
    assert found(("10.0.0.5", "fd00::5")) == Places(("10.0.0.5", "fd00::5"), ("10.0.0.5", "fd00::5"))


@pytest.mark.parametrize(
    "wished",
    [
        {"iface": "eth1"},
        {"iface": "192.168.56.99"},
        {"iface_regex": "^eth1"},
        {"iface_regex": r"^192\.168\."},
    ],
)
def test_a_chosen_device_gives_the_node_its_address_too(wished):
    assert found(**wished) == Places(("192.168.56.11",), ("192.168.56.11", "fd00::11"))
    assert found(("10.0.0.5",), **wished) == Places(("10.0.0.5",), ("192.168.56.11", "fd00::11"))
    assert found(("0.0.0.0",), **wished).node == ("192.168.56.11",)


def test_the_device_that_reaches_an_address():
    assert found(iface_can_reach="127.0.0.9") == Places(("127.0.0.1",), ("127.0.0.1",))


def test_a_device_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        InputError, match=r"overlay\.iface: nothing is 'eth7' here; there are eth0 \(10\.0\.2\.15\); "
    ):
        found(iface="eth7")
    with pytest.raises(InputError, match=r"overlay\.ifaceRegex: nothing is '\^wlan' here"):
        found(iface_regex="^wlan")


def test_a_device_without_an_address_is_waited_for():
    with pytest.raises(NoAddress, match="device cbr0 has no address yet"):
        found(iface="cbr0")


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"iface": "a", "ifaceCanReach": "10.0.0.1"}, "set one of iface, ifaceRegex and ifaceCanReach"),
        ({"ifaceRegex": "("}, "overlay.ifaceRegex: missing )"),
        ({"ifaceCanReach": "a name"}, "overlay.ifaceCanReach: 'a name' does not appear to be"),
    ],
)
def test_bad_settings_are_named(overlay, words):
    document = {"apiVersion": nodelet.API_VERSION, "kind": nodelet.KIND, "overlay": overlay}
    with pytest.raises(InputError) as caught:
        nodelet.build(document, where="f.yaml")
    assert words in str(caught.value) and str(caught.value).startswith("f.yaml: ")


class Quick(FakeClock):
    """A clock on which nobody waits."""

    slept = 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds


NOW, OTHER = Places(("10.0.0.1",), ("10.0.0.1",)), Places(("10.0.0.2",), ("10.0.0.2",))


async def test_only_a_lasting_change_counts():
    script = [NOW, OTHER, NOW, OSError("no route"), OTHER, OSError("no route"), OTHER, OTHER]

    def look() -> Places:
        seen = script.pop(0)
        if isinstance(seen, Exception):
            raise seen
        return seen

    clock = Quick()
    assert await places.moved(look, NOW, clock=clock, present=lambda: {"10.0.0.2"}) == OTHER
    assert script == [] and clock.slept == 8 * LOOK_SECONDS


async def test_an_address_that_is_still_there_has_not_changed():
    """The name of an API server may be several addresses, each reached by another device."""
    there = [{"10.0.0.1", "10.0.0.2"}] * 5 + [{"10.0.0.2"}] * 2
    clock = Quick()
    assert await places.moved(lambda: OTHER, NOW, clock=clock, present=lambda: there.pop(0)) == OTHER
    assert there == [] and clock.slept == 7 * LOOK_SECONDS


def test_vagrants_address_is_named():
    assert "10.0.2.15 looks like VirtualBox NAT" in addresses.warning(("10.0.2.15",), ())
    assert addresses.warning(("10.0.2.15",), ("10.0.2.15",)) == ""
