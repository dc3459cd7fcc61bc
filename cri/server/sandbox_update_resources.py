"""UpdatePodSandboxResources: what the kubelet has resized a pod to.

The pod's cgroup is the kubelet's, which has written it before it calls; here the figures are kept with the
sandbox's facts, and nothing else changes (KEP-1287: the call exists so that runtimes and NRI plugins know).
"""

from __future__ import annotations

import msgspec

from cri.server.core import Core
from cri.server.errors import FailedPrecondition
from cri.state.records import SandboxState
from proto.cri import runtime_pb2 as pb


async def update_pod_sandbox_resources(
    core: Core, request: pb.UpdatePodSandboxResourcesRequest
) -> pb.UpdatePodSandboxResourcesResponse:
    """Keep a ready sandbox's new overhead and resources.

    Raises:
        UnknownId, FailedPrecondition: no ready sandbox of this id.
    """
    sandbox = core.store.sandbox(request.pod_sandbox_id)
    if sandbox.record.state is not SandboxState.READY:
        raise FailedPrecondition(f"pod sandbox {sandbox.id} is not ready")
    for name in ("overhead", "resources"):
        if request.HasField(name):
            getattr(sandbox.config.linux, name).CopyFrom(getattr(request, name))
    data = sandbox.config.SerializeToString()
    core.store.put_sandbox(sandbox, msgspec.structs.replace(sandbox.record, config=data))
    return pb.UpdatePodSandboxResourcesResponse()
