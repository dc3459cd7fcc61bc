"""The overlay component with a behaving fake kernel, in virtual time; and the parsing of peers' Nodes."""

import asyncio
import ipaddress
import json
import time
from dataclasses import replace

import msgspec
import pytest
from fake_kernel import FakeKernel
from hypothesis import given
from hypothesis import strategies as st

from agent.api.structs import Node, NodeSpec, NodeStatus, ObjectMeta
from agent.overlay import mac, peers, yielding
from agent.overlay.component import Overlay
from agent.overlay.settings import OverlaySettings
from agent.server import exposition
from cni import vxlan
from cni.config import NO_POD_CIDR
from host.clocks import FakeClock, settle
from host.errors import InputError

SETTINGS = OverlaySettings(conf_dir="", masquerade=False, rules_recheck_seconds=float("inf"))


def node(number, *, data=None, **annotations):
    values = {
        peers.BACKEND_TYPE: "vxlan",
        peers.BACKEND_DATA: json.dumps({"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"})
        if data is None
        else data,
        peers.PUBLIC_IP: f"192.0.2.{number}",
        **{peers.PREFIX + key.replace("_", "-"): value for key, value in annotations.items()},
    }
    cidr = f"10.244.{number}.0/24"
    return Node(
        metadata=ObjectMeta(name=f"node{number}", annotations=values),
        spec=NodeSpec(pod_cidr=cidr, pod_cidrs=(cidr,)),
    )


def parse(one, **settings):
    found, problems = peers.parse_peers(
        {"node2": one},
        own_name="node1",
        own=ipaddress.ip_interface("192.0.2.1/24"),
        settings=replace(SETTINGS, **settings),
    )
    return found, problems


def test_good_peer():
    ((found,), problems) = parse(node(2))
    assert (str(found.host), found.mac, problems) == ("192.0.2.2", "02:00:00:00:00:02", [])


def test_public_ip_overwrite_wins_and_old_flannel_tells_no_vni():
    ((found,), _) = parse(node(2, public_ip_overwrite="192.0.2.99", data='{"VtepMAC":"02:AA:00:00:00:02"}'))
    assert (str(found.host), found.mac) == ("192.0.2.99", "02:aa:00:00:00:02")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": "{"}, "has no VtepMAC"),
        ({"data": "[]"}, "has no VtepMAC"),
        ({"data": "null"}, "has no VtepMAC"),
        ({"data": "[" * 5000}, "has no VtepMAC"),
        ({"data": '{"VtepMAC":7}'}, "has no VtepMAC"),
        ({"data": '{"VtepMAC":"01:00:5e:00:00:01"}'}, "not the MAC of one device"),
        ({"data": '{"VtepMAC":"00:00:00:00:00:00"}'}, "not the MAC of one device"),
        ({"data": '{"VtepMAC":"02:00; reboot"}'}, "not a MAC address"),
        ({"data": '{"VNI":2,"VtepMAC":"02:00:00:00:00:02"}'}, "VNI 2 is not this node's 1"),
        ({"backend_type": "wireguard"}, "is not vxlan"),
        ({"public_ip": "192.0.2.2; reboot"}, "is not an IP address"),
        ({"public_ip": "127.0.0.1"}, "cannot be another node's address"),
        ({"public_ip": "224.0.0.1"}, "cannot be another node's address"),
        ({"backend_type": "", "data": ""}, "has not announced a VXLAN device yet"),
    ],
)
def test_bad_annotations_cost_that_peer_only(change, reason):
    found, problems = parse(node(2, **change))
    assert found == []
    assert len(problems) == 1 and problems[0].startswith("node node2: ") and reason in problems[0]


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_annotation_parses_or_is_a_problem(data, public_ip):
    found, problems = parse(node(2, data=data or "x", public_ip=public_ip))
    assert len(found) + len(problems) == 1


def test_direct_peers():
    ((found,), _) = parse(node(2), direct_routing=True)
    assert found.mac == ""
    ((found,), _) = parse(node(2, public_ip="198.51.100.2"), direct_routing=True)
    assert found.mac != "", "a peer of another subnet goes through the tunnel"


def node6(number, **annotations):
    one = node(number, backend_v6_data='{"VNI":1,"VtepMAC":"02:00:00:00:06:02"}', **annotations)
    both = (one.spec.pod_cidr, f"fd00:10:244:{number}::/64")
    return msgspec.structs.replace(one, spec=NodeSpec(pod_cidr=one.spec.pod_cidr, pod_cidrs=both))


