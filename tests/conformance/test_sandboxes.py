"""Pod sandboxes: life, status, lists, idempotence, sysctls."""

from __future__ import annotations

import grpc
from criclient import CriClient, refused

from proto.cri import runtime_pb2 as pb


async def status_of(node: CriClient, sandbox: str) -> pb.PodSandboxStatus:
    asked = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    return (await node.runtime.PodSandboxStatus(asked)).status


async def listed(node: CriClient, **words) -> list[str]:
    request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**words))
    return [item.id for item in (await node.runtime.ListPodSandbox(request)).items]


async def test_a_sandbox_is_ready_then_not_then_gone(node: CriClient):
    config = node.sandbox_config(annotations={"note": "kept as it is"})
    sandbox = await node.run_pod(config)
    status = await status_of(node, sandbox)
    assert (status.id, status.state) == (sandbox, pb.SANDBOX_READY)
    assert status.metadata == config.metadata
    assert status.labels == config.labels
    assert status.annotations == config.annotations
    assert status.created_at > 0
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    assert (await status_of(node, sandbox)).state == pb.SANDBOX_NOTREADY
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert await listed(node, id=sandbox) == []
    code, _ = await refused(status_of(node, sandbox))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_stop_and_remove_may_be_repeated(node: CriClient):
    """CRI: "must not return an error if the sandbox has already been removed"."""
    sandbox = await node.run_pod(node.sandbox_config())
    for _ in range(2):
        await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    for _ in range(2):
        await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))


async def test_removal_ends_what_runs(node: CriClient):
    sandbox, container, _ = await node.launch("sleep", "1000")
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert await listed(node, id=sandbox) == []
    code, _ = await refused(node.status(container))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_stopping_a_pod_stops_its_containers(node: CriClient):
    sandbox, container, _ = await node.launch("sleep", "1000")
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    assert (await node.status(container)).state == pb.CONTAINER_EXITED


async def test_a_stopped_pod_takes_no_container(node: CriClient, beyond_cri: None):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    code, words = await refused(node.create(sandbox, config, "sleep", "1"))
    assert (code, "not ready" in words) == (grpc.StatusCode.FAILED_PRECONDITION, True)


async def test_lists_are_filtered_by_all_that_is_given(node: CriClient):
    one, two = node.sandbox_config("one"), node.sandbox_config("two")
    first, second = await node.run_pod(one), await node.run_pod(two)
    assert set(await listed(node, label_selector={"of": "nodelet-tests"})) == {first, second}
    assert await listed(node, label_selector={"app": "one"}) == [first]
    assert await listed(node, label_selector={"app": "one", "of": "nobody"}) == []
    assert await listed(node, id=second) == [second]
    assert await listed(node, id=second, label_selector={"app": "one"}) == []
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=first))
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    ended = pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)
    ours = {"of": "nodelet-tests"}
    assert await listed(node, state=ready, label_selector=ours) == [second]
    assert await listed(node, state=ended, label_selector=ours) == [first]


async def test_a_stream_gives_what_the_list_gives(node: CriClient, beyond_cri: None):
    sandbox, container, _ = await node.launch("sleep", "1000")
    pods = [item async for item in node.runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest())]
    assert [item.id for answer in pods for item in answer.pod_sandboxes] == [sandbox]
    cons = [item async for item in node.runtime.StreamContainers(pb.StreamContainersRequest())]
    assert [item.id for answer in cons for item in answer.containers] == [container]


async def test_the_same_request_gives_the_same_sandbox(node: CriClient, beyond_cri: None):
    """A kubelet whose answer was lost asks again and must not get a second pod."""
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    assert await node.run_pod(config) == sandbox
    config.metadata.attempt += 1
    assert await node.run_pod(config) != sandbox


async def test_safe_sysctls_are_set(node: CriClient):
    config = node.sandbox_config()
    config.linux.sysctls.update({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 65000"})
    _, container = await node.launch_with(config, "sleep", "1000")
    assert await node.inside(container, "cat /proc/sys/kernel/shm_rmid_forced") == "1"
    words = await node.inside(container, "cat /proc/sys/net/ipv4/ip_local_port_range")
    assert words.split() == ["1024", "65000"]


async def test_a_sysctl_of_the_whole_machine_is_refused(node: CriClient):
    config = node.sandbox_config()
    config.linux.sysctls["kernel.core_pattern"] = "/tmp/core"
    await refused(node.run_pod(config))
    assert await listed(node, label_selector={"of": "nodelet-tests"}) == []
