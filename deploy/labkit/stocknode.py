"""A stock node in the lab: kubelet, kube-proxy, containerd and runc, the reference CNI plugins and flannel.

The counterpart nodelet is measured against and plays together with (its kubelet on nodelet-cri, too), in the
same namespaces, with the same KubeletConfiguration and the same images.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from deploy.labkit import versions
from deploy.labkit.layout import POD_NETWORK, Layout, Node
from deploy.labkit.services import Service

SOCKET = "unix:///run/containerd/containerd.sock"
_FLANNEL_CONFIG = "etc/kubernetes/flannel.json"
_TUNNEL_MTU = 1450
_CONTAINERD = """\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
"""


def network(pod_cidr: str, *, flannel: bool) -> dict[str, object]:
    """The conflist of a stock node with this pod range: bridge, host-local, portmap.

    Args:
        flannel: whether flannel runs there; it masquerades itself, and its tunnel takes 50 bytes of a packet.
    """
    bridge: dict[str, object] = {"ipMasq": not flannel, **({"mtu": _TUNNEL_MTU} if flannel else {})}
    return {
        "cniVersion": "1.0.0",
        "name": "stock",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "hairpinMode": True,
                **bridge,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pod_cidr}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/var/lib/cni/networks",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def proxy_configuration(node: Node) -> dict[str, object]:
    """The KubeProxyConfiguration; conntrack's sysctls are the machine's and stay as they are."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kubelet.conf"},
        "clusterCIDR": POD_NETWORK,
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "hostnameOverride": node.name,
        "mode": "iptables",
    }


def install_proxy(node: Node, disk: Path) -> None:
    """Write kube-proxy's configuration."""
    proxy = disk / "etc/kubernetes/kube-proxy.yaml"
    proxy.write_text(json.dumps(proxy_configuration(node)))


def install_runtime(lab: Layout, disk: Path, hosts_toml: str) -> None:
    """Write containerd's configuration and put the plugins where containerd looks for them."""
    config = disk / "etc/containerd/config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    runc = lab.binary(versions.RUNC_RUNTIME)
    config.write_text(_CONTAINERD.format(pause=versions.PAUSE_IMAGE, runc=runc))
    mirrors = config.parent / "certs.d/_default"
    mirrors.mkdir(parents=True, exist_ok=True)
    (mirrors / "hosts.toml").write_text(hosts_toml)
    plugins = disk / "opt/cni/bin"
    plugins.mkdir(parents=True, exist_ok=True)
    for name in versions.REFERENCE_CNI.programs:
        if not (plugins / name).exists():
            shutil.copy(lab.binary(versions.REFERENCE_CNI, name), plugins / name)


def set_pod_range(disk: Path, pod_cidr: str, *, flannel: bool) -> None:
    """Write the conflist as soon as the cluster has given the node its pod range; containerd sees it come."""
    folder = disk / "etc/cni/net.d"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "10-stock.conflist"
    temp = folder / ".10-stock.new"
    temp.write_text(json.dumps(network(pod_cidr, flannel=flannel)))
    temp.rename(path)


def runtime(lab: Layout) -> Service:
    """containerd."""
    containerd = lab.binary(versions.CONTAINERD_RUNTIME)
    search = f"{containerd.parent}:{lab.binary(versions.RUNC_RUNTIME).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    return Service(
        name="containerd",
        argv=(str(containerd), "--config", "/etc/containerd/config.toml"),
        socket=SOCKET.removeprefix("unix://"),
        env=(("PATH", search),),
    )


def kubelet(lab: Layout, node: Node) -> tuple[Service, ...]:
    """kubelet, then kube-proxy; which runtime they use is in their configuration."""
    return (
        Service(
            name="kubelet",
            argv=(
                str(lab.binary(versions.KUBELET)),
                "--config=/var/lib/kubelet/config.yaml",
                "--kubeconfig=/etc/kubernetes/kubelet.conf",
                f"--hostname-override={node.name}",
                f"--node-ip={node.address}",
            ),
        ),
        Service(
            name="kube-proxy",
            argv=(str(lab.binary(versions.KUBE_PROXY)), "--config=/etc/kubernetes/kube-proxy.yaml"),
        ),
    )


def install_flannel(disk: Path, backend: str = "vxlan", *, direct_routing: bool = False) -> None:
    """Write flannel's configuration. Its defaults (VNI 1, port 8472) are nodelet's as well."""
    options = {"Type": backend, **({"DirectRouting": True} if direct_routing else {})}
    text = json.dumps({"Network": POD_NETWORK, "Backend": options})
    (disk / _FLANNEL_CONFIG).write_text(text)


def flannel(lab: Layout, node: Node) -> Service:
    """flannel, which reads the other nodes' places from their Node objects and writes its own there."""
    return Service(
        name="flannel",
        argv=(
            str(lab.binary(versions.FLANNEL_DAEMON)),
            "--kube-subnet-mgr",
            "--kubeconfig-file=/etc/kubernetes/kubelet.conf",
            f"--net-config-path=/{_FLANNEL_CONFIG}",
            f"--iface={node.address}",
            "--ip-masq",
        ),
        env=(("NODE_NAME", node.name),),
        needs_pod_range=True,
    )
