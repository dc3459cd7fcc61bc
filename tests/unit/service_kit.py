"""Services in few words, and steps from one set of them to the next: for the tests of diffs and back ends."""

from __future__ import annotations

from agent.services import rules
from agent.services.picture import Endpoint, NodeFacts, VirtualPort, VirtualService, choose
from host.rules.iptables import Tables

NODE = NodeFacts(name="n1")
Services = dict[str, VirtualService]


def service(number: int, *lasts: int, node_port: int = 0, affinity: int = 0) -> VirtualService:
    endpoints = tuple(Endpoint(f"10.1.{number}.{last}", 8080, local=True) for last in lasts)
    port = VirtualPort(
        name=f"ns/s{number}",
        protocol="tcp",
        cluster_ip=f"10.96.0.{number}",
        port=80,
        node_port=node_port,
        affinity_seconds=affinity,
    )
    return VirtualService(f"ns/s{number}", (choose(port, endpoints, NODE),))


def by_key(*services: VirtualService) -> Services:
    return {one.key: one for one in services}


def comparable(tables: Tables) -> object:
    """Tables with the shared chains as sets, but for the last rule of KUBE-SERVICES, whose place matters."""
    result = {}
    for table, chains in tables.items():
        for chain, body in chains.items():
            shared = chain in rules.SHARED_CHAINS.get(table, ())
            last = body[-1:] if (table, chain) == ("nat", rules.SERVICES) else []
            result[table, chain] = (sorted(body), last) if shared else body
    return result


STEPS: list[Services] = [
    {},
    by_key(service(1, 1, 2, 3)),
    by_key(service(1, 1, 2)),
    by_key(service(1)),
    by_key(service(1, 9, node_port=30001), service(2, 1)),
    by_key(service(2, 1, 2, affinity=60)),
    by_key(service(1, 9), service(2, 2, affinity=60)),
    {},
]