def parse6(one, **settings):
    return peers.parse_peers(
        {"node2": one},
        own_name="node1",
        own=ipaddress.ip_interface("2001:db8::1/64"),
        settings=replace(SETTINGS, **settings),
    )


def test_each_ip_version_has_its_own_annotations():
    peer = node6(2, public_ipv6="2001:db8::2")
    ((found,), problems) = parse6(peer)
    assert (str(found.host), found.mac, problems) == ("2001:db8::2", "02:00:00:00:06:02", [])
    assert [str(net) for net in found.subnets] == ["fd00:10:244:2::/64"]
    ((found,), _) = parse(peer)
    assert (str(found.host), [str(net) for net in found.subnets]) == ("192.0.2.2", ["10.244.2.0/24"])
    assert parse6(node(2)) == ([], []), "a node without an IPv6 range is no IPv6 peer, and no problem"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"public_ipv6": "192.0.2.2"}, "public-ipv6: 192.0.2.2 is not an IPv6 address"),
        ({"public_ipv6": "fe80::1"}, "public-ipv6: fe80::1 cannot be another node's address"),
        ({}, "public-ipv6: '' is not an IP address"),
        ({"public_ipv6": "2001:db8::1"}, "public-ipv6: 2001:db8::1 is this node's address too"),
        ({"public_ipv6": "2001:db8::2", "backend_v6_data": "null"}, "backend-v6-data: 'null' has no VtepMAC"),
    ],
)
def test_bad_ipv6_annotations_cost_that_version_only(change, reason):
    peer = node6(2)
    for key, value in change.items():
        peer.metadata.annotations[peers.PREFIX + key.replace("_", "-")] = value
    found, (problem,) = parse6(peer)
    assert found == [] and reason in problem
    assert len(parse(peer)[0]) == 1


def test_two_nodes_with_one_address_are_named():
    found, (problem,) = parse(node(2, public_ip="192.0.2.1"))
    assert found == []
    assert "192.0.2.1 is this node's address too" in problem and "--node-ip" in problem


def test_what_a_dual_stack_node_tells():
    places = [
        (ipaddress.ip_address("192.0.2.1"), "02:00:00:00:00:01", ""),
        (ipaddress.ip_address("2001:db8::1"), "", ""),
    ]
    told = peers.own_annotations(SETTINGS, places)
    assert {key.removeprefix(peers.PREFIX): value for key, value in told.items()} == {
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
        "public-ip": "192.0.2.1",
        "backend-v6-data": "null",
        "public-ipv6": "2001:db8::1",
    }


class Bench:
    """A running overlay of node1 and what it did."""

    def __init__(self, tmp_path, node_ip="192.0.2.1", conf_dir=""):
        self.kernel, self.clock, self.annotations, self.failures = FakeKernel(), FakeClock(), {}, 0
        self.events = []
        self.overlay = Overlay(
            node_name="node1",
            node_ips=(node_ip,),
            annotate=self.annotate,
            settings=replace(SETTINGS, state_dir=str(tmp_path), conf_dir=conf_dir, mtu_probe_seconds=0),
            clock=self.clock,
            kernel=self.kernel,
            report=lambda *words: self.events.append(words),
        )

    async def annotate(self, values):
        if self.failures:
            self.failures -= 1
            raise OSError(111, "connection refused")
        self.annotations = dict(values)

    async def until(self, done):
        deadline = time.monotonic() + 60  # the overlay works on real threads, however virtual its clock is
        while not done():
            assert time.monotonic() < deadline, self.overlay.status
            await asyncio.to_thread(lambda: None)
            await settle()


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path)
    bench.overlay._rules_checked = 0.0
    task = asyncio.create_task(bench.overlay.run())
    yield bench
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_peers_in_place_and_own_annotations(bench):
    bench.overlay.update({"node1": node(1), "node2": node(2)})
    await bench.until(lambda: bench.overlay.status == "" and bench.annotations)
    assert bench.kernel.tables == vxlan.desired(parse(node(2))[0], device=7, underlay=2)[0]
    data = json.loads(bench.annotations[peers.BACKEND_DATA])
    assert data == {"VNI": 1, "VtepMAC": bench.kernel.device.mac}
    assert bench.annotations[peers.PUBLIC_IP] == "192.0.2.1"
    assert bench.annotations[peers.SUBNET_MANAGER] == "true"


