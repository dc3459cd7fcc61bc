"""The CNI plugin on real namespaces: wiring, leases, repetition, and kills at every step."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cnikit import call, leases, ports
from lan import Lan, Machine, ping, udp_source

from cni import errors
from cni.config import Attachment
from cni.errors import CniError
from cni.wiring import host_name
from host import netns, processes, rtnl
from host.netlink import Netlink

Make = Callable[[str], Path]


@pytest.fixture
def node(new_netns: Make, tmp_path: Path) -> Machine:
    """One node on a LAN of its own."""
    return Lan(new_netns, tmp_path).add_node()


def test_add_gives_a_working_pod(node: Machine) -> None:
    pod, ip = node.add_pod("p1")
    _other, other_ip = node.add_pod("p2")
    assert (ip, other_ip) == ("10.244.1.2", "10.244.1.3")
    assert ping(pod, "10.244.1.1"), "the node's bridge"
    assert ping(pod, other_ip), "another pod"
    assert ping(pod, ip), "itself"
    assert ping(node.netns, ip), "from the node"
    assert ping(pod, "127.0.0.1"), "loopback is up"
    assert call(node, "CHECK", "p1", pod) == {}
    assert leases(node) == {ip: "p1", other_ip: "p2"}


def test_what_the_kernel_shows(node: Machine) -> None:
    pod, ip = node.add_pod("p1")
    with Netlink(node.netns) as netlink:
        bridge = netlink.get_link("cbr0")
        port = netlink.get_link(host_name(Attachment("p1", "eth0")))
        assert (bridge.mac, bridge.mtu, bridge.up) == ("0a:58:0a:f4:01:01", 1450, True)
        assert (port.master, port.mtu, port.hairpin) == (bridge.index, 1450, True)
        assert port.alias == f"nodelet p1/eth0 {ip} default/p1"
    with Netlink(pod) as netlink:
        eth0 = netlink.get_link("eth0")
        assert (eth0.mac, eth0.mtu, eth0.up) == ("0a:58:0a:f4:01:02", 1450, True)
        default = [route for route in netlink.routes() if route.destination.prefixlen == 0]
        assert [str(route.gateway) for route in default] == ["10.244.1.1"]


def test_address_used_again_is_reachable_at_once(node: Machine) -> None:
    small = {"subnets": ["10.244.1.0/30"]}
    watcher_node = node.netns
    first, ip = node.add_pod("p1", **small)
    assert ping(watcher_node, ip)
    call(node, "DEL", "p1", first, **small)
    _second, again = node.add_pod("p2", **small)
    assert again == ip
    assert ping(watcher_node, ip, timeout=0.5), "no stale neighbour entry"


def test_add_again_keeps_the_address(node: Machine) -> None:
    pod, ip = node.add_pod("p1")
    again = call(node, "ADD", "p1", pod)
    assert again["ips"][0]["address"] == f"{ip}/24"
    assert ping(pod, "10.244.1.1")
    assert leases(node) == {ip: "p1"}


def test_del_twice_without_netns_and_of_nobody(node: Machine) -> None:
    pod, _ = node.add_pod("p1")
    netns.delete(pod)
    for name in ("p1", "p1", "never-seen"):
        assert call(node, "DEL", name, pod) == {}
        assert call(node, "DEL", name) == {}
    assert (leases(node), ports(node)) == ({}, set())


def test_fifty_parallel_adds_share_nothing(node: Machine, new_netns: Make) -> None:
    names = [f"p{number}" for number in range(50)]
    paths = {name: new_netns(name) for name in names}
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda name: call(node, "ADD", name, paths[name]), names))
        addresses = {result["ips"][0]["address"].split("/")[0] for result in results}
        assert len(addresses) == 50
        assert set(leases(node)) == addresses
        list(pool.map(lambda name: call(node, "DEL", name, paths[name]), names))
    assert (leases(node), ports(node)) == ({}, set())


def test_range_used_up(node: Machine, new_netns: Make) -> None:
    small = {"subnets": ["10.244.1.0/30"]}
    node.add_pod("p1", **small)
    with pytest.raises(CniError, match="no free address") as caught:
        call(node, "ADD", "p2", new_netns("p2"), **small)
    assert caught.value.code == errors.ADDRESSES_EXHAUSTED
    assert list(leases(node).values()) == ["p1"]


def test_failed_add_leaves_nothing(node: Machine, new_netns: Make, tmp_path: Path) -> None:
    plain_file = tmp_path / "file"
    plain_file.touch()
    taken = new_netns("taken")
    netns.run_in(taken, _make_eth0)
    for path in (plain_file, tmp_path / "gone", taken, node.netns):
        with pytest.raises(CniError):
            call(node, "ADD", "p1", path)
    assert (leases(node), ports(node)) == ({}, set())


def _make_eth0() -> None:
    with Netlink() as netlink:
        netlink.execute(rtnl.add_bridge("eth0", mac="02:00:00:00:00:07"))


def test_gc_makes_leases_equal_live_pods(node: Machine) -> None:
    kept, ip = node.add_pod("kept")
    node.add_pod("lost")
    valid = {"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]}
    assert call(node, "GC", "", **valid) == {}
    assert leases(node) == {ip: "kept"}
    assert ports(node) == {host_name(Attachment("kept", "eth0"))}
    assert ping(kept, "10.244.1.1")


def test_leases_lost_under_running_pods_are_found_in_the_kernel(node: Machine, new_netns: Make) -> None:
    _, ip = node.add_pod("p1")
    for file in (node.state / "nodelet" / "leases").iterdir():
        file.unlink()
    (node.state / "nodelet" / "leases").rmdir()
    (node.state / "nodelet" / "last-4").unlink()
    _, other = node.add_pod("p2")
    assert other != ip
    assert leases(node) == {ip: "p1", other: "p2"}


def test_after_a_reboot_all_leases_are_void(node: Machine, new_netns: Make) -> None:
    _pod, _ip = node.add_pod("p1")
    (node.state / "nodelet" / "boot_id").write_text("an earlier boot")
    call(node, "DEL", "other")
    assert leases(node) == {}


def test_check_names_what_is_wrong(node: Machine) -> None:
    pod, ip = node.add_pod("p1")

    def lose_address() -> None:
        with Netlink() as netlink:
            eth0 = netlink.get_link("eth0")
            ours = next(a for a in netlink.addresses(eth0.index) if a.address.version == 4)
            netlink.execute(rtnl.address(eth0.index, ours.address, remove=True))

    netns.run_in(pod, lose_address)
    with pytest.raises(CniError, match=f"has lost {ip}"):
        call(node, "CHECK", "p1", pod)
    with pytest.raises(CniError, match="not leased"):
        call(node, "CHECK", "p2", pod)


def test_masquerade_only_towards_the_outside(new_netns: Make, tmp_path: Path) -> None:
    lan = Lan(new_netns, tmp_path)
    node, outside = lan.add_node(), lan.add_node()
    pod, ip = node.add_pod("p1")
    other, other_ip = node.add_pod("p2")
    assert udp_source(pod, outside.netns, outside.ip) == node.ip
    assert udp_source(pod, other, other_ip) == ip


def test_dual_stack(node: Machine) -> None:
    pod = node._make("dual")
    both = {"subnets": ["10.244.1.0/24", "fd00:1::/64"], "clusterCIDRs": ["10.244.0.0/16", "fd00::/16"]}
    result = call(node, "ADD", "dual", pod, **both)
    assert [ip["address"] for ip in result["ips"]] == ["10.244.1.2/24", "fd00:1::2/64"]
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert call(node, "CHECK", "dual", pod, **both) == {}
    assert call(node, "DEL", "dual", pod, **both) == {}
    assert leases(node) == {}


def steps_of(work: Callable[[], Any], die_at: int) -> int:
    """Calls of our own functions that `work` makes in a child, which is killed before number `die_at`.

    Returns the exit status of the child: 9 where it died, 0 where `work` had fewer steps.
    """
    pid = os.fork()
    if pid == 0:
        count = 0

        def profile(frame: Any, event: str, _arg: object) -> None:
            nonlocal count
            if event == "call" and (
                "/cni/" in frame.f_code.co_filename or "/host/" in frame.f_code.co_filename
            ):
                count += 1
                if count == die_at:
                    os._exit(9)

        threading.setprofile(profile)
        sys.setprofile(profile)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def warm_node(node: Machine) -> Iterator[Machine]:
    """A node whose bridge and rules are there already, so that a kill hits the pod's own steps."""
    node.add_pod("first")
    call(node, "DEL", "first")
    yield node


