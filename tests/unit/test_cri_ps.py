"""`nodelet-cri ps`: rows out of CRI answers."""

from types import SimpleNamespace

import grpc
import pytest

from cri import ps
from proto.cri import runtime_pb2 as pb


class FakeRuntime:
    """Two pods, one of them without a container."""

    def ListContainers(self, request, timeout):
        failed = pb.Container(
            id="c1",
            pod_sandbox_id="p1",
            metadata=pb.ContainerMetadata(name="web", attempt=2),
            state=pb.CONTAINER_EXITED,
        )
        failed.image.user_specified_image = "nginx\x1b[31m"
        return pb.ListContainersResponse(containers=[failed])

    def ListPodSandbox(self, request, timeout):
        pods = [
            pb.PodSandbox(
                id=key, metadata=pb.PodSandboxMetadata(name=name, namespace="default"), created_at=0
            )
            for key, name in (("p1", "web-n"), ("p2", "empty-n"))
        ]
        return pb.ListPodSandboxResponse(items=pods)

    def PodSandboxStatus(self, request, timeout):
        ip = "10.244.0.2" if request.pod_sandbox_id == "p1" else ""
        return SimpleNamespace(status=SimpleNamespace(network=SimpleNamespace(ip=ip)))

    def ContainerStatus(self, request, timeout):
        status = pb.ContainerStatus(exit_code=3, started_at=1, finished_at=40 * 10**9, log_path="/log/0.log")
        return pb.ContainerStatusResponse(status=status)


def test_rows_and_table():
    rows = ps.rows(FakeRuntime(), pb, now=100.0)
    assert [row[:6] for row in rows] == [
        ("default/empty-n", "-", "-", "ready", "2m", "-"),
        ("default/web-n", "10.244.0.2", "web", "exited(3)", "1m", "2"),
    ]
    header, *lines = ps.table(rows).splitlines()
    assert header.split() == list(ps.HEADER)
    assert lines[1].endswith("/log/0.log")
    assert "\x1b" not in lines[1]


class Refusal(grpc.RpcError):
    """What a stub raises."""

    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code


def refusing(code):
    def call(request, timeout):
        raise Refusal(code)

    return call


def test_what_vanishes_after_the_list_is_left_out(monkeypatch):
    runtime = FakeRuntime()
    monkeypatch.setattr(runtime, "ContainerStatus", refusing(grpc.StatusCode.NOT_FOUND), raising=False)
    assert [row[0] for row in ps.rows(runtime, pb, now=100.0)] == ["default/empty-n"]
    monkeypatch.setattr(runtime, "PodSandboxStatus", refusing(grpc.StatusCode.NOT_FOUND), raising=False)
    assert ps.rows(runtime, pb, now=100.0) == []


def test_any_other_refusal_is_told(monkeypatch):
    runtime = FakeRuntime()
    monkeypatch.setattr(runtime, "ContainerStatus", refusing(grpc.StatusCode.INTERNAL), raising=False)
    with pytest.raises(Refusal):
        ps.rows(runtime, pb, now=100.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (172800, "2d")]
)
def test_age(seconds, text):
    assert ps.age(seconds) == text
