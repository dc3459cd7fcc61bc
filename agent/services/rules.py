"""One virtual port as iptables rules, with the chains and names kube-proxy uses and admins know how to read.

    nat  PREROUTING, OUTPUT → KUBE-SERVICES
           virtual address  → KUBE-SVC-…  (policy Cluster)  or KUBE-SVL-…  (policy Local)
           external address → KUBE-EXT-…  → KUBE-SVC-… or KUBE-SVL-…   (KUBE-FW-… first, with source ranges)
           local address    → KUBE-NODEPORTS → KUBE-EXT-…
         KUBE-SVC-… → KUBE-SEP-…, one of n at random → DNAT
         POSTROUTING → KUBE-POSTROUTING → MASQUERADE what KUBE-MARK-MASQ marked
    filter  KUBE-SERVICES, KUBE-EXTERNAL-SERVICES   REJECT or DROP what nobody serves
            KUBE-PROXY-FIREWALL                     DROP what source ranges did not let through
            KUBE-FORWARD                            ACCEPT what was marked, and its replies

Rules are written exactly as iptables-save prints them (1.8.x), so that a full sync can compare text with text
and finds nothing to do when nothing has changed. Everything here is pure.

Source: k8s.io/kubernetes/pkg/proxy/iptables (v1.37), iptables-extensions(8).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.services.picture import Endpoint, VirtualPort, VirtualService
from host.rules.iptables import Family, Jump, quote

Rule = str
Shared = tuple[str, str, Rule]
"""A rule in a chain that many services share: (table, chain, rule)."""

CANARY = "KUBE-PROXY-CANARY"
SERVICES, NODE_PORTS, EXTERNAL = "KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES"
FORWARD, FIREWALL = "KUBE-FORWARD", "KUBE-PROXY-FIREWALL"
POSTROUTING, MARK_MASQ = "KUBE-POSTROUTING", "KUBE-MARK-MASQ"
SHARED_CHAINS: Mapping[str, tuple[str, ...]] = {
    "filter": (SERVICES, EXTERNAL, NODE_PORTS, FIREWALL),
    "nat": (SERVICES, NODE_PORTS),
}
OWN_PREFIXES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")


@dataclass(frozen=True)
class Settings:
    """How rules are written.

    Attributes:
        family: the IP family.
        mark: the fwmark bit of packets to masquerade.
        masquerade_all: masquerade everything that goes through a cluster IP.
        local_interface: traffic that comes in here is from pods of this node; "" to use `local_cidr`.
        local_cidr: addresses of pods of this node; "" with no interface either: nobody counts as local.
        node_port_addresses: addresses that node ports answer on; () for every address of the node.
        drop_invalid: drop packets conntrack calls INVALID (k/k#74839), unless the kernel is set liberal.
        node_ip: this node's address, for source ranges that include the node.
    """

    family: Family = 4
    mark: int = 0x4000
    masquerade_all: bool = False
    local_interface: str = "cbr0"
    local_cidr: str = ""
    node_port_addresses: tuple[str, ...] = ()
    drop_invalid: bool = True
    node_ip: str = ""

    @property
    def if_local(self) -> str:
        """The match for traffic from this node's pods; "" when that cannot be told."""
        if self.local_interface:
            return f"-i {self.local_interface}"
        return f"-s {self.local_cidr}" if self.local_cidr else ""

    def not_local(self, destination: str) -> str:
        """The match for traffic to a destination but not from this node's pods, in iptables-save's order."""
        if self.local_interface:
            return f"-d {destination} ! -i {self.local_interface}"
        return f"! -s {self.local_cidr} -d {destination}"

    def host(self, ip: str) -> str:
        """An address as iptables-save prints it."""
        return f"{ip}/{32 if self.family == 4 else 128}"


@dataclass(frozen=True)
class ServiceRules:
    """What one Service needs: rules in shared chains, and whole chains of its own in the nat table."""

    shared: tuple[Shared, ...] = ()
    chains: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)


