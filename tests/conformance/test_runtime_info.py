"""Version, Status, RuntimeConfig: what a kubelet asks before anything else."""

from __future__ import annotations

import json

from criclient import CriClient

from proto.cri import runtime_pb2 as pb


async def test_the_version_names_runtime_and_api(node: CriClient):
    version = await node.runtime.Version(pb.VersionRequest(version="v1"))
    assert version.version == "0.1.0"
    assert version.runtime_api_version == "v1"
    assert version.runtime_name
    assert version.runtime_version
    if node.name != "external":
        assert version.runtime_name == node.name


async def test_runtime_and_network_are_ready(node: CriClient):
    status = (await node.runtime.Status(pb.StatusRequest())).status
    ready = {item.type: item.status for item in status.conditions}
    assert ready["RuntimeReady"]
    assert ready["NetworkReady"]


async def test_only_the_verbose_status_has_details(node: CriClient):
    assert not (await node.runtime.Status(pb.StatusRequest())).info
    info = (await node.runtime.Status(pb.StatusRequest(verbose=True))).info
    assert json.loads(info["config"])


async def test_features_are_told_per_handler(node: CriClient):
    answer = await node.runtime.Status(pb.StatusRequest())
    assert answer.features.supplemental_groups_policy
    default = next(handler for handler in answer.runtime_handlers if not handler.name)
    assert default.features.recursive_read_only_mounts


async def test_the_cgroup_driver_is_told(node: CriClient):
    config = await node.runtime.RuntimeConfig(pb.RuntimeConfigRequest())
    assert config.linux.cgroup_driver == pb.CGROUPFS


async def test_a_pod_range_may_be_told(node: CriClient):
    network = pb.NetworkConfig(pod_cidr="10.1.2.0/24")
    request = pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=network))
    assert await node.runtime.UpdateRuntimeConfig(request) == pb.UpdateRuntimeConfigResponse()
