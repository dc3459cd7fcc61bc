"""Exec, Attach and PortForward: check the request, answer the address where its stream can be had."""

from __future__ import annotations

from cri.server.container_exec_sync import running
from cri.server.core import Core
from cri.server.errors import FailedPrecondition
from cri.state.records import SandboxState
from host.errors import InputError
from proto.cri import runtime_pb2 as pb


def _check_streams(request: pb.ExecRequest | pb.AttachRequest) -> None:
    if request.tty and request.stderr:
        raise InputError("tty and stderr cannot both be true: a terminal has one output")
    if not (request.stdin or request.stdout or request.stderr):
        raise InputError("one of stdin, stdout and stderr must be true")


async def exec_stream(core: Core, request: pb.ExecRequest) -> pb.ExecResponse:
    """The address of an exec stream; the command starts when somebody dials it.

    Raises:
        UnknownId, FailedPrecondition: no running container of this id.
        InputError: no command, or streams that cannot be combined.
        TooManyStreams: too many addresses wait already.
    """
    _check_streams(request)
    if not request.cmd:
        raise InputError("cmd is empty")
    request.container_id = running(core, request.container_id).id
    return pb.ExecResponse(url=f"{core.stream_url}/exec/{core.tokens.insert(request)}")


async def attach_stream(core: Core, request: pb.AttachRequest) -> pb.AttachResponse:
    """The address of a stream of a running container's own input and output; raises as `exec_stream`."""
    _check_streams(request)
    request.container_id = running(core, request.container_id).id
    return pb.AttachResponse(url=f"{core.stream_url}/attach/{core.tokens.insert(request)}")


async def port_forward_stream(core: Core, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
    """The address of a stream of TCP connections to the pod's own loopback.

    Raises:
        UnknownId, FailedPrecondition: no ready sandbox of this id.
        InputError: a port outside 1..65535.
    """
    sandbox = core.store.sandbox(request.pod_sandbox_id)
    if sandbox.record.state is not SandboxState.READY:
        raise FailedPrecondition(f"pod sandbox {sandbox.id} is not ready")
    for port in request.port:
        if not 1 <= port <= 65535:
            raise InputError(f"port {port} is not in 1..65535")
    request.pod_sandbox_id = sandbox.id
    return pb.PortForwardResponse(url=f"{core.stream_url}/portforward/{core.tokens.insert(request)}")
