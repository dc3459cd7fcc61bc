"""The kernel of the overlay's unit tests against the real one in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeKernel

from agent.overlay.kernel import Kernel, NetlinkKernel
from cni import vxlan
from cni.vxlan import Device, Entries, Op, Peer
from host import netns, rtnl
from host.errors import NotFound
from host.netlink import Netlink

OWN = ip_address("192.0.2.1")


def wanted(underlay: int, **changes: Any) -> Device:
    fields: dict[str, Any] = {
        "name": "flannel.1",
        "vni": 1,
        "port": 8472,
        "underlay": underlay,
        "local": OWN,
        "mac": "02:00:00:00:00:01",
        "mtu": 1450,
        "address": ip_interface("10.244.1.0/32"),
    }
    return Device(**(fields | changes))


def peer(number: int, *, host: str = "", mac: str = "") -> Peer:
    return Peer(
        f"node{number}",
        ip_address(host or f"192.0.2.{number}"),
        (ip_network(f"10.244.{number}.0/24"),),
        mac or f"02:00:00:00:00:{number:02x}",
    )


@pytest.fixture(params=["fake", "netlink"])
def check(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[Callable[[Kernel], None]], None]]:
    """Runs a case with a kernel that has one device, with 192.0.2.1/24."""
    if request.param == "fake":
        yield lambda case: case(FakeKernel())
        return
    where: Path = request.getfixturevalue("new_netns")("node")

    def run(case: Callable[[Kernel], None]) -> None:
        def inside() -> None:
            with Netlink() as netlink:
                netlink.execute(rtnl.add_bridge("eth0", mac="02:ff:00:00:00:01"))
                netlink.execute(rtnl.address(netlink.get_link("eth0").index, ip_interface("192.0.2.1/24")))
            kernel = NetlinkKernel()
            try:
                case(kernel)
            finally:
                kernel.close()

        netns.run_in(where, inside)

    yield run


Check = Callable[[Callable[[Kernel], None]], None]


def test_the_underlay_is_the_device_with_our_address(check: Check) -> None:
    def case(kernel: Kernel) -> None:
        link, own = kernel.underlay(OWN)
        assert (link.name, link.mtu, str(own)) == ("eth0", 1500, "192.0.2.1/24")
        with pytest.raises(NotFound):
            kernel.underlay(ip_address("192.0.2.99"))

    check(case)


def test_the_device_is_made_kept_changed_and_removed(check: Check) -> None:
    def case(kernel: Kernel) -> None:
        underlay = kernel.underlay(OWN)[0].index
        assert kernel.find_link("flannel.1") is None
        made, reason = kernel.ensure_device(wanted(underlay))
        assert (made.mac, made.mtu, made.up, reason) == ("02:00:00:00:00:01", 1450, True, "")
        assert kernel.ensure_device(wanted(underlay)) == (made, "")
        changed, reason = kernel.ensure_device(wanted(underlay, mac="02:00:00:00:00:aa", mtu=1400))
        assert (changed.index, changed.mac, changed.mtu) == (made.index, "02:00:00:00:00:aa", 1400)
        assert reason == ""
        kernel.delete_device("flannel.1")
        kernel.delete_device("flannel.1")
        assert kernel.find_link("flannel.1") is None

    check(case)


def test_entries_are_set_replaced_and_removed(check: Check) -> None:
    def case(kernel: Kernel) -> None:
        underlay = kernel.underlay(OWN)[0].index
        device = kernel.ensure_device(wanted(underlay))[0].index
        assert kernel.entries(device, 4) == Entries()
        present = Entries()
        for peers in (
            [peer(2), peer(3)],
            [peer(2, host="192.0.2.22"), peer(3)],
            [peer(2, mac="02:00:00:00:00:22"), peer(3), peer(4)],
            [peer(4)],
            [],
        ):
            target, problems = vxlan.desired(peers, device=device, underlay=underlay)
            assert problems == []
            assert kernel.apply(vxlan.plan(target, present), device=device) == []
            present = kernel.entries(device, 4)
            assert present == target

    check(case)


def test_direct_routes_need_no_device(check: Check) -> None:
    def case(kernel: Kernel) -> None:
        underlay = kernel.underlay(OWN)[0].index
        direct = Peer("node2", ip_address("192.0.2.2"), (ip_network("10.244.2.0/24"),))
        target, _ = vxlan.desired([direct], device=0, underlay=underlay)
        assert kernel.apply(vxlan.plan(target, Entries()), device=0) == []
        assert kernel.entries(0, 4) == target

    check(case)


def test_removing_what_is_gone_is_no_failure(check: Check) -> None:
    def case(kernel: Kernel) -> None:
        underlay = kernel.underlay(OWN)[0].index
        device = kernel.ensure_device(wanted(underlay))[0].index
        target, _ = vxlan.desired([peer(2)], device=device, underlay=underlay)
        removal = [Op(entry, remove=True) for entry in (*target.routes, *target.fdbs, *target.arps)]
        assert kernel.apply(removal, device=device) == []

    check(case)


def test_a_deleted_device_takes_its_entries_along(check: Check) -> None:
    def case(kernel: Kernel) -> None:
        underlay = kernel.underlay(OWN)[0].index
        device = kernel.ensure_device(wanted(underlay))[0].index
        target, _ = vxlan.desired([peer(2)], device=device, underlay=underlay)
        kernel.apply(vxlan.plan(target, Entries()), device=device)
        kernel.delete_device("flannel.1")
        assert kernel.entries(0, 4) == Entries()
        again = kernel.ensure_device(wanted(underlay))[0].index
        assert kernel.entries(again, 4) == Entries()

    check(case)
