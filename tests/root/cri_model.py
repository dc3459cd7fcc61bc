"""nodelet-cri against a model of thirty lines: any order of calls and crashes must leave what the model says.

The model knows the states of CRI and nothing else; what it expects of each call is written in the rule of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import crileaks
from crinode import BUSYBOX, CriNode
from grpc import StatusCode
from grpc.aio import AioRpcError
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from test_cri_recovery import pid_of, supervisor_of

from proto.cri import runtime_pb2 as pb

PODS = st.sampled_from("ab")
CONTAINERS = st.sampled_from("xy")
READY, GONE = pb.SANDBOX_READY, pb.SANDBOX_NOTREADY
CREATED, RUNNING, EXITED = pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED


@dataclass
class ModelContainer:
    id: str
    state: int = CREATED


@dataclass
class ModelPod:
    id: str
    config: pb.PodSandboxConfig
    state: int = READY
    containers: dict[str, ModelContainer] = field(default_factory=dict)

    def end(self) -> None:
        """Its namespaces are gone, and so is whatever was in them."""
        self.state = GONE
        for container in self.containers.values():
            container.state = EXITED


class CriMachine(RuleBasedStateMachine):
    """One life of a node, beginning without pods. `node`: the daemon, connected from no other event loop."""

    node: CriNode

    def __init__(self) -> None:
        super().__init__()
        self.pods: dict[str, ModelPod] = {}
        self.runner = asyncio.Runner()
        self.do(self.node.connect())
        self.before = self.node.picture().without_descriptors()
        self.configs = {name: self.node.sandbox_config(name) for name in "ab"}
        self.configs["b"].linux.security_context.namespace_options.network = pb.NODE

    def teardown(self) -> None:
        self.do(self.node.clean())
        left = self.do(self.left())
        self.do(self.node.disconnect())
        self.runner.close()
        assert not left, left

    async def left(self) -> list[str]:
        """What is left once what goes in the background has gone."""
        found = crileaks.difference(self.before, self.node.picture().without_descriptors())
        for _ in range(100):
            if not found:
                break
            await asyncio.sleep(0.1)
            found = crileaks.difference(self.before, self.node.picture().without_descriptors())
        return found

    def do(self, call: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await asyncio.wait_for(call, 30)

        return self.runner.run(wait())

    def ask(self, name: str, **fields: Any) -> Any:
        """The answer of a runtime call, or the code it was refused with."""
        try:
            return self.do(getattr(self.node.runtime, name)(getattr(pb, f"{name}Request")(**fields)))
        except AioRpcError as exc:
            return exc.code()

    def container(self, pod: str, name: str) -> ModelContainer | None:
        return self.pods[pod].containers.get(name) if pod in self.pods else None

    @rule(pod=PODS)
    def run_pod(self, pod: str) -> None:
        answer = self.ask("RunPodSandbox", config=self.configs[pod])
        known = self.pods.get(pod)
        if known is None:
            self.pods[pod] = ModelPod(answer.pod_sandbox_id, self.configs[pod])
        elif known.state == READY:
            assert answer.pod_sandbox_id == known.id
        else:
            assert answer is StatusCode.ALREADY_EXISTS

    @rule(pod=PODS)
    def stop_pod(self, pod: str) -> None:
        known = self.pods.get(pod)
        answer = self.ask("StopPodSandbox", pod_sandbox_id=known.id if known else "none")
        assert isinstance(answer, pb.StopPodSandboxResponse)
        if known:
            known.end()

    @rule(pod=PODS)
    def remove_pod(self, pod: str) -> None:
        known = self.pods.pop(pod, None)
        answer = self.ask("RemovePodSandbox", pod_sandbox_id=known.id if known else "none")
        assert isinstance(answer, pb.RemovePodSandboxResponse)

    @rule(pod=PODS, name=CONTAINERS)
    def create_container(self, pod: str, name: str) -> None:
        known, same = self.pods.get(pod), self.container(pod, name)
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=BUSYBOX),
            command=["sleep", "1000"],
        )
        sandbox = known.id if known else "none"
        answer = self.ask("CreateContainer", pod_sandbox_id=sandbox, config=config)
        if known is None:
            assert answer is StatusCode.NOT_FOUND
        elif same is not None and same.state == EXITED:
            assert answer is StatusCode.ALREADY_EXISTS
        elif same is not None:
            assert answer.container_id == same.id
        elif known.state == GONE:
            assert answer is StatusCode.FAILED_PRECONDITION
        else:
            known.containers[name] = ModelContainer(answer.container_id)

    @rule(pod=PODS, name=CONTAINERS)
    def start_container(self, pod: str, name: str) -> None:
        known = self.container(pod, name)
        answer = self.ask("StartContainer", container_id=known.id if known else "none")
        if known is None:
            assert answer is StatusCode.NOT_FOUND
        elif known.state == CREATED:
            assert isinstance(answer, pb.StartContainerResponse), answer
            known.state = RUNNING
        else:
            assert answer in (StatusCode.FAILED_PRECONDITION, StatusCode.UNKNOWN)

    @rule(pod=PODS, name=CONTAINERS, grace=st.sampled_from([0, 1]))
    def stop_container(self, pod: str, name: str, grace: int) -> None:
        known = self.container(pod, name)
        answer = self.ask("StopContainer", container_id=known.id if known else "none", timeout=grace)
        assert isinstance(answer, pb.StopContainerResponse)
        if known and known.state == RUNNING:
            known.state = EXITED

    @rule(pod=PODS, name=CONTAINERS)
    def remove_container(self, pod: str, name: str) -> None:
        known = self.pods[pod].containers.pop(name, None) if pod in self.pods else None
        answer = self.ask("RemoveContainer", container_id=known.id if known else "none")
        assert isinstance(answer, pb.RemoveContainerResponse)

    @rule(pod=PODS, name=CONTAINERS)
    def exec_sync(self, pod: str, name: str) -> None:
        known = self.container(pod, name)
        answer = self.ask("ExecSync", container_id=known.id if known else "none", cmd=["/bin/echo", "hi"])
        if known is None:
            assert answer is StatusCode.NOT_FOUND
        elif known.state == RUNNING:
            assert (answer.stdout, answer.exit_code) == (b"hi\n", 0)
        else:
            assert answer is StatusCode.FAILED_PRECONDITION

    @rule(how=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def restart_daemon(self, how: signal.Signals) -> None:
        self.do(self.node.restart(how))

    @rule(pod=PODS, name=CONTAINERS)
    def process_dies(self, pod: str, name: str) -> None:
        known = self.container(pod, name)
        if known and known.state == RUNNING:
            os.kill(self.do(pid_of(self.node, known.id)), signal.SIGKILL)
            assert self.do(self.node.wait_exit(known.id)).exit_code == 137
            known.state = EXITED

    @rule(pod=PODS, restart=st.booleans())
    def supervisor_dies(self, pod: str, restart: bool) -> None:
        known = self.pods.get(pod)
        if known and known.state == READY:
            os.kill(self.do(supervisor_of(self.node, known.id)), signal.SIGKILL)
            if restart:
                self.do(self.node.restart())
            self.do(self.until_lost(known.id))
            known.end()

    async def until_lost(self, sandbox: str) -> None:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
        while (await self.node.runtime.PodSandboxStatus(request)).status.state == READY:
            await asyncio.sleep(0.01)

    @invariant()
    def lists_are_the_model(self) -> None:
        pods = self.ask("ListPodSandbox").items
        assert {item.id: item.state for item in pods} == {pod.id: pod.state for pod in self.pods.values()}
        listed = {item.id: item.state for item in self.ask("ListContainers").containers}
        known = [container for pod in self.pods.values() for container in pod.containers.values()]
        assert listed == {container.id: container.state for container in known}
        for container in known:
            answer = self.ask("ContainerStatus", container_id=container.id)
            assert answer.status.state == container.state
