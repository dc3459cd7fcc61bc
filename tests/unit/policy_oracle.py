"""What the specification of NetworkPolicy says about one connection, read slowly from the API's own JSON.

Nothing here is shared with `agent.policy`. A pod is a dictionary with `name`, `namespace`, `labels`, `ips`
and `ports` ({(protocol, name): number}); policies are objects as `kubectl get -o json` shows them.
"""

from __future__ import annotations

import ipaddress
from typing import Any

Json = dict[str, Any]


def allowed(
    policies: list[Json],
    pods: list[Json],
    namespaces: dict[str, dict[str, str]],
    *,
    client: str,
    server: str,
    protocol: str,
    port: int,
    local: set[str],
) -> bool:
    """Whether the connection is allowed as far as the pods named in `local` are concerned."""
    if client == server:
        return True  # "a pod cannot block access to itself"
    source, target = pod_of(pods, client), pod_of(pods, server)
    ports = (target["ports"] if target else {}, protocol, port)
    ends = (
        ("Egress", "egress", "to", source, target, server),
        ("Ingress", "ingress", "from", target, source, client),
    )
    for kind, field, peers, subject, other, address in ends:
        if subject is None or subject["name"] not in local:
            continue
        isolating = [p for p in policies if isolates(p, kind, subject)]
        if isolating and not any(
            rule_allows(rule, peers, p["metadata"]["namespace"], other, address, ports, namespaces)
            for p in isolating
            for rule in p["spec"].get(field, [])
        ):
            return False
    return True


def pod_of(pods: list[Json], ip: str) -> Json | None:
    return next((pod for pod in pods if ip in pod["ips"]), None)


def isolates(policy: Json, kind: str, pod: Json) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    return (
        kind in types
        and policy["metadata"]["namespace"] == pod["namespace"]
        and selected(spec.get("podSelector", {}), pod["labels"])
    )


def rule_allows(
    rule: Json,
    peers: str,
    namespace: str,
    other: Json | None,
    address: str,
    ports: tuple[dict[tuple[str, str], int], str, int],
    namespaces: dict[str, dict[str, str]],
) -> bool:
    if rule.get(peers) and not any(
        peer_matches(peer, namespace, other, address, namespaces) for peer in rule[peers]
    ):
        return False
    return not rule.get("ports") or any(port_matches(one, *ports) for one in rule["ports"])


def peer_matches(
    peer: Json, namespace: str, other: Json | None, address: str, namespaces: dict[str, dict[str, str]]
) -> bool:
    if "ipBlock" in peer:
        ip = ipaddress.ip_address(address)
        block = peer["ipBlock"]
        if ip not in ipaddress.ip_network(block["cidr"]):
            return False
        return all(ip not in ipaddress.ip_network(part) for part in block.get("except", []))
    if other is None:
        return False
    if "namespaceSelector" in peer:
        if not selected(peer["namespaceSelector"], namespaces.get(other["namespace"], {})):
            return False
    elif other["namespace"] != namespace:
        return False
    return selected(peer.get("podSelector", {}), other["labels"])


def port_matches(one: Json, named: dict[tuple[str, str], int], protocol: str, port: int) -> bool:
    if one.get("protocol", "TCP") != protocol:
        return False
    wanted = one.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return named.get((protocol, wanted)) == port
    return wanted <= port <= one.get("endPort", wanted)


def selected(selector: Json, labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        key, operator, values = expression["key"], expression["operator"], expression.get("values", [])
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return True
