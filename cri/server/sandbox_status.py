"""PodSandboxStatus."""

from __future__ import annotations

import json

from cri.server.core import Core
from cri.server.render import container_status, sandbox_status
from cri.state.records import ContainerState, SandboxState
from cri.state.store import Sandbox, UnknownId
from proto.cri import runtime_pb2 as pb


async def pod_sandbox_status(core: Core, request: pb.PodSandboxStatusRequest) -> pb.PodSandboxStatusResponse:
    """The status of a sandbox and, for event-driven kubelets, of its containers.

    Raises:
        UnknownId: no such sandbox.
    """
    sandbox = core.store.sandbox(request.pod_sandbox_id)
    if sandbox.record.state is SandboxState.MAKING:
        raise UnknownId(f"pod sandbox {request.pod_sandbox_id[:80]!r} not found: it is still being made")
    containers = [
        container_status(item)
        for item in core.store.containers_of(sandbox.id)
        if item.record.state is not ContainerState.MAKING
    ]
    response = pb.PodSandboxStatusResponse(
        status=sandbox_status(sandbox), containers_statuses=containers, timestamp=core.now()
    )
    if request.verbose:
        response.info["info"] = json.dumps(await _details(core, sandbox))
    return response


async def _details(core: Core, sandbox: Sandbox) -> dict[str, object]:
    details: dict[str, object] = {
        "networkNamespace": sandbox.record.netns,
        "cniResult": sandbox.record.network.get("result"),
        "cgroupParent": sandbox.config.linux.cgroup_parent,
    }
    if sandbox.record.state is SandboxState.READY:
        details["pid"] = (await core.runtime.sandbox_facts(sandbox.id)).pid
    return details
