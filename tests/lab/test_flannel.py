"""Rows E01, E03, E04 with a stock node: kubelet, containerd, the bridge plugin and flannel, beside nodelet's.

Both sides tell each other where they are by flannel's annotations alone.
"""

from __future__ import annotations

import itertools
import json

import pytest
import yaml
from kit import container, http_server, pod, until

from cni import launcher
from cni.config import STATE_DIR, render_conflist
from deploy.labkit import nodes, stocknode
from deploy.labkit.layout import POD_NETWORK
from host.files import write_atomic

STOCK, OURS = "s1", "n1"
TOLERATIONS = [{"key": "lab/stock", "operator": "Exists"}]


@pytest.fixture(scope="module", autouse=True)
def stock_node(lab):
    """The node, for the tests of this file."""
    with lab.locked():
        lab.add_node(STOCK, kind="stock")
    yield
    with lab.locked():
        lab.remove_node(STOCK)


@pytest.fixture
def address(ns):
    """Pods by node: a web server that answers with the node's name, on each side."""
    names = (OURS, "n2", STOCK)
    ns.apply(*(pod(name, container(http_server(name)), node=name, tolerations=TOLERATIONS) for name in names))
    return {name: ns.wait_running(name)["status"]["podIP"] for name in names}


def answers(ns, source, address, times=20):
    """Who answers a pod's requests."""
    again = f"for i in $(seq {times}); do wget -qO- http://{address}/; done"
    return set(ns.sh(source, again).split())


def listener(node):
    """A pod that answers on port 9000, and tells who asks."""
    return pod("listener", container("exec nc -ll -p 9000 -e cat"), node=node, tolerations=TOLERATIONS)


def sources_seen(ns, source):
    """The addresses from which the listener sees a pod's connection."""
    there = ns.pod("listener")["status"]["podIP"]
    ns.sh(source, f"(sleep 3 | nc {there} 9000) >/dev/null 2>&1 & sleep 1")
    rows = [line.split() for line in ns.sh("listener", "netstat -tn").splitlines() if ":9000" in line]
    return {row[4].rsplit(":", 1)[0].removeprefix("::ffff:") for row in rows}


def annotations(cluster, node):
    """flannel's annotations of a Node."""
    found = json.loads(cluster.kubectl("get", "node", node, "-o", "json"))["metadata"]["annotations"]
    return {key.removeprefix("flannel.alpha.coreos.com/"): value for key, value in found.items()}


def test_e01_every_pod_and_node_reaches_every_pod(ns, address):
    for source, target in itertools.permutations(address, 2):
        url = f"http://{address[target]}:8080/"
        assert ns.sh(source, f"wget -qO- {url}").strip() == target
        assert ns.cluster.node(source, "busybox", "wget", "-qO-", url).strip() == target


@pytest.mark.parametrize(("source", "target"), [(OURS, STOCK), (STOCK, OURS)])
def test_e01_the_other_side_sees_the_pods_own_address(ns, address, source, target):
    ns.apply(listener(target))
    ns.wait_running("listener")
    assert sources_seen(ns, source) == {address[source]}


def test_e04_both_announce_themselves_in_the_same_words(cluster, address):
    ours, theirs = annotations(cluster, OURS), annotations(cluster, STOCK)
    assert ours.keys() >= theirs.keys()
    for node, found in ((OURS, ours), (STOCK, theirs)):
        device = json.loads(cluster.node(node, "ip", "-j", "-d", "link", "show", "flannel.1"))[0]
        assert json.loads(found["backend-data"]) == {"VNI": 1, "VtepMAC": device["address"]}
        assert device["mtu"] == 1450
        assert found["backend-type"] == "vxlan"


def test_e04_the_largest_packets_pass(ns, address):
    for source, target in ((OURS, STOCK), (STOCK, OURS)):
        assert ns.sh(source, f"ping -c1 -W5 -s {1450 - 28} {address[target]}")


def test_a_service_over_both_kinds_of_nodes(ns, address):
    serves_from_everywhere(ns, address)


def serves_from_everywhere(ns, address):
    """A Service over all these pods answers each of them with every one."""
    ns.kubectl("label", "pod", *address, "part=web")
    ns.kubectl("create", "service", "clusterip", "web", "--tcp=80:8080")
    # In place of create's own selector, which a merge would keep.
    ns.kubectl(
        "patch", "service", "web", "-p", json.dumps({"spec": {"selector": {"app": None, "part": "web"}}})
    )
    vip = json.loads(ns.kubectl("get", "service", "web", "-o", "json"))["spec"]["clusterIP"]
    for source in address:
        until(f"all answer {source}", lambda source=source: answers(ns, source, vip) == set(address))


