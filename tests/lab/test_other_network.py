"""Row E07: another CNI takes a nodelet node over, as its DaemonSet would, by its files and its daemon."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
from kit import container, http_server, pod, until

from deploy.labkit import binaries, nodes, stocknode, versions
from deploy.labkit.services import ensure_service

THEIRS, OTHERS = "n3", ("n1", "n2")
CONFIG = "etc/cni/net.d/05-flannel.conflist"


@pytest.fixture
def node(lab, cluster):
    """A node of ours that flannel has taken over; its Node object."""
    with lab.locked():
        lab.add_node(THEIRS)
        binaries.ensure(lab.layout, (versions.REFERENCE_CNI, versions.FLANNEL_DAEMON), lab.progress)
        found = json.loads(cluster.kubectl("get", "node", THEIRS, "-o", "json"))
        until("our overlay's routes", lambda: routes(cluster))
        disk = lab.layout.machine(THEIRS)
        for name in versions.REFERENCE_CNI.programs:
            shutil.copy(lab.layout.binary(versions.REFERENCE_CNI, name), disk / "opt/cni/bin")
        network = stocknode.network(found["spec"]["podCIDR"], flannel=True)
        (disk / CONFIG).write_text(json.dumps(network))
        until("our routes are gone", lambda: not routes(cluster))
        stocknode.install_flannel(disk)
        service = stocknode.flannel(lab.layout, nodes.find(lab.layout, THEIRS))
        ensure_service(lab.layout, lab.records, lab.machine(THEIRS), service)
    yield found
    with lab.locked():
        lab.remove_node(THEIRS)


def routes(cluster):
    """The routes that are ours, by their protocol, on the node."""
    return cluster.node(THEIRS, "ip", "route", "show", "proto", "110")


def test_e07_flannel_in_the_place_of_our_overlay(ns, node):
    names = (*OTHERS, THEIRS)
    ns.apply(*(pod(name, container(http_server(name)), node=name) for name in names))
    address = {name: ns.wait_running(name)["status"]["podIP"] for name in names}
    assert "cni0" in ns.cluster.node(THEIRS, "ip", "-brief", "link")
    for source, target in itertools.permutations(names, 2):
        url = f"http://{address[target]}:8080/"
        until(
            f"{source} reaches {target}",
            lambda source=source, url=url, target=target: (
                ns.sh(source, f"wget -qO- {url} || true").strip() == target
            ),
        )
        assert ns.cluster.node(source, "busybox", "wget", "-qO-", url).strip() == target
    rules = ns.cluster.node(THEIRS, "iptables-save")
    assert "FLANNEL-POSTRTG" in rules and "NODELET-" not in rules
    assert routes(ns.cluster) == ""
    ready = json.loads(ns.cluster.kubectl("get", "node", THEIRS, "-o", "json"))["status"]["conditions"]
    assert {item["type"]: item["status"] for item in ready}["Ready"] == "True"
