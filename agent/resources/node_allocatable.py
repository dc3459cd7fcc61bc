"""What all pods together, and what the system's own cgroups, may use: node allocatable, enforced. Pure.

    capacity - systemReserved - kubeReserved                    limit of `kubepods`
    the same - hard eviction threshold of memory                what the scheduler may hand out

So eviction sets in while pods still have that much left below their limit.

Source: k8s.io/kubernetes/pkg/kubelet/cm/node_container_manager_linux.go (v1.37).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from agent.api import quantity
from agent.node.facts import Machine
from agent.resources import qos
from host.cgroups import Resources


def pods_limits(machine: Machine, reserved: Sequence[Mapping[str, str]]) -> Resources:
    """Limits of the cgroup above all pods.

    Args:
        reserved: systemReserved and kubeReserved.
    """

    def held(name: str) -> Fraction:
        return sum((quantity.parse(str(each.get(name, "0"))) for each in reserved), Fraction(0))

    memory = machine.memory - int(held("memory"))
    pids = machine.pids - int(held("pid"))
    return Resources(
        cpu_shares=qos.cpu_shares(max(Fraction(0), machine.cpus - held("cpu"))),
        memory_limit=memory if memory > 0 else None,
        pids_limit=pids if machine.pids and pids > 0 else None,
        hugepage_limits={page_size(name): size for name, size in machine.hugepages.items()},
    )


def reserved_limits(reserved: Mapping[str, str]) -> Resources:
    """Limits of a cgroup that holds what something is reserved for."""
    amounts = qos.parse_all({name: str(text) for name, text in reserved.items()})
    return Resources(
        cpu_shares=qos.cpu_shares(amounts["cpu"]) if "cpu" in amounts else None,
        memory_limit=int(amounts["memory"]) if amounts.get("memory") else None,
        pids_limit=int(amounts["pid"]) if amounts.get("pid") else None,
    )


def page_size(resource: str) -> str:
    """A huge page resource as the kernel names the size: "hugepages-2Mi" is "2MB"."""
    return resource.removeprefix("hugepages-").removesuffix("i") + "B"
