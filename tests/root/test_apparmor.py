"""AppArmor on a kernel that has it: a container is confined by the profile it names, or by the default."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import grpc
import pytest
from crinode import CriNode

from cri.server.container_lsm import DEFAULT_PROFILE
from host.lsm import security_modules
from proto.cri import runtime_pb2 as pb

pytestmark = pytest.mark.skipif(
    not security_modules().apparmor or shutil.which("apparmor_parser") is None,
    reason="needs a kernel with AppArmor, and apparmor_parser (Debian package apparmor)",
)
PROFILE = "nodelet-test-no-secrets"
TEXT = f"profile {PROFILE} flags=(attach_disconnected) {{ file, deny /tmp/secret* rw, }}\n"
MINE = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=PROFILE)
CURRENT = "cat /proc/self/attr/current"


@pytest.fixture
def profile() -> Iterator[None]:
    """The profile is in the kernel as long as the test runs."""
    subprocess.run(["apparmor_parser", "-Kr"], input=TEXT, text=True, check=True)
    yield
    subprocess.run(["apparmor_parser", "-R"], input=TEXT, text=True, check=True)


async def started(node: CriNode, profile: pb.SecurityProfile | None = None) -> str:
    """A container that sleeps under this profile."""
    security = pb.LinuxContainerSecurityContext(apparmor=profile)
    linux = pb.LinuxContainerConfig(security_context=security)
    _, container, _ = await node.launch("sleep", "1000", linux=linux)
    return container


async def test_a_profile_of_the_node_denies_what_it_says(node: CriNode, profile: None) -> None:
    free = await started(node, pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined))
    confined = await started(node, MINE)
    assert (await node.exec(free, "sh", "-c", "echo x >/tmp/secret && cat /tmp/secret")).stdout == b"x\n"
    assert (await node.exec(free, "sh", "-c", CURRENT)).stdout.strip(b"\0\n") == b"unconfined"
    answer = await node.exec(confined, "sh", "-c", "echo x >/tmp/other && echo y >/tmp/secret")
    assert answer.exit_code != 0
    assert b"can't create /tmp/secret: Permission denied" in answer.stderr
    current = (await node.exec(confined, "sh", "-c", CURRENT)).stdout
    assert current.strip(b"\0\n") == f"{PROFILE} (enforce)".encode()


@pytest.mark.parametrize("said", [None, pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)])
async def test_the_default_profile_is_loaded_and_holds(
    node: CriNode, said: pb.SecurityProfile | None
) -> None:
    container = await started(node, said)
    current = (await node.exec(container, "sh", "-c", CURRENT)).stdout
    assert current.strip(b"\0\n") == f"{DEFAULT_PROFILE} (enforce)".encode()


async def test_a_profile_that_is_not_loaded_is_named(node: CriNode) -> None:
    other = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="nodelet-no-such")
    with pytest.raises(grpc.aio.AioRpcError, match="'nodelet-no-such' is not loaded") as caught:
        await started(node, other)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