async def test_deleted_device_is_back_at_the_next_recheck(bench):
    bench.overlay.update({"node1": node(1), "node2": node(2)})
    await bench.until(lambda: bench.overlay.status == "")
    before, entries = bench.kernel.device.mac, bench.kernel.tables
    bench.kernel.delete_device("flannel.1")
    await bench.clock.advance(SETTINGS.recheck_seconds)
    await bench.until(lambda: bench.kernel.device is not None and bench.kernel.tables == entries)
    assert bench.kernel.device.mac == before

    def shown():
        return exposition.values(bench.overlay.families())

    # The neighbour, the FDB entry and the route of the peer, once for the Node and once for the deletion.
    await bench.until(lambda: shown()['nodelet_overlay_changes_total{cause="repair"}'] == 3)
    assert shown()['nodelet_overlay_changes_total{cause="nodes"}'] == 3
    assert shown()["nodelet_overlay_peers"] == 1
    assert shown()['nodelet_cni_addresses_free{range="10.244.1.0/24"}'] == 253


async def test_a_problem_that_lasts_is_an_event_of_the_node_once(bench):
    twin = node(2)
    twin.metadata.annotations[peers.PUBLIC_IP] = "192.0.2.1"
    words = (
        f"node node2: {peers.PUBLIC_IP}: 192.0.2.1 is this node's address too; set --node-ip or "
        "overlay.iface on both to what the other reaches (machines made by Vagrant all have 10.0.2.15)"
    )
    bench.overlay.update({"node1": node(1), "node2": twin})
    await bench.until(lambda: bench.overlay.status == words)
    assert bench.events == [], "a peer that joins may be wrong for a moment"
    async with asyncio.timeout(60):
        while not bench.events:  # rounds are on a thread of their own, whatever the clock says
            await bench.clock.advance(SETTINGS.recheck_seconds)
            await asyncio.to_thread(lambda: None)
    assert bench.events == [("PodNetworkIncomplete", words)]
    bench.overlay.update({"node1": node(1), "node2": node(2)})
    await bench.until(lambda: bench.overlay.status == "")
    assert len(bench.events) == 1


async def test_a_change_between_two_looks_needs_no_look(bench, monkeypatch):
    bench.overlay.update({"node1": node(1), "node2": node(2)})
    await bench.until(lambda: bench.overlay.status == "" and bench.annotations)
    monkeypatch.setattr(bench.kernel, "entries", None)
    bench.overlay.update({"node1": node(1), "node3": node(3)})
    wanted = vxlan.desired(parse(node(3))[0], device=7, underlay=2)[0]
    await bench.until(lambda: bench.kernel.tables == wanted)


async def test_looks_are_taken_in_time_however_often_nodes_change(bench):
    nodes = {"node1": node(1), "node2": node(2), "node3": node(3)}
    bench.overlay.update(nodes)
    await bench.until(lambda: bench.overlay.status == "" and bench.annotations)
    bench.kernel.tables = vxlan.Entries()
    for second in range(1, int(SETTINGS.recheck_seconds) + 1):
        await bench.clock.advance(1.0)
        nodes = {**nodes, "node3": node(3 + second)}
        seen = len(bench.kernel.batches)
        bench.overlay.update(nodes)
        await bench.until(lambda seen=seen: len(bench.kernel.batches) > seen)
    found = [*parse(nodes["node2"])[0], *parse(nodes["node3"])[0]]
    found = [replace(peer, name=name) for peer, name in zip(found, ("node2", "node3"), strict=True)]
    assert bench.kernel.tables == vxlan.desired(found, device=7, underlay=2)[0]


async def test_it_steps_back_for_a_network_that_runtimes_prefer(tmp_path):
    folder = tmp_path / "net.d"
    bench = Bench(tmp_path, conf_dir=str(folder))
    theirs, nodes = folder / "10-flannel.conflist", {"node1": node(1), "node2": node(2)}
    task = asyncio.create_task(bench.overlay.run())
    bench.overlay.update(nodes)
    await bench.until(lambda: bench.overlay.status == "" and bench.annotations)
    entries = bench.kernel.tables
    theirs.write_text('{"name": "x", "plugins": [{"type": "flannel"}]}')
    bench.overlay.update({**nodes, "node3": node(3)})
    await bench.until(lambda: bench.kernel.rules_removed)
    bench.annotations = {}
    assert await bench.overlay._round(nodes) == []
    assert (bench.overlay.status, bench.annotations, len(bench.kernel.tables.routes)) == ("", {}, 0)
    theirs.unlink()
    bench.overlay.update(nodes)
    await bench.until(lambda: bench.kernel.tables == entries and bench.annotations)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


