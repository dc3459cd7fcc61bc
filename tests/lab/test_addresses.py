"""A node whose address changes, as by DHCP: it says so, and its peers and its pods follow."""

import json

import pytest
from kit import container, container_status, http_server, pod, until

NODE = "n2"
PUBLIC_IP = "flannel.alpha.coreos.com/public-ip"


def told(cluster):
    """The addresses of the node as the API has them: for clients, and for peers."""
    node = json.loads(cluster.kubectl("get", "node", NODE, "-o", "json"))
    (internal,) = (each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP")
    return internal, node["metadata"]["annotations"][PUBLIC_IP]


@pytest.fixture
def move(cluster):
    """Give the node another address in its network; at the end it has its own again."""
    own, _ = told(cluster)
    change = 'ip addr flush dev eth0 scope global; ip addr add "$1/24" dev eth0'
    script = f"gateway=$(ip route show default); {change}; ip route add $gateway"

    def to(address):
        cluster.node(NODE, "sh", "-c", script, "sh", address)
        until(f"{address} told", lambda: told(cluster) == (address, address), timeout=120)

    yield lambda: to(f"{own.rpartition('.')[0]}.199")
    to(own)


def test_an_address_that_changes_is_announced_again(ns, cluster, move):
    ns.apply(pod("there", container(http_server("from there")), node=NODE), pod("here", node="n1"))
    there = ns.wait_running("there")
    ns.wait_running("here")

    def answers():
        fetch = f"wget -q -O- http://{there['status']['podIP']}:8080"
        return ns.sh("here", f"timeout 5 {fetch} || true").strip() == "from there"

    until("an answer", answers)
    move()
    until("an answer by the other address", answers)
    now = ns.wait_pod("there", "on the other address", lambda p: p["status"]["hostIP"] == told(cluster)[0])
    assert container_status(now)["containerID"] == container_status(there)["containerID"]
    assert container_status(now)["restartCount"] == 0
    until("kubectl exec by the other address", lambda: ns.sh("there", "echo in", check=False).strip() == "in")
