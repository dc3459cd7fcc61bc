"""Whether this node takes a pod: the scheduler's basic checks again, at the last moment. Pure.

The scheduler may have decided on old news, and a pod with `nodeName` set never saw it. What does not fit ends
in phase Failed with one of kubelet's reasons.

Source: pkg/kubelet/lifecycle/predicate.go, pkg/scheduler/framework/plugins (v1.37).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from agent.api.structs import NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint
from agent.resources import qos
from agent.resources.eviction.admission import refusal

OS_LABEL = "kubernetes.io/os"
SOURCE_ANNOTATION = "kubernetes.io/config.source"
_SCALARS = ("cpu", "memory", "ephemeral-storage")


@dataclass(frozen=True)
class Rejection:
    """Why a pod is not taken: `reason` and `message` of its status."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What of the node matters for admission."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    max_pods: int = 110
    pressures: frozenset[str] = frozenset()
    """Pressure conditions that are True now."""
    shutting_down: bool = False
    taints: tuple[Taint, ...] = ()
    apparmor: bool = True
    """Whether the kernel can enforce AppArmor profiles."""


def admit(pod: Pod, others: Iterable[Pod], node: NodeFacts) -> Rejection | None:
    """None when the pod may run beside the others (the active pods of this node, without itself)."""
    if node.shutting_down:
        return Rejection("NodeShutdown", "Pod was rejected as the node is shutting down.")
    pressed = refusal(pod, node.pressures)
    if pressed is not None:
        return Rejection(*pressed)
    if pod.metadata.labels.get(OS_LABEL, "linux") != "linux":
        text = f"Failed to admit pod as the `{OS_LABEL}` label doesn't match node label"
        return Rejection("PodOSSelectorNodeLabelDoesNotMatch", text)
    if pod.spec.os is not None and pod.spec.os.name not in ("", "linux"):
        return Rejection("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
    rest = list(others)
    return room(pod, rest, node) or _predicates(pod, rest, node) or _apparmor(pod, node)


def _predicates(pod: Pod, others: list[Pod], node: NodeFacts) -> Rejection | None:
    if not _affine(pod, node):
        return _predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
    if pod.spec.node_name not in ("", node.name):
        return _predicate("NodeName", "node(s) didn't match the requested node name")
    taken = {key for other in others for key in host_ports(other)}
    if any(_clashes(mine, taken) for mine in host_ports(pod)):
        return _predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")
    static = pod.metadata.annotations.get(SOURCE_ANNOTATION, "api") != "api"
    if not static and not all(_tolerated(t, pod) for t in node.taints if t.effect == "NoExecute"):
        return _predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate")
    return None


def _apparmor(pod: Pod, node: NodeFacts) -> Rejection | None:
    if node.apparmor:
        return None
    containers = (*pod.spec.init_containers, *pod.spec.containers, *pod.spec.ephemeral_containers)
    contexts = [c.security_context for c in containers if c.security_context is not None]
    profiles = [pod.spec.security_context.app_armor_profile, *(c.app_armor_profile for c in contexts)]
    if any(p is not None and p.type != "Unconfined" for p in profiles):
        return Rejection("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")
    return None


def _tolerated(taint: Taint, pod: Pod) -> bool:
    return any(
        (not t.effect or t.effect == taint.effect)
        and (not t.key or t.key == taint.key)
        and (t.operator == "Exists" or t.value == taint.value)
        for t in pod.spec.tolerations
    )


def _predicate(name: str, text: str) -> Rejection:
    return Rejection(name, f"Predicate {name} failed: {text}")


def room(pod: Pod, others: list[Pod], node: NodeFacts) -> Rejection | None:
    """Why the node's allocatable resources do not hold the pod beside the others; None when they do."""
    if len(others) + 1 > node.max_pods:
        return _out_of("pods", Fraction(1), Fraction(len(others)), Fraction(node.max_pods))
    used: dict[str, Fraction] = {}
    for other in others:
        for name, amount in qos.pod_requests(other).items():
            used[name] = used.get(name, Fraction(0)) + amount
    capacity = qos.parse_all(node.allocatable)
    for name, amount in qos.pod_requests(pod).items():
        # A resource that nobody has announced is not this node's to refuse (kubelet drops it as well).
        if amount == 0 or (name not in capacity and name not in _SCALARS) or not capacity:
            continue
        if amount > capacity.get(name, Fraction(0)) - used.get(name, Fraction(0)):
            return _out_of(name, amount, used.get(name, Fraction(0)), capacity.get(name, Fraction(0)))
    return None


def _out_of(name: str, asked: Fraction, used: Fraction, capacity: Fraction) -> Rejection:
    unit = 1000 if name == "cpu" else 1
    text = (
        f"Node didn't have enough resource: {name}, requested: {int(asked * unit)}, "
        f"used: {int(used * unit)}, capacity: {int(capacity * unit)}"
    )
    return Rejection(f"OutOf{name}", text)


PortKey = tuple[str, str, int]


def host_ports(pod: Pod) -> set[PortKey]:
    """Ports of the node the pod takes: protocol, address ("" for all), number."""
    keys: set[PortKey] = set()
    for container in (*pod.spec.containers, *pod.spec.init_containers):
        if container in pod.spec.init_containers and container.restart_policy != "Always":
            continue
        for port in container.ports:
            number = port.host_port or (port.container_port if pod.spec.host_network else 0)
            if number:
                address = "" if port.host_ip in ("", "0.0.0.0", "::") else port.host_ip  # noqa: S104
                keys.add((port.protocol, address, number))
    return keys


def _clashes(mine: PortKey, taken: set[PortKey]) -> bool:
    protocol, address, number = mine
    return any(
        (protocol, number) == (other[0], other[2]) and (not address or not other[1] or address == other[1])
        for other in taken
    )


def _affine(pod: Pod, node: NodeFacts) -> bool:
    if any(node.labels.get(key) != value for key, value in pod.spec.node_selector.items()):
        return False
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    required = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    if required is None:
        return True
    return any(_term(term, node) for term in required.node_selector_terms)


def _term(term: NodeSelectorTerm, node: NodeFacts) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False
    fields = {"metadata.name": node.name}
    return all(_match(r, node.labels) for r in term.match_expressions) and all(
        _match(r, fields) for r in term.match_fields
    )


def _match(requirement: NodeSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            return _compare(value, requirement)
    return False


def _compare(value: str | None, requirement: NodeSelectorRequirement) -> bool:
    try:
        have, bound = int(value or ""), int(requirement.values[0])
    except (ValueError, IndexError):
        return False
    return have > bound if requirement.operator == "Gt" else have < bound
