"""A device plugin's socket: its calls, with limits and with errors that name the plugin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.devices.allocate import Offer
from agent.devices.grants import DeviceError
from proto.devices import plugin_pb2 as pb
from proto.devices import plugin_pb2_grpc as rpc

HEALTHY = "Healthy"
_CONNECT_SECONDS = 10.0  # a plugin may register before it listens (kubelet's dial time-out)
_CALL_SECONDS = 30.0  # kubelet's limit for PreStartContainer; it sets none for the others


class Plugin:
    """One registered plugin.

    Args:
        path: its socket.
        prefers: it answers GetPreferredAllocation.
        pre_start: it wants PreStartContainer before every start of a container.
    """

    def __init__(self, path: Path, *, resource: str, prefers: bool = False, pre_start: bool = False) -> None:
        self.resource = resource
        self.prefers = prefers
        self.pre_starts = pre_start
        self._path = path
        self._channel = grpc.aio.insecure_channel(f"unix:{path}")
        self._calls = rpc.DevicePluginStub(self._channel)

    async def watch(self) -> AsyncIterator[dict[str, bool]]:
        """All devices, by id: healthy or not; again at every change, until the plugin ends the stream.

        Raises:
            DeviceError: the plugin does not answer at its socket, or the stream broke.
        """
        try:
            await asyncio.wait_for(self._channel.channel_ready(), _CONNECT_SECONDS)
        except TimeoutError as exc:
            words = f"nobody answers at {self._path} {_CONNECT_SECONDS:g} s after it registered"
            raise DeviceError(f"device plugin of {self.resource}: {words}") from exc
        stream = self._calls.ListAndWatch(pb.Empty())
        try:
            async for message in stream:
                yield {each.ID: each.health == HEALTHY for each in message.devices if each.ID}
        except grpc.aio.AioRpcError as exc:
            raise self._failed("ListAndWatch", exc) from exc
        finally:
            stream.cancel()

    async def prefer(self, offer: Offer) -> tuple[str, ...]:
        """The devices the plugin would rather give. Raises DeviceError."""
        request = pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=(*offer.must, *offer.free),
            must_include_deviceIDs=offer.must,
            allocation_size=offer.demand.count,
        )
        answer = await self._ask(
            "GetPreferredAllocation", pb.PreferredAllocationRequest(container_requests=[request])
        )
        return tuple(answer.container_responses[0].deviceIDs) if answer.container_responses else ()

    async def allocate(self, ids: Sequence[str]) -> bytes:
        """Give a container these devices: the serialized ContainerAllocateResponse. Raises DeviceError."""
        request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
        answer = await self._ask("Allocate", request)
        if len(answer.container_responses) != 1:
            raise DeviceError(
                f"device plugin of {self.resource}: Allocate answered for "
                f"{len(answer.container_responses)} containers instead of one"
            )
        return bytes(answer.container_responses[0].SerializeToString())

    async def pre_start(self, ids: Sequence[str]) -> None:
        """Let the plugin ready the devices of a container that is about to start. Raises DeviceError."""
        await self._ask("PreStartContainer", pb.PreStartContainerRequest(devices_ids=ids))

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    async def _ask(self, name: str, request: Any) -> Any:
        calling: Awaitable[Any] = getattr(self._calls, name)(request, timeout=_CALL_SECONDS)
        try:
            return await calling
        except grpc.aio.AioRpcError as exc:
            raise self._failed(name, exc) from exc

    def _failed(self, name: str, exc: grpc.aio.AioRpcError) -> DeviceError:
        words = (exc.details() or exc.code().name.lower())[:1000]
        return DeviceError(f"device plugin of {self.resource} ({self._path.name}): {name}: {words}")