def test_kill_at_any_step_of_add(warm_node: Machine) -> None:
    node, step = warm_node, 0
    pod = node._make("p")
    while True:
        step += 1
        status = steps_of(lambda: call(node, "ADD", "p", pod), die_at=step)
        if step % 2:
            again = call(node, "ADD", "p", pod)
            assert list(leases(node)) == [again["ips"][0]["address"].split("/")[0]], f"step {step}"
            assert call(node, "CHECK", "p", pod) == {}, f"step {step}"
        call(node, "DEL", "p")
        assert (leases(node), ports(node)) == ({}, set()), f"step {step}"
        if status == 0:
            break
    assert step > 50


def test_kill_at_any_step_of_del(warm_node: Machine) -> None:
    node, step = warm_node, 0
    pod = node._make("p")
    while True:
        step += 1
        call(node, "ADD", "p", pod)
        status = steps_of(lambda: call(node, "DEL", "p", pod), die_at=step)
        call(node, "DEL", "p")
        assert (leases(node), ports(node)) == ({}, set()), f"step {step}"
        if status == 0:
            break
    assert step > 10


def run_executable(node: Machine, environment: dict[str, str], stdin: bytes) -> tuple[int, dict[str, Any]]:
    """The executable's exit status and output."""
    done = node.run(
        lambda: processes.run(
            [sys.executable, "-m", "cni.main"], input=stdin, env=environment, check=False, timeout=20
        )
    )
    return done.returncode, json.loads(done.stdout)


def test_executable_does_the_same(node: Machine, new_netns: Make) -> None:
    pod, config = new_netns("p"), json.dumps(node.config()).encode()
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": str(pod),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
    }
    status, result = run_executable(node, environment, config)
    assert (status, result["ips"][0]["address"]) == (0, "10.244.1.2/24")
    assert ping(pod, "10.244.1.1")
    note = (node.state / "nodelet" / "leases" / "10.244.1.2,c1,eth0").read_text()
    assert json.loads(note)["K8S_POD_NAME"] == "web"
    status, result = run_executable(node, {**environment, "CNI_IFNAME": "../../x"}, config)
    assert (status, result["code"]) == (1, errors.INVALID_ENVIRONMENT)
