"""A device plugin as vendors write them: it registers, tells of its devices and gives them out.

In a test it is a `SamplePlugin` on the test's own loop; on a node of the lab it is a program:

    python -m device_plugin FOLDER example.com/null one=/dev/null two=/dev/zero
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from proto.devices import plugin_pb2 as pb
from proto.devices import plugin_pb2_grpc as rpc


class SamplePlugin(rpc.DevicePluginServicer):
    """One resource, whose devices are nodes of /dev.

    Args:
        folder: where kubelet.sock is.
        devices: node of each device id.
        prefer: ids it would rather give; empty: it has no preference.
    """

    def __init__(
        self,
        folder: Path,
        resource: str = "example.com/null",
        devices: Mapping[str, str] | None = None,
        *,
        prefer: tuple[str, ...] = (),
        pre_start: bool = False,
        endpoint: str = "sample.sock",
    ) -> None:
        self.folder, self.resource, self.endpoint = folder, resource, endpoint
        self.devices = dict(devices or {"one": "/dev/null", "two": "/dev/zero"})
        self.sick: set[str] = set()
        self.refuses = ""
        self.allocated: list[list[str]] = []
        self.readied: list[list[str]] = []
        self.options = pb.DevicePluginOptions(
            pre_start_required=pre_start, get_preferred_allocation_available=bool(prefer)
        )
        self._prefer = prefer
        self._news = asyncio.Event()
        self._server: Any = None

    async def start(self) -> None:
        """Serve, then register."""
        (self.folder / self.endpoint).unlink(missing_ok=True)
        self._server = grpc.aio.server()
        rpc.add_DevicePluginServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.folder / self.endpoint}")
        await self._server.start()
        await self.register()

    async def register(self, **fields: Any) -> None:
        """Register; `fields` in place of what it would say."""
        said = {"version": "v1beta1", "endpoint": self.endpoint, "resource_name": self.resource}
        async with grpc.aio.insecure_channel(f"unix:{self.folder / 'kubelet.sock'}") as channel:
            request = pb.RegisterRequest(**{**said, **fields}, options=self.options)
            await rpc.RegistrationStub(channel).Register(request, wait_for_ready=True, timeout=30)

    async def stop(self) -> None:
        """Hang up on everybody."""
        await self._server.stop(None)

    def tell(self, *, sick: set[str]) -> None:
        """Tell who listens which devices are not healthy."""
        self.sick = sick
        self._news.set()

    async def ListAndWatch(self, request: Any, context: Any) -> AsyncIterator[pb.ListAndWatchResponse]:
        while True:
            told = [
                pb.Device(ID=name, health="Unhealthy" if name in self.sick else "Healthy")
                for name in self.devices
            ]
            yield pb.ListAndWatchResponse(devices=told)
            await self._news.wait()
            self._news.clear()

    async def GetPreferredAllocation(self, request: Any, context: Any) -> pb.PreferredAllocationResponse:
        asked = request.container_requests[0]
        wanted = [name for name in self._prefer if name in asked.available_deviceIDs]
        chosen = pb.ContainerPreferredAllocationResponse(deviceIDs=wanted[: asked.allocation_size])
        return pb.PreferredAllocationResponse(container_responses=[chosen])

    async def Allocate(self, request: Any, context: Any) -> pb.AllocateResponse:
        if self.refuses:
            await context.abort(grpc.StatusCode.INTERNAL, self.refuses)
        ids = list(request.container_requests[0].devices_ids)
        self.allocated.append(ids)
        specs = [
            pb.DeviceSpec(
                container_path=f"/dev/sample-{name}", host_path=self.devices[name], permissions="rw"
            )
            for name in ids
        ]
        answer = pb.ContainerAllocateResponse(
            envs={"SAMPLE_DEVICES": ",".join(sorted(ids))},
            devices=specs,
            mounts=[pb.Mount(container_path="/sample", host_path=str(self.folder), read_only=True)],
            annotations={"example.com/devices": str(len(ids))},
        )
        return pb.AllocateResponse(container_responses=[answer])

    async def PreStartContainer(self, request: Any, context: Any) -> pb.PreStartContainerResponse:
        self.readied.append(list(request.devices_ids))
        return pb.PreStartContainerResponse()


async def main(folder: str, resource: str, *devices: str) -> None:
    """Serve until SIGTERM; register again whenever the node's socket is a new one, as the API asks."""
    plugin = SamplePlugin(Path(folder), resource, dict(each.split("=") for each in devices))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    socket, seen = Path(folder) / "kubelet.sock", 0
    while not ended.is_set():
        now = socket.stat().st_ctime_ns if socket.exists() else 0  # inode numbers come back
        if now and now != seen:
            if seen:
                await plugin.stop()
            await plugin.start()
            print("registered", flush=True)
        seen = now or seen
        await asyncio.sleep(0.1)
    await plugin.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
