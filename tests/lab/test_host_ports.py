"""Row E09: a pod's port on the node: from everywhere, on one address, and after a new pod has taken it over.

UDP and SCTP, IPv6 and what conntrack remembers are in tests/root/test_cni.py and test_cni_spec.py.
"""

from __future__ import annotations

import json

from kit import container, http_server, pod

NODE, OTHER = "n1", "n2"
PORT, LOCAL_PORT = 38090, 38091


def address_of(cluster, node):
    """A node's InternalIP."""
    found = json.loads(cluster.kubectl("get", "node", node, "-o", "json"))["status"]["addresses"]
    return next(item["address"] for item in found if item["type"] == "InternalIP")


def server(name):
    """A web server whose page is its name, on a port of every address and on one of the loopback alone."""
    ports = [
        {"containerPort": 8080, "hostPort": PORT},
        {"containerPort": 8080, "hostPort": LOCAL_PORT, "hostIP": "127.0.0.1"},
    ]
    return pod(name, container(http_server(name), ports=ports), node=NODE)


def test_e09_a_host_port_from_everywhere(ns):
    ns.apply(server("first"), pod("near", node=NODE), pod("far", node=OTHER))
    for name in ("first", "near", "far"):
        ns.wait_running(name)
    node = address_of(ns.cluster, NODE)
    url, local = f"http://{node}:{PORT}/", f"http://127.0.0.1:{LOCAL_PORT}/"

    def answers():
        fetch = ("busybox", "wget", "-qO-")
        found = {
            "a stranger": ns.cluster.stranger(*fetch, url),
            "the other node": ns.cluster.node(OTHER, *fetch, url),
            "the node": ns.cluster.node(NODE, *fetch, url),
            "its loopback": ns.cluster.node(NODE, *fetch, f"http://127.0.0.1:{PORT}/"),
            "hostIP": ns.cluster.node(NODE, *fetch, local),
            **{name: ns.sh(name, f"wget -qO- {url}") for name in ("near", "far")},
        }
        return {who: text.strip() for who, text in found.items()}

    assert set(answers().values()) == {"first"}, answers()
    assert ns.sh("first", f"wget -qO- {url}").strip() == "first", "a pod to itself, by the node"
    refused = ns.cluster.node(OTHER, "busybox", "wget", "-qO-", f"http://{node}:{LOCAL_PORT}/", check=False)
    assert refused == "", "hostIP 127.0.0.1 is nobody else's"
    ns.kubectl("delete", "pod", "first", "--grace-period=1")
    ns.apply(server("second"))
    ns.wait_running("second")
    assert set(answers().values()) == {"second"}, answers()
