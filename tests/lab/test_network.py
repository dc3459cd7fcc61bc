"""Rows E01, E02, E04: the flat network, the bridge and the VXLAN overlay."""

import json

from kit import container, http_server, pod


def two(ns):
    """A server and a client pod on n1 and n2; their addresses by name."""
    ns.apply(*(pod(name, container(http_server(name)), node=name) for name in ("n1", "n2")))
    return {name: ns.wait_running(name)["status"]["podIP"] for name in ("n1", "n2")}


def test_e01_pods_and_nodes_reach_each_other_without_nat(ns):
    address = two(ns)
    ns.apply(pod("listener", container("exec nc -ll -p 9000 -e cat"), node="n2"))
    for source in address:
        for target, ip in address.items():
            assert ns.sh(source, f"wget -qO- http://{ip}:8080/").strip() == target
            assert ns.cluster.node(source, "busybox", "wget", "-qO-", f"http://{ip}:8080/").strip() == target
    listener = ns.wait_running("listener")["status"]["podIP"]
    talk = f"(sleep 3 | nc {listener} 9000) >/dev/null 2>&1 & sleep 1; netstat -tn"
    from_client = ns.sh("n1", talk)
    from_server = ns.sh("listener", "netstat -tn")
    for table, column in ((from_client, 3), (from_server, 4)):
        rows = [line.split() for line in table.splitlines() if "ESTABLISHED" in line and ":9000" in line]
        ends = {row[column].rsplit(":", 1)[0].removeprefix("::ffff:") for row in rows}
        assert ends == {address["n1"]}, table
    for name in address:
        node = json.loads(ns.cluster.kubectl("get", "node", name, "-o", "json"))
        internal = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
        for source in address:
            assert "1 packets received" in ns.sh(source, f"ping -c1 -W5 {internal}")


def test_e02_veth_bridge_and_mtu(ns):
    address = two(ns)
    links = json.loads(ns.cluster.node("n1", "ip", "-j", "-d", "link", "show"))
    bridge = next(link for link in links if link["ifname"] == "cbr0")
    ports = [link for link in links if link.get("master") == "cbr0"]
    assert bridge["linkinfo"]["info_kind"] == "bridge"
    assert ports
    assert all(port["linkinfo"]["info_slave_data"]["hairpin"] for port in ports)
    underlay = next(link for link in links if link["ifname"] == "eth0")["mtu"]
    assert {port["mtu"] for port in ports} == {underlay - 50}
    assert f"mtu {underlay - 50}" in ns.sh("n1", "ip link show eth0")
    ns.apply(pod("near", container(), node="n1"))
    ns.wait_running("near")
    assert ns.sh("near", f"ping -c1 -W5 {address['n1']}")


def test_e04_vxlan(ns):
    address = two(ns)
    for name in ("n1", "n2"):
        device = json.loads(ns.cluster.node(name, "ip", "-j", "-d", "link", "show", "flannel.1"))[0]
        data = device["linkinfo"]["info_data"]
        assert (data["id"], data["port"], data.get("learning")) == (1, 8472, False)
        node = json.loads(ns.cluster.kubectl("get", "node", name, "-o", "json"))
        annotations = node["metadata"]["annotations"]
        backend = json.loads(annotations["flannel.alpha.coreos.com/backend-data"])
        assert backend["VtepMAC"] == device["address"]
        assert annotations["flannel.alpha.coreos.com/backend-type"] == "vxlan"
    peer = json.loads(ns.cluster.kubectl("get", "node", "n2", "-o", "json"))
    assert f"{peer['spec']['podCIDR']} via" in ns.cluster.node("n1", "ip", "route")
    assert ns.sh("n1", f"ping -c1 -W5 -s {1500 - 50 - 28} {address['n2']}")
    megabyte = "dd if=/dev/zero bs=1M count=1 2>/dev/null"
    ns.sh("n2", f"{megabyte} > /www/big")
    assert ns.sh("n1", f"wget -qO- http://{address['n2']}:8080/big | wc -c").strip() == str(1 << 20)
    capture = "timeout 10 tcpdump -lni eth0 -c 1 udp port 8472 2>/dev/null"
    ping = f"ping -c 8 {address['n2']} >/dev/null 2>&1"
    ns.kubectl("exec", "n1", "--", "sh", "-c", f"({ping}) &")
    assert "8472" in ns.cluster.node("n1", "sh", "-c", capture)
