"""The pod's network: address, ports, names."""

from __future__ import annotations

import asyncio
import socket

from criclient import CriClient

from proto.cri import runtime_pb2 as pb

HELLO = "while true; do echo hello | nc -l -p 8080; done"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def address(node: CriClient, sandbox: str) -> str:
    asked = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    return (await node.runtime.PodSandboxStatus(asked)).status.network.ip


async def greeting(host: str, port: int) -> bytes:
    """What a server says first; asked again while it is not there yet."""
    async with asyncio.timeout(20):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
                continue
            said = await reader.read(100)
            writer.close()
            if said:
                return said


async def test_the_node_reaches_a_pod_at_its_address(node: CriClient):
    sandbox, _, _ = await node.launch("sh", "-c", HELLO)
    assert await greeting(await address(node, sandbox), 8080) == b"hello\n"


async def test_pods_reach_each_other(node: CriClient):
    first, _, _ = await node.launch("sh", "-c", HELLO)
    there = await address(node, first)
    second, container, _ = await node.launch("sleep", "1000")
    assert await address(node, second) != there
    assert await greeting(there, 8080) == b"hello\n"
    assert await node.inside(container, f"nc {there} 8080 </dev/null") == "hello"


async def test_a_port_of_the_node_leads_to_a_pod(node: CriClient):
    port = free_port()
    mapping = pb.PortMapping(protocol=pb.TCP, container_port=8080, host_port=port)
    config = node.sandbox_config(port_mappings=[mapping])
    sandbox, _ = await node.launch_with(config, "sh", "-c", HELLO)
    assert await greeting("127.0.0.1", port) == b"hello\n"
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    again = node.sandbox_config(port_mappings=[mapping])
    await node.launch_with(again, "sh", "-c", HELLO)
    assert await greeting("127.0.0.1", port) == b"hello\n"


async def test_a_port_without_one_of_the_node_is_the_pods_alone(node: CriClient):
    mapping = pb.PortMapping(protocol=pb.TCP, container_port=8080)
    config = node.sandbox_config(port_mappings=[mapping])
    sandbox, _ = await node.launch_with(config, "sh", "-c", HELLO)
    assert await greeting(await address(node, sandbox), 8080) == b"hello\n"


async def test_dns_is_as_the_pod_asks(node: CriClient):
    dns = pb.DNSConfig(servers=["10.10.10.10"], searches=["example.org", "b.test"], options=["ndots:8"])
    config = node.sandbox_config()
    config.dns_config.CopyFrom(dns)
    _, container = await node.launch_with(config, "sleep", "1000")
    lines = (await node.inside(container, "cat /etc/resolv.conf")).splitlines()
    assert sorted(lines) == ["nameserver 10.10.10.10", "options ndots:8", "search example.org b.test"]


async def test_the_pod_has_its_hostname(node: CriClient):
    config = node.sandbox_config(hostname="web-0")
    _, container = await node.launch_with(config, "sleep", "1000")
    assert await node.inside(container, "hostname; echo $HOSTNAME; cat /etc/hostname") == "\n".join(
        ["web-0"] * 3
    )


async def test_a_pod_on_the_nodes_network_has_no_address_of_its_own(node: CriClient):
    config = node.sandbox_config()
    config.hostname = ""
    config.linux.security_context.namespace_options.network = pb.NODE
    assert await address(node, await node.run_pod(config)) == ""
