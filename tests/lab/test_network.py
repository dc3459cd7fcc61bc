"""Rows E01, E02, E04, E05, E10: the flat network, bridge, overlay, masquerading, and what they look like."""

import json
import re
import subprocess
from contextlib import contextmanager

from kit import container, http_server, pod, service, until


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


@contextmanager
def capture(ns, node, device, expression, *, packets=1):
    """The lines of a tcpdump that has begun to listen; `found` is called once there was traffic."""
    script = f"exec timeout 20 tcpdump -lni {device} -c {packets} '{expression}' 2>&1"
    with subprocess.Popen(
        ns.cluster.node_command(node, "sh", "-c", script), stdout=subprocess.PIPE, text=True
    ) as tcpdump:
        lines = iter(tcpdump.stdout.readline, "")
        next(line for line in lines if "listening on" in line)
        yield lambda: "".join(lines)


def mac_of(ns, name):
    return re.search(r"link/ether (\S+)", ns.sh(name, "ip link show eth0"))[1]


def test_e02_arp_between_pods_of_one_bridge(ns):
    ns.apply(*(pod(name, container(), node="n1") for name in ("one", "two")))
    one, two = (ns.wait_running(name)["status"]["podIP"] for name in ("one", "two"))
    listed = ns.cluster.node("n1", "bridge", "link")
    assert all(" master cbr0 " in line for line in listed.splitlines() if ": veth" in line)
    with capture(ns, "n1", "cbr0", f"arp and host {one} and host {two}", packets=2) as found:
        ns.sh("one", f"ping -c1 -W5 {two}")
        seen = found()
    assert f"who-has {two} tell {one}" in seen
    assert f"{two} is-at {mac_of(ns, 'two')}" in seen


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
    with capture(ns, "n1", "eth0", "udp port 8472") as found:
        ns.sh("n1", f"ping -c1 -W5 {address['n2']}")
        seen = found()
    assert ".8472: " in seen
    assert f"{address['n1']} > {address['n2']}: ICMP echo request" in seen


def test_e04_too_large_a_packet_is_answered_with_the_mtu(ns):
    """A pod whose device takes 1500 bytes learns from its node that the tunnel takes 1450."""
    address = two(ns)
    listed = ns.cluster.node("n1", ns.cluster.program("nodelet"), "net", "ls").splitlines()
    veth = next(line.split()[1] for line in listed if line.startswith(f"{ns.name}/n1 "))
    status = ns.pod("n1")["status"]
    pid = ns.cluster.pid_of(status["containerStatuses"][0]["containerID"], node="n1")
    ns.cluster.node("n1", "ip", "link", "set", veth, "mtu", "1500")
    subprocess.run(["nsenter", "-n", "-t", str(pid), "ip", "link", "set", "eth0", "mtu", "1500"], check=True)
    with capture(ns, "n1", veth, "icmp[icmptype] == icmp-unreach") as found:
        ns.sh("n1", f"ping -c1 -W2 -s {1500 - 28} {address['n2']}", check=False)
        assert f"ICMP {address['n2']} unreachable - need to frag (mtu 1450)" in found()
    # What it has learned holds: the next one goes in fragments.
    assert "1 packets received" in ns.sh("n1", f"ping -c1 -W5 -s {1500 - 28} {address['n2']}")


def test_e05_the_nodes_address_towards_outside_and_nowhere_else(ns):
    ns.apply(pod("client", container(), node="n1"), pod("server", container(), node="n2"))
    client, server = (ns.wait_running(name)["status"]["podIP"] for name in ("client", "server"))
    nodes = {
        one["metadata"]["name"]: next(
            entry["address"] for entry in one["status"]["addresses"] if entry["type"] == "InternalIP"
        )
        for one in json.loads(ns.cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    }
    addresses = json.loads(ns.cluster.stranger("ip", "-j", "-4", "addr", "show", "scope", "global"))
    outside = next(found["local"] for link in addresses for found in link["addr_info"])
    with capture(ns, "n1", "eth0", f"icmp and dst {outside}") as found:
        assert "1 packets received" in ns.sh("client", f"ping -c1 -W5 {outside}")
        assert f"{nodes['n1']} > {outside}" in found()
    with capture(ns, "n2", "cbr0", f"icmp and dst {server}") as found:
        assert "1 packets received" in ns.sh("client", f"ping -c1 -W5 {server}")
        assert f"{client} > {server}" in found()
    with capture(ns, "n2", "eth0", f"icmp and dst {nodes['n2']}") as found:
        assert "1 packets received" in ns.sh("client", f"ping -c1 -W5 {nodes['n2']}")
        assert f"{client} > {nodes['n2']}" in found()


def test_e10_names_that_lead_to_pods_and_a_trace_by_names(ns):
    address = two(ns)
    nodelet = ns.cluster.program("nodelet")
    listed = [line.split() for line in ns.cluster.node("n1", nodelet, "net", "ls").splitlines()]
    row = next(row for row in listed if row[0] == f"{ns.name}/n1")
    assert (row[2], row[3], row[4]) == ("up", mac_of(ns, "n1"), address["n1"])
    assert f"{row[1]}@" in ns.cluster.node("n1", "ip", "link", "show", "master", "cbr0")
    peers = ns.cluster.node("n1", nodelet, "net", "peers")
    assert all(word in peers for word in ("RANGE", "flannel.1"))
    ns.apply(service("web", "n2"))
    name = f"{ns.name}/web"

    def trace(*words, check=True):
        return ns.cluster.node("n1", nodelet, "net", "trace", *words, check=check)

    until("the Service's rules", lambda: "1 endpoint" in trace("n1", f"svc/{name}", check=False))
    hops = trace(f"{ns.name}/n1", f"svc/{name}").splitlines()
    tables = ["source", "service", "endpoint", "policy", "route", "neighbour", "fdb", "underlay", "reply"]
    assert [hop.split()[:2] for hop in hops] == [["ok", table] for table in tables]
    # The other node's pod stands behind a Service, so the agent knows its name and its node.
    assert address["n2"].rpartition(".")[0] in trace("n1", f"{ns.name}/n2:8080")
    ns.kubectl("delete", "pod", "n2", "--grace-period=1")
    until("a Service nobody serves", lambda: "has no endpoints" in trace("n1", f"svc/{name}", check=False))


def test_a10_a11_preflight_on_a_node_and_behind_a_firewall(cluster):
    preflight = (cluster.program("nodelet"), "preflight", "--device", "eth0")
    found = cluster.node("n1", *preflight)
    assert {line.split()[0] for line in found.splitlines()} <= {"ok", "note"}, found
    rule = ("INPUT", "-p", "tcp", "--dport", "10250", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP")
    cluster.node("n2", "iptables", "-I", *rule)
    try:
        found = cluster.node("n2", *preflight, check=False)
    finally:
        cluster.node("n2", "iptables", "-D", *rule)
    (closed,) = [line for line in found.splitlines() if line.startswith("missing")]
    assert "10250/tcp" in closed and "iptables INPUT" in closed


def test_metrics_of_the_network(cluster):
    shown = cluster.kubectl("get", "--raw", "/api/v1/nodes/n1/proxy/metrics")
    values = dict(line.rsplit(" ", 1) for line in shown.splitlines() if not line.startswith("#"))
    assert float(values["nodelet_overlay_peers"]) >= 1
    assert float(values['kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}']) >= 1
    assert "nodelet_policy_enforced" in values
    leases = {name: float(value) for name, value in values.items() if name.startswith("nodelet_cni_leases")}
    assert len(leases) == 1
