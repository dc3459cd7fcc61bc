"""Rows F01 and F03, hairpin and no endpoints: ClusterIP and NodePort in iptables mode."""

import json
from collections import Counter

from kit import container, http_server, pod, service, until


def backends(ns, *nodes):
    ns.apply(
        *(
            pod(f"web{i}", container(http_server(f"web{i}")), node=node, labels={"app": "web"})
            for i, node in enumerate(nodes)
        )
    )
    for i in range(len(nodes)):
        ns.wait_running(f"web{i}")


def ask(ns, client, url, times=1):
    """How often each backend answered."""
    loop = f"for i in $(seq {times}); do wget -qO- {url} || echo failed; done"
    return Counter(ns.sh(client, loop).split())


def wait_for_rules(ns, client, url, names):
    until(f"answers of {names}", lambda: set(ask(ns, client, url, 20)) == set(names))


def test_f01_cluster_ip_spreads_evenly_over_both_nodes(ns):
    backends(ns, "n1", "n1", "n2")
    ns.apply(service("web", "web"), pod("client", container(), node="n1"))
    ns.wait_running("client")
    url = f"http://{ns.get('service', 'web')['spec']['clusterIP']}/"
    wait_for_rules(ns, "client", url, {"web0", "web1", "web2"})
    counts = ask(ns, "client", url, 300)
    assert sum(counts.values()) == 300
    assert set(counts) == {"web0", "web1", "web2"}
    assert all(60 <= count <= 140 for count in counts.values()), counts
    assert ask(ns, "client", "http://web/")["failed"] == 0


def test_hairpin_and_no_endpoints(ns):
    backends(ns, "n1")
    ns.apply(service("web", "web"), service("nobody", "nobody"))
    url = f"http://{ns.get('service', 'web')['spec']['clusterIP']}/"
    wait_for_rules(ns, "web0", url, {"web0"})
    empty = f"http://{ns.get('service', 'nobody')['spec']['clusterIP']}/"
    code, _, err = ns.run("exec", "web0", "--", "wget", "-qO-", empty)
    assert code != 0
    assert "refused" in err
    ns.kubectl("delete", "pod", "web0", "--grace-period=1")
    backends(ns, "n2")
    ns.apply(pod("client", container(), node="n1"))
    ns.wait_running("client")
    wait_for_rules(ns, "client", url, {"web0"})


def test_f03_node_port_on_every_node(ns):
    backends(ns, "n2")
    ports = [
        {"name": "a", "port": 80, "targetPort": 8080, "nodePort": 30007},
        {"name": "b", "port": 8888, "targetPort": 8080},
    ]
    ns.apply(service("web", "web", type="NodePort", ports=ports), pod("client", container(), node="n1"))
    ns.wait_running("client")
    second = ns.get("service", "web")["spec"]["ports"][1]["nodePort"]
    for node in ("n1", "n2"):
        found = json.loads(ns.cluster.kubectl("get", "node", node, "-o", "json"))
        ip = next(a["address"] for a in found["status"]["addresses"] if a["type"] == "InternalIP")
        for port in (30007, second):
            url = f"http://{ip}:{port}/"
            wait_for_rules(ns, "client", url, {"web0"})
            for source in ("n1", "n2"):
                assert ns.cluster.node(source, "busybox", "wget", "-qO-", url).strip() == "web0"
            assert ns.cluster.outside("busybox", "wget", "-qO-", url).strip() == "web0"


def test_dns_resolves_services(ns):
    ns.apply(pod("client", container(), node="n1"))
    ns.wait_running("client")
    assert "10.96.0.1" in ns.sh("client", "nslookup kubernetes.default.svc.cluster.local")
    resolver = ns.sh("client", "cat /etc/resolv.conf")
    assert f"{ns.name}.svc.cluster.local svc.cluster.local cluster.local" in resolver
    assert "ndots:5" in resolver
