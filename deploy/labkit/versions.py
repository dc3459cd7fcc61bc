"""The versions of everything the lab takes from elsewhere, in one place.

The stock programs are the counterparts that tests and benchmarks compare nodelet with.
"""

from dataclasses import dataclass

KUBERNETES = "1.37.1"
STAGING = "0.37.1"
ETCD = "3.6.8"
COREDNS = "1.15.0"
CONTAINERD = "2.4.2"
RUNC = "1.4.0"
CNI_PLUGINS = "1.9.1"
FLANNEL = "0.26.7"
GO_MINIMUM = (1, 26)

COREDNS_IMAGE = f"docker.io/coredns/coredns:{COREDNS}"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"


@dataclass(frozen=True, kw_only=True)
class Project:
    """A set of programs that come from one source at one version.

    Attributes:
        name: folder name in the cache, with the version.
        version: without a leading v.
        programs: executables it gives.
        flag: argument that makes the first program print its version, to judge one found on the machine.
    """

    name: str
    version: str
    programs: tuple[str, ...]
    flag: str = "--version"

    @property
    def folder(self) -> str:
        """Its name in the cache: `kubernetes-1.37.1`."""
        return f"{self.name}-{self.version}"


CONTROL_PLANE = Project(
    name="kubernetes",
    version=KUBERNETES,
    programs=("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubeadm"),
)
KUBELET = Project(name="kubernetes", version=KUBERNETES, programs=("kubelet",))
KUBE_PROXY = Project(name="kubernetes", version=KUBERNETES, programs=("kube-proxy",))
ETCD_SERVER = Project(name="etcd", version=ETCD, programs=("etcd",))
COREDNS_SERVER = Project(name="coredns", version=COREDNS, programs=("coredns",), flag="-version")
CONTAINERD_RUNTIME = Project(
    name="containerd", version=CONTAINERD, programs=("containerd", "containerd-shim-runc-v2")
)
RUNC_RUNTIME = Project(name="runc", version=RUNC, programs=("runc",))
REFERENCE_CNI = Project(
    name="cni-plugins", version=CNI_PLUGINS, programs=("bridge", "loopback", "host-local", "portmap")
)
FLANNEL_DAEMON = Project(name="flannel", version=FLANNEL, programs=("flannel",))
STOCK_KUBELET = (KUBELET, KUBE_PROXY)
STOCK_NODE = (KUBELET, KUBE_PROXY, CONTAINERD_RUNTIME, RUNC_RUNTIME, REFERENCE_CNI, FLANNEL_DAEMON)
