"""grpc probes: grpc.health.v1.Health/Check must answer SERVING.

The two messages are small enough to be written by hand, so no generated code is needed: the request is field
1 (string service), the response field 1 (enum status). grpc itself is imported at the first probe of this
kind. Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.probes.measure import SUCCESS, USER_AGENT, Measurement, Target, failure
from agent.probes.tcp import host_port

if TYPE_CHECKING:
    from agent.api.structs import GRPCAction

_METHOD = "/grpc.health.v1.Health/Check"
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_SERVING = 1


def encode_request(service: str) -> bytes:
    """HealthCheckRequest with that service name."""
    if not service:
        return b""
    data = service.encode()
    return b"\x0a" + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
    raise ValueError("truncated varint")


def decode_response(data: bytes) -> int:
    """The status number of a HealthCheckResponse; unknown fields are skipped.

    Raises:
        ValueError: not a protobuf message.
    """
    at = status = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            if field == 1:
                status = value
        elif wire == 2:
            length, at = _read_varint(data, at)
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
    return status


async def measure_grpc(action: GRPCAction, target: Target, *, timeout: float) -> Measurement:
    """Ask the pod's health service once, over a connection of its own."""
    import grpc
    import grpc.aio

    address = host_port(target.pod_ip, action.port)
    options = (
        ("grpc.primary_user_agent", USER_AGENT),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        check = channel.unary_unary(
            _METHOD, request_serializer=encode_request, response_deserializer=decode_response
        )
        try:
            status = await check(action.service, timeout=timeout)
        except grpc.aio.AioRpcError as exc:
            return failure(_words(exc.code().name, exc.details() or "", address, timeout))
    if status != _SERVING:
        name = _STATUSES[status] if status < len(_STATUSES) else str(status)
        return failure(f'service unhealthy (responded with "{name}")')
    return SUCCESS


def _words(code: str, details: str, address: str, timeout: float) -> str:
    if code == "UNIMPLEMENTED":
        return (
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): "
            + details
        )
    if code == "DEADLINE_EXCEEDED":
        return f"timeout: health rpc did not complete within {timeout:g}s"
    if code == "UNAVAILABLE":
        return f'error: failed to connect service at "{address}": {details}'
    return f"error: health rpc probe failed: rpc error: code = {code} desc = {details}"
