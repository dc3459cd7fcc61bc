"""Security context: who a container is and what it may do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from counterparts import GROUPED, NAMED, NUMBERED
from criclient import BUSYBOX, CriClient, refused

from proto.cri import runtime_pb2 as pb

SETHOSTNAME = "hostname changed && hostname"
BLOCK_SETHOSTNAME = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}],
}


def linux(**fields) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


def number(value: int) -> pb.Int64Value:
    return pb.Int64Value(value=value)


async def run(node: CriClient, *, image: str = BUSYBOX, privileged: bool = False, **fields) -> str:
    """A running container with this security context."""
    config = node.sandbox_config()
    config.linux.security_context.privileged = privileged
    secured = linux(privileged=privileged, **fields)
    _, container = await node.launch_with(config, "sleep", "1000", image=image, linux=secured)
    return container


@pytest.mark.parametrize(
    ("image", "fields", "ids"),
    [
        (BUSYBOX, {}, "0:0:0"),
        (BUSYBOX, {"run_as_user": 1001}, "1001:0:0"),
        (BUSYBOX, {"run_as_user": 1001, "run_as_group": 2001}, "1001:2001:2001"),
        (BUSYBOX, {"run_as_username": "mail"}, "8:8:8 50"),
        (BUSYBOX, {"run_as_user": 8, "supplemental_groups": [77]}, "8:8:8 50 77"),
        (
            BUSYBOX,
            {"run_as_user": 8, "supplemental_groups": [77], "supplemental_groups_policy": 1},
            "8:8:8 77",
        ),
        (BUSYBOX, {"supplemental_groups": [1234, 5678]}, "0:0:0 1234 5678"),
        (NUMBERED, {}, "1002:0:0"),
        (NUMBERED, {"run_as_user": 8}, "8:8:8 50"),
        (NAMED, {}, "8:8:8 50"),
        (GROUPED, {}, "8:0:0 50"),
    ],
)
async def test_who_a_container_is(node: CriClient, image: str, fields: dict[str, object], ids: str):
    words = {
        name: number(value) if name in ("run_as_user", "run_as_group") else value
        for name, value in fields.items()
    }
    container = await run(node, image=image, **words)
    uid, gid, groups = ids.split(":")
    uids, gids, all_groups = (await node.inside(container, "id -u; id -g; id -G")).splitlines()
    assert (uids, gids, sorted(all_groups.split())) == (uid, gid, sorted(groups.split()))
    if node.name == "nodelet-cri" or fields.get("supplemental_groups_policy") is not None:
        user = (await node.status(container)).user.linux
        assert (user.uid, user.gid) == (int(uid), int(gid))
        assert sorted(user.supplemental_groups) == sorted(map(int, groups.split()))


async def test_a_group_without_a_user_is_refused(node: CriClient):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    _, words = await refused(node.create(sandbox, config, "id", linux=linux(run_as_group=number(5))))
    assert "user" in words


@pytest.mark.parametrize("readonly", [True, False])
async def test_the_root_is_written_to_unless_it_is_read_only(node: CriClient, readonly: bool):
    container = await run(node, readonly_rootfs=readonly)
    words = await node.inside(container, "echo x >/made; cat /made")
    assert ("Read-only file system" in words) is readonly
    assert words.endswith("x") is not readonly


@pytest.mark.parametrize("forbidden", [True, False])
async def test_no_new_privileges(node: CriClient, forbidden: bool):
    container = await run(node, no_new_privs=forbidden)
    assert await node.inside(container, "grep NoNewPrivs /proc/self/status") == f"NoNewPrivs:\t{forbidden:d}"


@pytest.mark.parametrize(
    ("add", "drop", "has", "lacks"),
    [
        ([], [], {0, 5, 13}, {12, 21}),
        (["NET_ADMIN"], [], {0, 12}, {21}),
        ([], ["CHOWN"], {5}, {0, 12}),
        (["ALL"], [], {0, 12, 21}, set()),
        ([], ["ALL"], set(), set(range(38))),
        (["NET_ADMIN"], ["ALL"], {12}, {0, 5, 21}),
        (["ALL"], ["CHOWN"], {12, 21}, {0}),
    ],
)
async def test_capabilities(node: CriClient, add: list[str], drop: list[str], has: set[int], lacks: set[int]):
    """Numbers are of linux/capability.h: CHOWN 0, KILL 5, NET_ADMIN 12, NET_RAW 13, SYS_ADMIN 21."""
    caps = pb.Capability(add_capabilities=add, drop_capabilities=drop)
    container = await run(node, capabilities=caps)
    lines = (await node.inside(container, "grep Cap /proc/1/status")).splitlines()
    sets = {key: int(value, 16) for key, value in (line.split(":\t") for line in lines)}
    for name in ("CapPrm", "CapEff", "CapBnd"):
        held = {bit for bit in range(64) if sets[name] >> bit & 1}
        assert has <= held
        assert not lacks & held
    assert (sets["CapInh"], sets["CapAmb"]) == (0, 0)


@pytest.mark.parametrize("privileged", [True, False])
async def test_only_a_privileged_container_changes_devices(node: CriClient, privileged: bool):
    container = await run(node, privileged=privileged)
    words = await node.inside(container, "ip link add br-probe type bridge && ip link show br-probe")
    assert ("br-probe:" in words) is privileged
    assert ("not permitted" in words) is not privileged


async def test_masked_paths_cannot_be_read(node: CriClient):
    container = await run(node, masked_paths=["/proc/uptime", "/etc", "/bin/true", "/not/there"])
    assert await node.inside(container, "cat /proc/uptime; ls /etc") == ""
    assert "ermission denied" in await node.inside(container, "exec /bin/true")


async def test_readonly_paths_cannot_be_written_to(node: CriClient):
    container = await run(node, readonly_paths=["/tmp", "/not/there"])
    assert "Read-only file system" in await node.inside(container, "touch /tmp/x")
    assert await node.inside(container, "touch /x && ls /x") == "/x"


@pytest.mark.parametrize(
    ("profile", "mode"),
    [
        (None, 0),
        (pb.SecurityProfile.Unconfined, 0),
        (pb.SecurityProfile.RuntimeDefault, 2),
    ],
)
async def test_a_seccomp_filter_is_there_when_asked_for(node: CriClient, profile: int | None, mode: int):
    seccomp = None if profile is None else pb.SecurityProfile(profile_type=profile)
    container = await run(node, seccomp=seccomp)
    assert await node.inside(container, "grep Seccomp: /proc/self/status") == f"Seccomp:\t{mode}"


@pytest.mark.parametrize(("localhost", "privileged"), [(True, False), (True, True), (False, False)])
async def test_a_profile_of_the_node_blocks_what_it_says(
    node: CriClient, localhost: bool, privileged: bool, tmp_path: Path
):
    """A privileged container is unconfined whatever profile it names."""
    folder = getattr(node, "folder", tmp_path) / "seccomp"
    folder.mkdir(exist_ok=True)
    profile = folder / "no-sethostname.json"
    profile.write_text(json.dumps(BLOCK_SETHOSTNAME))
    seccomp = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
    if localhost:
        seccomp = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(profile))
    caps = pb.Capability(add_capabilities=["SYS_ADMIN"])
    container = await run(node, seccomp=seccomp, capabilities=caps, privileged=privileged)
    blocked = localhost and not privileged
    words = await node.inside(container, SETHOSTNAME)
    assert ("not permitted" in words) is blocked
    assert (words == "changed") is not blocked