ODD = {"00-odd.conf": "{", "01-odd.json": "[]", "02-odd.conf": '{"plugins": 7}', "03-odd.conf": "[" * 9999}


@pytest.mark.parametrize(
    ("files", "preferred"),
    [
        ({}, ""),
        ({"10-flannel.conflist": {"plugins": [{"type": "flannel"}]}}, "10-flannel.conflist"),
        ({"05-calico.conf": {"type": "calico"}}, "05-calico.conf"),
        ({"99-late.conflist": {"plugins": [{"type": "bridge"}]}}, ""),
        ({"00-loopback.conf": {"type": "loopback"}}, ""),
        ({"00-mine.conflist": {"plugins": [{"type": "nodelet-cni"}]}}, ""),
        ({"00-notes.txt": {"type": "bridge"}}, ""),
        (ODD, ""),
    ],
)
def test_the_first_usable_configuration_has_the_network(tmp_path, files, preferred):
    (tmp_path / "10-nodelet.conflist").write_text("{}")
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert yielding.preferred(tmp_path) == (str(tmp_path / preferred) if preferred else "")


async def test_nothing_is_written_when_nothing_changed(bench):
    bench.overlay.update({"node1": node(1), "node2": node(2)})
    await bench.until(lambda: bench.overlay.status == "")
    bench.kernel.batches.clear()
    await bench.clock.advance(SETTINGS.recheck_seconds)
    await bench.until(lambda: bench.kernel.batches)
    assert bench.kernel.batches == [[]]


async def test_a_heartbeat_wakes_nobody(bench):
    bench.overlay.update({"node1": node(1), "node2": node(2)})
    await bench.until(lambda: bench.overlay.status == "")
    beat = msgspec.structs.replace(node(2), status=NodeStatus(volumes_in_use=("v",)))
    bench.overlay.update({"node1": node(1), "node2": beat})
    assert not bench.overlay._wake.is_set()
    bench.overlay.update({"node1": node(1), "node2": node(2, public_ip="192.0.2.77")})
    assert bench.overlay._wake.is_set()


async def test_bad_peer_is_named_and_hurts_nobody_else(bench):
    bench.overlay.update({"node1": node(1), "node2": node(2), "node3": node(3, public_ip="x")})
    await bench.until(lambda: "node3" in bench.overlay.status)
    assert len(bench.kernel.tables.routes) == 1


async def test_failed_annotation_is_tried_again(bench):
    bench.failures = 1
    bench.overlay.update({"node1": node(1)})
    await bench.until(lambda: "refused" in bench.overlay.status)
    await bench.clock.advance(SETTINGS.recheck_seconds)
    await bench.until(lambda: bench.overlay.status == "" and bench.annotations)


async def test_node_without_a_range(bench):
    bench.overlay.update({"node1": Node(metadata=ObjectMeta(name="node1"))})
    await bench.until(lambda: bench.overlay.status == NO_POD_CIDR)
    assert bench.overlay.blocked == NO_POD_CIDR


async def test_a_range_of_a_version_the_node_has_no_address_of(bench):
    bench.overlay.update({"node1": node6(1)})
    await bench.until(lambda: "needs an IPv6 address" in bench.overlay.status)
    assert bench.overlay.blocked == "", "IPv4 pods are well"
    ipv6 = ("fd00:10:244:1::/64",)
    bench.overlay.update({"node1": msgspec.structs.replace(node6(1), spec=NodeSpec(pod_cidrs=ipv6))})
    await bench.until(lambda: "needs an IPv6 address" in bench.overlay.blocked)


def test_mac_is_kept(tmp_path):
    path = tmp_path / "state" / "vtep"
    first = mac.keep(path)
    assert mac.keep(path, device="02:00:00:00:00:55") == first
    path.write_bytes(b"junk")
    assert mac.keep(path, device="02:00:00:00:00:55") == "02:00:00:00:00:55"
    path.unlink()
    assert mac.keep(path, node=node(9)) == "02:00:00:00:00:09"


def test_bad_own_range_is_named():
    with pytest.raises(InputError, match="podCIDRs"):
        peers.pod_ranges(Node(spec=NodeSpec(pod_cidr="10.244.1.5/24")))
