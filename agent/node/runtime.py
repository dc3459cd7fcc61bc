"""The node's questions to the container runtime, asked through the agent's CRI client.

Turns CRI messages into the node's own facts, and a runtime that does not answer into a fact as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.api.cluster import NodeRuntimeHandler, NodeRuntimeHandlerFeatures
from agent.api.structs import ContainerImage
from agent.node.conditions import RuntimeState
from agent.pods.runtime import Runtime, RuntimeFailure
from proto.cri import runtime_pb2 as pb


class CriProbe:
    """`agent.node.manager.RuntimeProbe` over CRI."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def state(self) -> RuntimeState:
        try:
            version = await self._runtime.version()
            answer = await self._runtime.status()
        except RuntimeFailure as exc:
            return RuntimeState(error=exc.message)
        found = {condition.type: condition for condition in answer.status.conditions}
        runtime, network = found.get("RuntimeReady"), found.get("NetworkReady")
        return RuntimeState(
            ready=runtime is not None and runtime.status,
            network_ready=network is not None and network.status,
            runtime_message=_message(runtime),
            network_message=_message(network),
            name=version.runtime_name,
            version=version.runtime_version,
            handlers=tuple(_handler(handler) for handler in answer.runtime_handlers),
            supplemental_groups_policy=answer.features.supplemental_groups_policy,
        )

    async def images(self) -> Sequence[ContainerImage]:
        try:
            found = await self._runtime.images()
        except RuntimeFailure:
            return ()
        return tuple(
            ContainerImage(names=(*image.repo_digests, *image.repo_tags)[:5], size_bytes=image.size)
            for image in sorted(found, key=lambda image: image.id)
        )


def _handler(handler: pb.RuntimeHandler) -> NodeRuntimeHandler:
    """A handler with what it can do; the scheduler does not look at these yet, people and the API do."""
    features = NodeRuntimeHandlerFeatures(
        recursive_read_only_mounts=handler.features.recursive_read_only_mounts,
        user_namespaces=handler.features.user_namespaces,
    )
    return NodeRuntimeHandler(name=handler.name, features=features)


def _message(condition: object) -> str:
    """kubelet's form: `NetworkReady=false reason:NetworkPluginNotReady message:…`."""
    if condition is None:
        return "the runtime does not report it"
    kind, status = getattr(condition, "type", ""), getattr(condition, "status", False)
    reason, message = getattr(condition, "reason", ""), getattr(condition, "message", "")
    return f"{kind}={str(status).lower()} reason:{reason} message:{message}"
