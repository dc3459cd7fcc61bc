"""What `tests/bench/run probes` executes in a network of its own: many probes for a while, and their cost.

    python -m tests.bench.probe_load KIND COUNT PERIOD SECONDS

Prints the share of a core, in percent, that the probes' process used. The server is another process.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time

from agent.api.structs import Container, HTTPGetAction, ObjectMeta, Pod, Probe, TCPSocketAction
from agent.probes.manager import ProbeFailure, ProbeManager
from host.clocks import SystemClock

ADDRESS, PORT = "127.0.0.1", 8080
KINDS = ("http", "tcp", "both")
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


async def serve() -> None:
    """Answer every request with 200 until ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"GET" in await reader.read(4096):
            writer.write(_ANSWER)
        writer.close()

    server = await asyncio.start_server(answer, ADDRESS, PORT, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


def _probe(kind: str, number: int, period: int) -> Probe:
    if kind == "http" or (kind == "both" and number % 2):
        return Probe(period_seconds=period, http_get=HTTPGetAction(path="/healthz", port=PORT))
    return Probe(period_seconds=period, tcp_socket=TCPSocketAction(port=PORT))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(kind: str, count: int, period: int, seconds: float) -> float:
    """Percent of a core. Raises RuntimeError when a probe fails: it would cost something else."""
    failures: list[ProbeFailure] = []
    clock = SystemClock()
    manager = ProbeManager(
        clock=clock, exec_sync=_no_exec, on_result=lambda _: None, on_failure=failures.append
    )
    running = asyncio.create_task(manager.run())
    pod = Pod(metadata=ObjectMeta(name="p", uid="u"))
    for number in range(count):
        container = Container(name="c", readiness_probe=_probe(kind, number, period))
        # Taken over from before, so that the first runs are spread over a period as on a node in operation.
        manager.add(
            pod, container, container_id=str(number), pod_ip=ADDRESS, started_at=clock.now(), known={}
        )
    await asyncio.sleep(period)
    cpu, began = _cpu(), time.monotonic()
    await asyncio.sleep(seconds)
    share = 100 * (_cpu() - cpu) / (time.monotonic() - began)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    if failures:
        raise RuntimeError(f"{len(failures)} probes failed, the first: {failures[0].message}")
    return share


async def _no_exec(container_id: str, argv: object, timeout: float) -> tuple[int, bytes]:
    raise NotImplementedError("no exec probes here")


def main() -> None:
    """Print the share."""
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
        return
    kind, count, period, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    argv = [sys.executable, "-m", "tests.bench.probe_load", "serve"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            print(asyncio.run(measure(kind, count, period, seconds)))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
