"""The nodes of a lab: which there are, what is on their disks, and which programs they run.

A node's disk is written before its machine starts, as an installer would: nothing here reaches into a running
node. The list of nodes is a file, so that `up` finds the same ones again after a crash.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

from cni import launcher
from cni.config import render_conflist
from deploy.labkit import layout, stocknode, versions
from deploy.labkit.errors import LabError
from deploy.labkit.layout import Kind, Layout, Node
from deploy.labkit.services import Service
from host.files import write_atomic

CRI_SOCKET = "unix:///run/nodelet/cri.sock"
MIRROR = f"http://{layout.CONTROL_ADDRESS}:{layout.REGISTRY_PORT}"
HOSTS_TOML = f"""\
# Every image comes from the lab's registry; there is no way to another one.
server = "{MIRROR}"
[host."{MIRROR}"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
"""


def known(lab: Layout) -> list[Node]:
    """The lab's nodes, in the order they were added."""
    try:
        entries = json.loads((lab.state / "nodes.json").read_text())
    except FileNotFoundError:
        return []
    return [Node(**entry) for entry in entries]


def _write(lab: Layout, nodes: Iterable[Node]) -> None:
    lab.state.mkdir(parents=True, exist_ok=True)
    path = lab.state / "nodes.json"
    temp = path.with_suffix(".new")
    temp.write_text(
        json.dumps([{"name": node.name, "index": node.index, "kind": node.kind} for node in nodes])
    )
    temp.rename(path)


def add(lab: Layout, name: str, *, kind: Kind = "nodelet") -> Node:
    """A new entry in the list of nodes, or the entry there is.

    Raises:
        LabError: it is there, but of the other kind.
    """
    nodes = known(lab)
    for node in nodes:
        if node.name == name:
            if node.kind != kind:
                raise LabError(f"{name} is there already, as a {node.kind} node; remove it first")
            return node
    taken = {node.index for node in nodes}
    index = next(number for number in range(200) if number not in taken)
    node = Node(name=name, index=index, kind=kind)
    _write(lab, [*nodes, node])
    return node


def forget(lab: Layout, name: str) -> None:
    """Drop an entry and the node's disk."""
    _write(lab, [node for node in known(lab) if node.name != name])
    shutil.rmtree(lab.machine(name), ignore_errors=True)


def find(lab: Layout, name: str) -> Node:
    """An entry.

    Raises:
        LabError: no such node.
    """
    for node in known(lab):
        if node.name == name:
            return node
    names = ", ".join(node.name for node in known(lab)) or "none"
    raise LabError(f"no node {name} in lab {lab.name}; there is: {names}")


def kubelet_configuration(lab: Layout, node: Node) -> dict[str, object]:
    """The KubeletConfiguration of a node of the lab; all kinds get the same, but for a taint.

    Only pods that ask for it are scheduled on a node without nodelet.
    """
    taint = {"key": "lab/stock", "value": "true", "effect": "NoSchedule"}
    taints = [] if node.kind == "nodelet" else [taint]
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": lab.node_cgroup(node.name),
        "clusterDNS": [layout.DNS_ADDRESS],
        "clusterDomain": layout.DOMAIN,
        "containerRuntimeEndpoint": stocknode.SOCKET if node.kind == "stock" else CRI_SOCKET,
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "maxPods": 110,
        "registerWithTaints": taints,
        "resolvConf": "/etc/resolv.conf",
        "staticPodPath": "/etc/kubernetes/manifests",
    }


def nodelet_configuration() -> dict[str, object]:
    """The NodeletConfiguration of a nodelet node."""
    return {
        "apiVersion": "nodelet/v1alpha1",
        "kind": "NodeletConfiguration",
        "clusterCIDR": layout.POD_NETWORK,
        "overlay": {"backend": "vxlan"},
        "proxy": {"mode": "iptables"},
    }


def install(lab: Layout, node: Node) -> None:
    """Write a node's disk: its configuration and that of its runtime; what is there is kept."""
    disk = lab.machine(node.name)
    manifests = disk / "etc/kubernetes/manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    pki = disk / "etc/kubernetes/pki"
    pki.mkdir(exist_ok=True)
    shutil.copy(lab.pki / "ca.crt", pki / "ca.crt")
    _write_yaml(disk / "var/lib/kubelet/config.yaml", kubelet_configuration(lab, node))
    if node.kind != "nodelet":
        stocknode.install_proxy(node, disk)
    if node.kind == "stock":
        stocknode.install_runtime(lab, disk, HOSTS_TOML)
        stocknode.install_flannel(disk)
        return
    _write_yaml(disk / "etc/nodelet/nodelet.yaml", nodelet_configuration())
    mirrors = disk / "etc/nodelet/registries.d/_default"
    mirrors.mkdir(parents=True, exist_ok=True)
    (mirrors / "hosts.toml").write_text(HOSTS_TOML)
    plugins = disk / "opt/cni/bin"
    plugins.mkdir(parents=True, exist_ok=True)
    launcher.install(plugins)


def set_pod_range(lab: Layout, node: Node, pod_cidr: str) -> None:
    """Write the conflist of a node that nodelet does not run, once the cluster has given it its pod range."""
    disk = lab.machine(node.name)
    if node.kind == "stock":
        stocknode.set_pod_range(disk, pod_cidr, flannel=True)
    elif node.kind == "kubelet":
        folder = disk / "etc/cni/net.d"
        folder.mkdir(parents=True, exist_ok=True)
        conflist = render_conflist([pod_cidr], cluster_cidrs=[layout.POD_NETWORK])
        write_atomic(folder / "10-nodelet.conflist", conflist, mode=0o644)


def binaries_of(kind: Kind) -> tuple[versions.Project, ...]:
    """What a node of this kind needs beside this project's programs."""
    if kind == "stock":
        return versions.STOCK_NODE
    return versions.STOCK_KUBELET if kind == "kubelet" else ()


def _write_yaml(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def program(name: str) -> Path:
    """One of this project's programs, in the environment that this lab runs from."""
    return Path(sys.executable).parent / name


def services(lab: Layout, node: Node) -> tuple[Service, ...]:
    """The programs of a node, in starting order."""
    if node.kind == "stock":
        return (stocknode.runtime(lab), *stocknode.kubelet(lab, node), stocknode.flannel(lab, node))
    runtime = Service(
        name="nodelet-cri", argv=(str(program("nodelet-cri")),), socket=CRI_SOCKET.removeprefix("unix://")
    )
    if node.kind == "kubelet":
        return (runtime, *stocknode.kubelet(lab, node))
    return (
        runtime,
        Service(
            name="nodelet",
            argv=(
                str(program("nodelet")),
                "--config=/var/lib/kubelet/config.yaml",
                "--kubeconfig=/etc/kubernetes/kubelet.conf",
                "--nodelet-config=/etc/nodelet/nodelet.yaml",
                f"--hostname-override={node.name}",
            ),
        ),
    )