@pytest.fixture
def plugin(lab, cluster, address):
    """nodelet-cni in the place of the bridge plugin, on its bridge, in its range, beside pods of its own."""
    disk = lab.layout.machine(STOCK)
    launcher.install(disk / "opt/cni/bin")
    node = json.loads(cluster.kubectl("get", "node", STOCK, "-o", "json"))
    conflist = render_conflist(
        [node["spec"]["podCIDR"]], cluster_cidrs=[POD_NETWORK], mtu=1450, bridge="cni0"
    )
    path = disk / "etc/cni/net.d/05-nodelet.conflist"
    write_atomic(path, conflist, mode=0o644)
    lab.kill(STOCK, "containerd")  # else nothing tells when it has seen the file
    lab.start(STOCK, "containerd")
    yield
    path.unlink()


def test_e07_containerd_with_our_plugin_beside_pods_of_the_bridge_plugin(lab, ns, address, plugin):
    def leases():
        found = ns.cluster.node(STOCK, "ls", f"{STATE_DIR}/nodelet/leases", check=False)
        return {line.split(",")[0] for line in found.splitlines()}

    port = [{"containerPort": 8080, "hostPort": 8088}]
    ns.apply(
        pod("new", container(http_server("new"), ports=port), node=STOCK, tolerations=TOLERATIONS),
        listener(STOCK),
    )
    new = ns.wait_running("new")["status"]["podIP"]
    there = ns.wait_running("listener")["status"]["podIP"]
    assert leases() == {new, there}, "connected by nodelet-cni"
    for other, ip in address.items():
        assert ns.sh(other, f"wget -qO- http://{new}:8080/").strip() == "new"
        assert ns.sh("new", f"wget -qO- http://{ip}:8080/").strip() == other
        assert ns.cluster.node(other, "busybox", "wget", "-qO-", f"http://{new}:8080/").strip() == "new"
    assert sources_seen(ns, OURS) == {address[OURS]}
    at_node = f"http://{nodes.find(lab.layout, STOCK).address}:8088/"
    assert ns.cluster.stranger("busybox", "wget", "-qO-", at_node).strip() == "new"
    for source in (*address, "new"):
        assert ns.sh(source, f"wget -qO- {at_node}").strip() == "new"
    ns.kubectl("delete", "pod", "new", "listener", "--grace-period=1")
    assert leases() == set()
    assert "8088" not in ns.cluster.node(STOCK, "iptables-save")


@pytest.fixture(params=["host-gw", "direct"])
def without_tunnels(request, lab, cluster):
    """All nodes with plain routes to their neighbours; tunnels again at the end. Running pods stay."""
    direct = request.param == "direct"
    backend = "vxlan" if direct else "host-gw"
    set_backend(lab, cluster, backend, direct=direct)
    yield backend
    set_backend(lab, cluster, "vxlan")


def set_backend(lab, cluster, backend, *, direct=False):
    """Write every node's configuration of the overlay, and restart who reads it."""
    for node in (OURS, "n2"):
        path = lab.layout.machine(node) / "etc/nodelet/nodelet.yaml"
        config = yaml.safe_load(path.read_text())
        config["overlay"] = {"backend": backend, "directRouting": direct}
        with cluster.killed(node, "nodelet"):
            path.write_text(yaml.safe_dump(config))
    lab.kill(STOCK, "flannel")
    stocknode.install_flannel(lab.layout.machine(STOCK), backend, direct_routing=direct)
    lab.start(STOCK, "flannel")


def test_e03_plain_routes_reach_flannels_and_flannels_reach_ours(ns, address, without_tunnels):
    found = {name: json.loads(ns.cluster.kubectl("get", "node", name, "-o", "json")) for name in address}
    ranges = {name: node["spec"]["podCIDR"] for name, node in found.items()}
    hosts = {name: node["status"]["addresses"][0]["address"] for name, node in found.items()}
    for source, target in itertools.permutations(address, 2):
        via = f"via {hosts[target]} dev"
        until(
            f"the route from {source} to {target}",
            lambda source=source, via=via, target=target: (
                via in ns.cluster.node(source, "ip", "route", "show", ranges[target])
            ),
        )
    for source, target in itertools.permutations(address, 2):
        assert ns.sh(source, f"wget -qO- http://{address[target]}:8080/").strip() == target
    assert annotations(ns.cluster, OURS)["backend-type"] == without_tunnels
    serves_from_everywhere(ns, address)


def test_a_flannel_node_that_leaves_takes_its_route_along(lab, cluster):
    """Last in this file: the node is added again for the fixture's end."""
    theirs = json.loads(cluster.kubectl("get", "node", STOCK, "-o", "json"))["spec"]["podCIDR"]
    assert theirs in cluster.node(OURS, "ip", "route")
    with lab.locked():
        lab.remove_node(STOCK)
    until("the route is gone", lambda: theirs not in cluster.node(OURS, "ip", "route"))
    with lab.locked():
        lab.add_node(STOCK, kind="stock")
