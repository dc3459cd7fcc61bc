"""Row A11 and what else somebody deletes by hand: the agent puts it back, at the next look."""

import json

from kit import container, http_server, pod, service, until


def test_whatever_is_deleted_by_hand_is_put_back(ns):
    ns.apply(*(pod(name, container(http_server(name)), node=name) for name in ("n1", "n2")))
    address = {name: ns.wait_running(name)["status"]["podIP"] for name in ("n1", "n2")}
    far = json.loads(ns.cluster.kubectl("get", "node", "n2", "-o", "json"))
    mac = json.loads(far["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"])["VtepMAC"]
    host = far["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"]
    there = far["spec"]["podCIDR"]
    neighbour = there.split("/")[0]

    places = {
        ("ip", "route"): f"{there} via {neighbour} dev flannel.1",
        ("ip", "neigh"): f"{neighbour} dev flannel.1 lladdr {mac}",
        ("bridge", "fdb"): f"{mac} dev flannel.1 dst {host}",
        ("ip", "-4", "addr", "show", "cbr0"): "inet ",
    }

    def missing():
        return {look for look, entry in places.items() if entry not in ns.cluster.node("n1", *look)}

    entries = (
        f"ip route del {there}; ip neigh del {neighbour} dev flannel.1; "
        f"bridge fdb del {mac} dev flannel.1 dst {host}; ip addr flush dev cbr0"
    )
    for spoil in (entries, "ip link del flannel.1"):
        assert missing() == set()
        ns.cluster.node("n1", "sh", "-ec", spoil)
        until(f"what is gone after {spoil!r}", lambda: not missing())
        assert ns.sh("n1", f"wget -qO- http://{address['n2']}:8080/").strip() == "n2", spoil


def test_a11_rules_are_back_after_every_kind_of_flush(ns):
    web = container(http_server("web"), ports=[{"containerPort": 8080, "hostPort": 18980}])
    ns.apply(pod("web", web, node="n2", labels={"app": "web"}), pod("client", container(), node="n2"))
    ns.apply(service("web", "web"))
    for name in ("web", "client"):
        ns.wait_running(name)
    vip = json.loads(ns.kubectl("get", "service", "web", "-o", "json"))["spec"]["clusterIP"]
    node = json.loads(ns.cluster.kubectl("get", "node", "n2", "-o", "json"))
    port = f"http://{node['status']['addresses'][0]['address']}:18980/"

    def on(name, *argv):
        return ns.cluster.node(name, *argv, check=False)

    def works():
        return (
            "web" in ns.sh("client", f"timeout 5 wget -qO- http://{vip}/ || true")
            and "web" in on("n1", "busybox", "timeout", "5", "busybox", "wget", "-qO-", port)
            and "MASQUERADE" in on("n2", "iptables", "-t", "nat", "-S", "NODELET-PEERS")
        )

    until("service, host port and masquerading", works)
    for flush in (("iptables", "-F"), ("iptables", "-t", "nat", "-F"), ("nft", "flush", "ruleset")):
        ns.cluster.node("n2", *flush)
    assert "MASQUERADE" not in on("n2", "iptables", "-t", "nat", "-S")
    until("the rules", works, timeout=120)
