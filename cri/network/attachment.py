"""What CNI plugins are told about a pod, and the addresses they answer with. All of it pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from host.errors import InputError

IFNAME = "eth0"
_INGRESS, _EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
_QUANTITY = re.compile(r"(\d{1,20}(?:\.\d{1,9})?)(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|[eE][0-9]{1,2})?", re.ASCII)
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_RATES = range(1000, 10**15 + 1)  # what kubelet takes for sane: 1k to 1P bits a second
_SMALLEST_BURST = 1 << 20  # bits: two of the largest packets a socket hands over


@dataclass(frozen=True, kw_only=True)
class PodNetwork:
    """What the plugins are told about a pod."""

    sandbox_id: str
    netns: str
    """Path of the namespace; may be gone already at DEL."""
    namespace: str
    name: str
    uid: str
    port_mappings: tuple[Mapping[str, Any], ...] = ()
    """CNI's `portMappings` capability: hostPort, containerPort, protocol, hostIP."""
    dns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """CNI's `dns` capability: servers, searches, options."""
    bandwidth: Mapping[str, int] = field(default_factory=dict)
    """CNI's `bandwidth` capability: rates in bits a second, bursts in bits."""
    cgroup_path: str = ""
    """CNI's `cgroupPath` capability: the pod's cgroup."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """The pod's, for plugins with the capability that containerd made up for them."""

    @property
    def args(self) -> dict[str, str]:
        """CNI_ARGS as every Kubernetes runtime gives them."""
        return {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.name,
            "K8S_POD_INFRA_CONTAINER_ID": self.sandbox_id,
            "K8S_POD_UID": self.uid,
        }

    @property
    def capabilities(self) -> dict[str, Any]:
        """Values of every capability we can fill; a plugin gets those its configuration asks for.

        CNI's conventions know `ips`, `mac` and `aliases` too: nothing in a PodSandboxConfig says them.
        """
        values: dict[str, Any] = {
            "portMappings": [dict(item) for item in self.port_mappings],
            "dns": {key: list(value) for key, value in self.dns.items()},
            "bandwidth": dict(self.bandwidth),
            "cgroupPath": self.cgroup_path,
            "io.kubernetes.cri.pod-annotations": dict(self.annotations),
        }
        return {name: value for name, value in values.items() if value}


def bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    """The `bandwidth` capability from a pod's annotations, bits a second; {} for a pod without a limit.

    A burst is what may pass in 100 ms. (containerd gives 2^32 - 1 bits, so that the first 512 MB of every
    pause are not limited at all.)

    Raises:
        InputError: an annotation that is no quantity of 1k to 1P; it names the annotation.
    """
    found: dict[str, int] = {}
    for annotation, direction in ((_INGRESS, "ingress"), (_EGRESS, "egress")):
        if annotation in annotations:
            rate = _bits(annotation, annotations[annotation])
            found |= {f"{direction}Rate": rate, f"{direction}Burst": max(rate // 10, _SMALLEST_BURST)}
    return found


def _bits(annotation: str, text: str) -> int:
    parts = _QUANTITY.fullmatch(text)
    rate = 0
    if parts:
        unit = parts[2] or ""
        factor = 10 ** int(unit[1:]) if unit[:1] in ("e", "E") else _scale(unit)
        rate = int(Decimal(parts[1]) * factor)
    if rate not in _RATES:
        raise InputError(f"annotation {annotation}: {text[:40]!r} is not 1k to 1P (bits a second)")
    return rate


def _scale(unit: str) -> int:
    base = 1024 if unit.endswith("i") else 1000
    return int(base ** _POWERS[unit.removesuffix("i")])


def pod_ips(result: Mapping[str, Any]) -> list[str]:
    """The pod's addresses in a CNI result, without prefix length: those of `eth0`, or all when none says."""
    interfaces = result.get("interfaces") or []

    def on_pod(index: Any) -> bool:
        if not isinstance(index, int) or not 0 <= index < len(interfaces):
            return True
        return interfaces[index].get("name") == IFNAME and bool(interfaces[index].get("sandbox"))

    ips = [item for item in result.get("ips") or [] if on_pod(item.get("interface"))]
    return [str(item["address"]).split("/")[0] for item in ips]
