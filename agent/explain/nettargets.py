"""What a word on the command line of `nodelet net trace` means: an address, a pod, or a Service. Pure.

    10.244.1.5   [fd00::5]:80   web   default/web:8080   svc/web   svc/default/web:http   pod/default/web

The kernel's own tables come first; what only the agent knows (pods of other nodes, Services without rules) is
taken from its answer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.explain import netservices
from agent.explain.documents import Known
from agent.explain.nettables import Tables
from host.errors import InputError
from host.rtnl import IPAddress

Ask = Callable[[str], Sequence[Known]]
"""What the agent knows of an address or a name; nothing where no agent answers."""

_KINDS = {"svc": "service", "service": "service", "services": "service", "pod": "pod", "pods": "pod"}


@dataclass(frozen=True)
class Target:
    """One end of a trace.

    Attributes:
        port, protocol: 0 and "" where the word does not tell them.
        service: "namespace/name:port" of a Service; "" for anything else.
        node: the address of the node it is on, where the agent knows it.
    """

    address: IPAddress
    port: int = 0
    protocol: str = ""
    service: str = ""
    node: IPAddress | None = None


def find(tables: Tables, word: str, ask: Ask = lambda word: ()) -> Target:
    """What a word means.

    Raises:
        InputError: nothing of that name, or several things.
    """
    name, port = _split_port(word)
    address = _address(name)
    if address is not None:
        return _of_address(address, _number(port, word), ask)
    kind, name = _split_kind(name)
    candidates = [
        *(_pods(tables, name, port, ask) if kind != "service" else ()),
        *(_services(tables, name, ask) if kind != "pod" else ()),
    ]
    chosen = [target for what, target in candidates if what == "pod" or _has_port(target, port)]
    kinds = {what for what, _ in candidates}
    if len(kinds) > 1:
        raise InputError(f"a pod and a Service are called {name}: say pod/{name} or svc/{name}")
    if not candidates:
        raise InputError(
            f"no pod of this node, and no Service, is called {name}: give its address, or see nodelet net ls"
        )
    if len(chosen) == 1:
        return chosen[0]
    raise InputError(_ambiguity(name, port, [target for _, target in candidates], kinds.pop()))


def _ambiguity(name: str, port: str, targets: Sequence[Target], kind: str) -> str:
    if kind == "pod":
        return f"several pods are called {name}: say NAMESPACE/POD"
    services = {target.service.partition(":")[0] for target in targets}
    if len(services) > 1:
        return f"several Services are called {name}: say one of {', '.join(sorted(services))}"
    ports = sorted({f"{t.service.partition(':')[2] or t.port} ({t.port}/{t.protocol})" for t in targets})
    problem = f"has no port {port}" if port else "has several ports"
    return f"Service {name} {problem}: say {name}:PORT, with one of {', '.join(ports)}"


def _split_port(word: str) -> tuple[str, str]:
    """A bare IPv6 address has colons of its own."""
    if _address(word) is not None:
        return word, ""
    name, _, port = word.rpartition(":") if ":" in word else (word, "", "")
    return name.removeprefix("[").removesuffix("]"), port


def _split_kind(name: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    return (_KINDS[first], rest) if rest and first in _KINDS else ("", name)


def _address(text: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _number(port: str, word: str) -> int:
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise InputError(f"{word}: {port} is no port number (1-65535)")
    return int(port or 0)


def _of_address(address: IPAddress, port: int, ask: Ask) -> Target:
    known = list(ask(str(address)))
    nodes = [ipaddress.ip_address(one.host) for one in known if one.host]
    services = [one for one in known if one.kind == "service" and port in (0, one.port)]
    service = f"{services[0].namespace}/{services[0].name}" if services else ""
    return Target(address, port, service=service, node=nodes[0] if nodes else None)


def _pods(tables: Tables, name: str, port: str, ask: Ask) -> list[tuple[str, Target]]:
    number = int(port) if port.isascii() and port.isdigit() else 0
    local = [pod for pod in tables.pods if name in (pod.pod, pod.pod.partition("/")[2])]
    if local:
        return [("pod", Target(pod.ips[0], number)) for pod in local]
    first: dict[tuple[str, str], Target] = {}
    for one in ask(name):
        if one.kind == "pod":
            node = ipaddress.ip_address(one.host) if one.host else None
            first.setdefault(
                (one.namespace, one.name), Target(ipaddress.ip_address(one.ip), number, node=node)
            )
    return [("pod", target) for target in first.values()]


def _services(tables: Tables, name: str, ask: Ask) -> list[tuple[str, Target]]:
    namespace, _, called = name.rpartition("/")
    programmed = [
        Target(entry.address, entry.port, entry.protocol, entry.name)
        for entry in netservices.named(tables, namespace, called)
        if entry.address is not None
    ]
    if not programmed:
        seen: dict[tuple[str, str], Target] = {}
        for one in ask(name):
            if one.kind == "service":
                full = f"{one.namespace}/{one.name}" + (f":{one.port_name}" if one.port_name else "")
                target = Target(ipaddress.ip_address(one.ip), one.port, one.protocol, full)
                seen.setdefault((full, one.protocol), target)
        programmed = list(seen.values())
    return [("service", target) for target in programmed]


def _has_port(target: Target, port: str) -> bool:
    return port in ("", str(target.port), target.service.partition(":")[2])
