"""How long service rules take: full sync, restart, and one change, by number of Services with three
endpoints each.

    python tests/bench/bench_services.py 1000 10000

Needs root; everything happens in a network namespace that goes away with the process. Prints one line for
each size: seconds for drawing and planning alone, for the first full sync into an empty kernel, for a full
sync that finds everything in place (an agent restart), and the median of one change (an endpoint replaced),
and the time to add and remove a Service.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from agent.services import rules
from agent.services.iptables import IptablesBackEnd
from agent.services.picture import Endpoint, NodeFacts, VirtualPort, VirtualService, choose
from agent.services.rules import Settings
from host import syscalls

NODE = NodeFacts(name="node1")


def make(number: int, *, generation: int = 0) -> VirtualService:
    """Service `number` with three endpoints; another generation has another first one."""
    key = f"default/service-{number}"
    low = f"{number // 256 % 256}.{number % 256}"
    endpoints = tuple(
        Endpoint(f"10.{128 + 8 * (number // 65536) + e}.{low}", 8080 + generation) for e in range(3)
    )
    port = VirtualPort(
        name=f"{key}:http", protocol="tcp", cluster_ip=f"10.{96 + number // 65536}.{low}", port=80
    )
    return VirtualService(key, (choose(port, endpoints, NODE),))


async def measure(count: int) -> None:
    """One size, one line."""
    settings = Settings()
    began = time.perf_counter()
    services = {service.key: service for service in map(make, range(count))}
    for service in services.values():
        rules.plan_service(service, settings)
    planned = time.perf_counter() - began

    back_end = IptablesBackEnd(settings)
    first = await back_end.sync(services, [])
    back_end = IptablesBackEnd(settings)
    again = await back_end.sync(services, [])
    changes = []
    for generation in range(1, 8):
        changed = make(count // 2, generation=generation)
        services[changed.key] = changed
        changes.append((await back_end.sync(services, [changed.key])).seconds)
    extra = make(count)
    services[extra.key] = extra
    added = await back_end.sync(services, [extra.key])
    del services[extra.key]
    removed = await back_end.sync(services, [extra.key])
    began = time.perf_counter()
    assert await back_end.drifted() == ""
    checked = time.perf_counter() - began
    line = {
        "plan": f"{planned:.2f}s",
        "first": f"{first.seconds:.2f}s in {first.transactions} transactions",
        "restart": f"{again.seconds:.2f}s in {again.transactions}",
        "change": f"{statistics.median(changes) * 1e3:.0f}ms",
        "add": f"{added.seconds * 1e3:.0f}ms",
        "remove": f"{removed.seconds * 1e3:.0f}ms",
        "check": f"{checked * 1e3:.0f}ms",
    }
    print(f"services={count}", *(f"{name}={value}" for name, value in line.items()), flush=True)
    await back_end.clean_up()


def main() -> None:
    """Measure the sizes given as arguments."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    for text in sys.argv[1:] or ["1000"]:
        asyncio.run(measure(int(text)))


if __name__ == "__main__":
    main()
