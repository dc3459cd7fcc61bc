"""Version, Status, RuntimeConfig, UpdateRuntimeConfig: what this runtime is and whether it can work."""

from __future__ import annotations

import json
from importlib.metadata import version

from cri.config import RUNTIME_NAME
from cri.network import NetworkError
from cri.server.core import Core
from proto.cri import runtime_pb2 as pb

KUBE_API_VERSION = "0.1.0"  # the constant every runtime answers (cri-api: VersionResponse.version)
CRI_VERSION = "v1"


async def get_version(core: Core, request: pb.VersionRequest) -> pb.VersionResponse:
    """Names and versions."""
    return pb.VersionResponse(
        version=KUBE_API_VERSION,
        runtime_name=RUNTIME_NAME,
        runtime_version=version("nodelet"),
        runtime_api_version=CRI_VERSION,
    )


async def get_status(core: Core, request: pb.StatusRequest) -> pb.StatusResponse:
    """RuntimeReady, and NetworkReady with the reason while there is no usable CNI configuration, or a plugin
    of it says that it cannot connect pods now."""
    network = pb.RuntimeCondition(type="NetworkReady", status=True)
    conflist = None
    try:
        conflist = await core.joined.run(("network-status",), core.network.status)
    except NetworkError as exc:
        network = pb.RuntimeCondition(
            type="NetworkReady", status=False, reason="NetworkPluginNotReady", message=str(exc)
        )
    response = pb.StatusResponse(
        status=pb.RuntimeStatus(conditions=[pb.RuntimeCondition(type="RuntimeReady", status=True), network]),
        features=pb.RuntimeFeatures(supplemental_groups_policy=True),
        runtime_handlers=_handlers(core),
    )
    if request.verbose:
        settings = core.settings
        response.info["config"] = json.dumps({key: str(value) for key, value in vars(settings).items()})
        response.info["cniconfig"] = json.dumps(conflist)
        response.info["imagePulls"] = json.dumps(core.images.pulls())
    return response


def _handlers(core: Core) -> list[pb.RuntimeHandler]:
    """Our own runtime, which is the default, and every external one with what it says it can do."""
    ours = pb.RuntimeHandlerFeatures(recursive_read_only_mounts=True, user_namespaces=not core.userns_missing)
    found = [pb.RuntimeHandler(name="", features=ours)]
    for name, handler in sorted(core.handlers.items()):
        features = pb.RuntimeHandlerFeatures(recursive_read_only_mounts=handler.recursive_readonly)
        found.append(pb.RuntimeHandler(name=name, features=features))
    return found


async def get_runtime_config(core: Core, request: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
    """The cgroup driver (KEP-4033), which says whether cgroup_parent is a path or the name of a slice."""
    driver = pb.SYSTEMD if core.cgroups.driver == "systemd" else pb.CGROUPFS
    return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))


async def update_runtime_config(
    core: Core, request: pb.UpdateRuntimeConfigRequest
) -> pb.UpdateRuntimeConfigResponse:
    """The pod CIDR of the node, accepted and not used.

    containerd renders a CNI configuration from a template with it, where an operator names one. Here that
    configuration is only ever read: nodelet's agent, flannel or another network plugin writes it, and it
    alone knows the interface's MTU and the overlay.
    """
    return pb.UpdateRuntimeConfigResponse()
