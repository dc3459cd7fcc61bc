"""Row E08: a node without a network says so, starts what needs none, and is Ready soon after there is one."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import yaml
from kit import container, pod, until

NODE = "n2"
NOT_READY = [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]


@contextmanager
def network_of_somebody_else(lab, cluster):
    """The node leaves the network to another plugin; gives the file to name one in, and what to write."""
    disk = lab.layout.machine(NODE)
    settings, conflist = disk / "etc/nodelet/nodelet.yaml", disk / "etc/cni/net.d/10-nodelet.conflist"
    before = settings.read_text()
    content = conflist.read_bytes()
    settings.write_text(yaml.safe_dump(yaml.safe_load(before) | {"overlay": {"backend": "none"}}))
    try:
        with cluster.killed(NODE, "nodelet"):
            conflist.unlink()
        yield conflist, content
    finally:
        settings.write_text(before)
        with cluster.killed(NODE, "nodelet"):
            pass
        until("its own conflist", conflist.exists)
        until("Ready", lambda: ready(cluster)["status"] == "True")


def ready(cluster):
    """The Ready condition of the node."""
    node = json.loads(cluster.kubectl("get", "node", NODE, "-o", "json"))
    return next(item for item in node["status"]["conditions"] if item["type"] == "Ready")


def test_e08_not_ready_until_there_is_a_network(lab, cluster, ns):
    with network_of_somebody_else(lab, cluster) as (conflist, content):
        until("NotReady", lambda: ready(cluster)["status"] == "False")
        assert "cni config uninitialized" in ready(cluster)["message"]
        ns.apply(
            pod("host", container(), node=NODE, tolerations=NOT_READY, hostNetwork=True),
            pod("waits", container(), node=NODE, tolerations=NOT_READY),
        )
        ns.wait_phase("host", "Running")
        until("why the other one waits", lambda: "FailedCreatePodSandBox" in ns.reasons("waits"))
        assert any("cni config uninitialized" in event["message"] for event in ns.events("waits"))
        assert ns.pod("waits")["status"]["phase"] == "Pending"
        conflist.with_suffix(".new").write_bytes(content)
        conflist.with_suffix(".new").rename(conflist)
        installed = time.monotonic()
        until("Ready", lambda: ready(cluster)["status"] == "True")
        print(f"Ready {time.monotonic() - installed:.1f} s after the network was installed")
        assert ns.wait_running("waits")["status"]["podIP"]