@functools.lru_cache(maxsize=1024)
def _hash(text: str) -> str:
    """The first 16 base32 letters (10 bytes) of a SHA-256."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()[:10]).decode()


@dataclass(frozen=True)
class Names:
    """Chain names of one virtual port: the kind, and a hash because names end at 28 characters."""

    cluster: str
    local: str
    external: str
    firewall: str


def names_of(port: VirtualPort) -> Names:
    """The chain names of a virtual port."""
    digest = _hash(port.name + port.protocol)
    return Names(f"KUBE-SVC-{digest}", f"KUBE-SVL-{digest}", f"KUBE-EXT-{digest}", f"KUBE-FW-{digest}")


def endpoint_chain(port: VirtualPort, endpoint: Endpoint) -> str:
    """The chain name of one endpoint of a virtual port."""
    return f"KUBE-SEP-{_hash(port.name + port.protocol + endpoint.address)}"


def _comment(text: str) -> str:
    return f"-m comment --comment {quote(text)}"


@functools.lru_cache(maxsize=4096)
def probability(count: int) -> str:
    """1/count as iptables-save prints it: the kernel keeps 31 bits (xt_statistic)."""
    return f"{round((1 << 31) / count) / (1 << 31):.11f}"


def plan_service(service: VirtualService, settings: Settings) -> ServiceRules:
    """The rules of a Service; none for one without ports."""
    shared: list[Shared] = []
    chains: dict[str, tuple[Rule, ...]] = {}
    for port in service.ports:
        shared.extend(_filter_rules(port, settings))
        shared.extend(_dispatch_rules(port, settings))
        chains.update(_own_chains(port, settings))
    if service.health_check_port:
        comment = _comment(f"{service.key} health check node port")
        rule = f"-p tcp {comment} -m tcp --dport {service.health_check_port} -j ACCEPT"
        shared.append(("filter", NODE_PORTS, rule))
    return ServiceRules(tuple(shared), chains)


def _to(port: VirtualPort, ip: str, settings: Settings, comment: str) -> str:
    """The match for one virtual address of a port."""
    protocol = port.protocol
    return f"-d {settings.host(ip)} -p {protocol} {_comment(comment)} -m {protocol} --dport {port.port}"


def has_internal(port: VirtualPort) -> bool:
    """Whether traffic to the cluster IP has somewhere to go."""
    return port.has_endpoints and (bool(port.local) if port.internal_local else True)


def has_external(port: VirtualPort) -> bool:
    """Whether traffic from outside to external addresses has somewhere to go."""
    return port.has_endpoints and (bool(port.local) if port.external_local else True)


def _uses_firewall(port: VirtualPort) -> bool:
    return port.has_endpoints and bool(port.load_balancer_ips and port.source_ranges)


def _dispatch_rules(port: VirtualPort, settings: Settings) -> list[Shared]:
    """Rules in KUBE-SERVICES and KUBE-NODEPORTS that recognise a virtual address."""
    names = names_of(port)
    rules: list[Shared] = []
    if has_internal(port):
        chain = names.local if port.internal_local else names.cluster
        match = _to(port, port.cluster_ip, settings, f"{port.name} cluster IP")
        rules.append(("nat", SERVICES, f"{match} -j {chain}"))
    if not port.has_endpoints:
        return rules
    for ip in port.external_ips:
        match = _to(port, ip, settings, f"{port.name} external IP")
        rules.append(("nat", SERVICES, f"{match} -j {names.external}"))
    for ip in port.load_balancer_ips:
        match = _to(port, ip, settings, f"{port.name} loadbalancer IP")
        chain = names.firewall if _uses_firewall(port) else names.external
        rules.append(("nat", SERVICES, f"{match} -j {chain}"))
    if port.node_port:
        match = f"-p {port.protocol} {_comment(port.name)} -m {port.protocol} --dport {port.node_port}"
        rules.append(("nat", NODE_PORTS, f"{match} -j {names.external}"))
    return rules


def _filter_rules(port: VirtualPort, settings: Settings) -> list[Shared]:
    """REJECT when nobody serves; DROP when somebody does, but not for this kind of traffic on this node."""
    names = names_of(port)
    unreachable = "icmp-port-unreachable" if settings.family == 4 else "icmp6-port-unreachable"
    if port.has_endpoints:
        target, comment = "DROP", f"{port.name} has no local endpoints"
    else:
        target, comment = f"REJECT --reject-with {unreachable}", f"{port.name} has no endpoints"
    rules: list[Shared] = []
    if not has_internal(port):
        rules.append(("filter", SERVICES, f"{_to(port, port.cluster_ip, settings, comment)} -j {target}"))
    if not has_external(port):
        for ip in (*port.external_ips, *port.load_balancer_ips):
            rules.append(("filter", EXTERNAL, f"{_to(port, ip, settings, comment)} -j {target}"))
        if port.node_port:
            match = (
                f"-p {port.protocol} {_comment(comment)} -m addrtype --dst-type LOCAL "
                f"-m {port.protocol} --dport {port.node_port}"
            )
            rules.append(("filter", EXTERNAL, f"{match} -j {target}"))
    if _uses_firewall(port):
        for ip in port.load_balancer_ips:
            match = _to(port, ip, settings, f"{port.name} traffic not accepted by {names.firewall}")
            rules.append(("filter", FIREWALL, f"{match} -j DROP"))
    return rules


def _own_chains(port: VirtualPort, settings: Settings) -> dict[str, tuple[Rule, ...]]:
    """The chains of one virtual port, those jumped to first."""
    names = names_of(port)
    chains: dict[str, list[Rule]] = {}
    for endpoint in port.reachable:
        chains[endpoint_chain(port, endpoint)] = _endpoint_rules(port, endpoint, settings)
    if port.cluster:
        chains[names.cluster] = _balance(port, port.cluster)
    if port.local:
        chains[names.local] = _balance(port, port.local)
    if has_internal(port):
        internal = names.local if port.internal_local else names.cluster
        chains[internal][:0] = _internal_masquerade(port, settings)
    if port.has_endpoints and port.external:
        chains[names.external] = _external_rules(port, settings)
    if _uses_firewall(port):
        chains[names.firewall] = _firewall_rules(port, settings)
    return {chain: tuple(rules) for chain, rules in chains.items()}


def _internal_masquerade(port: VirtualPort, settings: Settings) -> list[Rule]:
    """Traffic from outside the cluster that was routed here for a cluster IP may bounce to another node."""
    comment = f"{port.name} cluster IP"
    tail = f"-p {port.protocol} {_comment(comment)} -m {port.protocol} --dport {port.port} -j {MARK_MASQ}"
    destination = settings.host(port.cluster_ip)
    if settings.masquerade_all:
        return [f"-d {destination} {tail}"]
    if settings.if_local:
        return [f"{settings.not_local(destination)} {tail}"]
    return []


def _external_rules(port: VirtualPort, settings: Settings) -> list[Rule]:
    names = names_of(port)
    what = f"{port.name} external destinations"
    if not port.external_local:
        return [f"{_comment(f'masquerade traffic for {what}')} -j {MARK_MASQ}", f"-j {names.cluster}"]
    rules = []
    if port.cluster:
        # A pod or the node itself that uses an external address is served as if by the load balancer: by any
        # endpoint, whatever the policy. The node needs a source address that can be answered.
        source_local = "-m addrtype --src-type LOCAL"
        if settings.if_local:
            comment = _comment(f"pod traffic for {what}")
            rules.append(f"{settings.if_local} {comment} -j {names.cluster}")
        rules.append(f"{_comment(f'masquerade LOCAL traffic for {what}')} {source_local} -j {MARK_MASQ}")
        rules.append(f"{_comment(f'route LOCAL traffic for {what}')} {source_local} -j {names.cluster}")
    if port.local:
        rules.append(f"-j {names.local}")
    return rules


def _firewall_rules(port: VirtualPort, settings: Settings) -> list[Rule]:
    """Source ranges go on; what falls through was not translated, and KUBE-PROXY-FIREWALL drops it."""
    names = names_of(port)
    comment = _comment(f"{port.name} loadbalancer IP")
    sources = list(port.source_ranges)
    if settings.node_ip:
        node = ipaddress.ip_address(settings.node_ip)
        if any(node in ipaddress.ip_network(one) for one in port.source_ranges):
            sources += [settings.host(ip) for ip in port.load_balancer_ips]
    return [f"-s {source} {comment} -j {names.external}" for source in sources]


def _balance(port: VirtualPort, endpoints: Sequence[Endpoint]) -> list[Rule]:
    """Known clients first, then one of n at random: 1/n, then 1/(n-1) of the rest, …, the last always."""
    rules = []
    for endpoint in endpoints if port.affinity_seconds else ():
        chain = endpoint_chain(port, endpoint)
        rules.append(
            f"{_comment(f'{port.name} -> {endpoint.address}')} -m recent --rcheck "
            f"--seconds {port.affinity_seconds} --reap {_recent_name(chain, port)} -j {chain}"
        )
    for index, endpoint in enumerate(endpoints):
        left = len(endpoints) - index
        chance = f"-m statistic --mode random --probability {probability(left)} " if left > 1 else ""
        chain = endpoint_chain(port, endpoint)
        rules.append(f"{_comment(f'{port.name} -> {endpoint.address}')} {chance}-j {chain}")
    return rules


def _recent_name(chain: str, port: VirtualPort) -> str:
    mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" if ":" in port.cluster_ip else "255.255.255.255"
    return f"--name {chain} --mask {mask} --rsource"


def _endpoint_rules(port: VirtualPort, endpoint: Endpoint, settings: Settings) -> list[Rule]:
    """Masquerade an endpoint that reached itself (hairpin), remember the client, translate."""
    comment = _comment(port.name)
    recent = ""
    if port.affinity_seconds:
        recent = f"-m recent --set {_recent_name(endpoint_chain(port, endpoint), port)} "
    return [
        f"-s {settings.host(endpoint.ip)} {comment} -j {MARK_MASQ}",
        f"-p {port.protocol} {comment} {recent}-m {port.protocol} "
        f"-j DNAT --to-destination {endpoint.address}",
    ]


def fixed_chains(settings: Settings) -> dict[str, dict[str, tuple[Rule, ...]]]:
    """{table: {chain: rules}} of the chains that do not depend on any Service."""
    mark = f"{settings.mark:#x}"
    forward = [
        f"{_comment('kubernetes forwarding rules')} -m mark --mark {mark}/{mark} -j ACCEPT",
        f"{_comment('kubernetes forwarding conntrack rule')} "
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]
    if settings.drop_invalid:
        forward.insert(0, "-m conntrack --ctstate INVALID -j DROP")
    return {
        "filter": {FORWARD: tuple(forward), CANARY: ()},
        "nat": {
            MARK_MASQ: (f"-j MARK --set-xmark {mark}/{mark}",),
            POSTROUTING: (
                f"-m mark ! --mark {mark}/{mark} -j RETURN",
                f"-j MARK --set-xmark {mark}/0x0",
                f"{_comment('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully",
            ),
            CANARY: (),
        },
    }


def last_rules(settings: Settings) -> tuple[Rule, ...]:
    """The rules that end nat KUBE-SERVICES: what is for this node itself may be for a node port.

    Never for loopback addresses: that would need route_localnet, which opens 127/8 to neighbours
    (CVE-2020-8558).
    """
    comment = _comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    if settings.node_port_addresses:
        return tuple(
            f"-d {settings.host(ip)} {comment} -j {NODE_PORTS}" for ip in settings.node_port_addresses
        )
    loopback = "127.0.0.0/8" if settings.family == 4 else "::1/128"
    return (f"! -d {loopback} {comment} -m addrtype --dst-type LOCAL -j {NODE_PORTS}",)


def jumps() -> tuple[Jump, ...]:
    """The rules in the kernel's own chains that lead to ours; at the top, as kube-proxy puts them."""
    new = "-m conntrack --ctstate NEW"
    wanted = (
        ("filter", "INPUT", new, "kubernetes externally-visible service portals", EXTERNAL),
        ("filter", "FORWARD", new, "kubernetes externally-visible service portals", EXTERNAL),
        ("filter", "INPUT", "", "kubernetes health check service ports", NODE_PORTS),
        ("filter", "FORWARD", new, "kubernetes service portals", SERVICES),
        ("filter", "OUTPUT", new, "kubernetes service portals", SERVICES),
        ("filter", "FORWARD", "", "kubernetes forwarding rules", FORWARD),
        ("filter", "INPUT", new, "kubernetes load balancer firewall", FIREWALL),
        ("filter", "OUTPUT", new, "kubernetes load balancer firewall", FIREWALL),
        ("filter", "FORWARD", new, "kubernetes load balancer firewall", FIREWALL),
        ("nat", "OUTPUT", "", "kubernetes service portals", SERVICES),
        ("nat", "PREROUTING", "", "kubernetes service portals", SERVICES),
        ("nat", "POSTROUTING", "", "kubernetes postrouting rules", POSTROUTING),
    )
    return tuple(
        Jump(table, chain, " ".join(filter(None, (match, _comment(comment), f"-j {target}"))), prepend=True)
        for table, chain, match, comment, target in wanted
    )
