"""Who a container is and what it may do, as planned from a request. No kernel, no files but profiles."""

from pathlib import Path

import pytest
from test_cri_plan import IMAGE, PLACE, config, sandbox, secured, spec

from cri.runtime.security import CAPABILITIES
from cri.server.container_plan import check_config, mounts_of, user_of
from cri.server.container_propagation import peer_groups
from cri.server.container_seccomp import read_profile, seccomp_filter
from cri.server.sandbox_plan import sandbox_spec
from host.errors import InputError
from proto.cri import runtime_pb2 as pb


def test_who_runs_it():
    assert user_of(config(), IMAGE).name == "mail"
    user = user_of(secured(run_as_user=pb.Int64Value(value=0), supplemental_groups=[5]), IMAGE)
    assert (user.name, user.uid, user.gid, user.supplementary) == ("", 0, None, (5,))
    assert not user_of(secured(supplemental_groups_policy=pb.Strict), IMAGE).merge_groups


@pytest.mark.parametrize("uid", [-1, 2**31, 2**32, 2**63 - 1])
def test_a_user_id_out_of_range_is_refused(uid):
    with pytest.raises(InputError, match="run_as_user"):
        user_of(secured(run_as_user=pb.Int64Value(value=uid)), IMAGE)
    with pytest.raises(InputError, match="supplemental_groups"):
        user_of(secured(supplemental_groups=[5, uid]), IMAGE)


def test_a_policy_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="supplemental_groups_policy 7"):
        user_of(secured(supplemental_groups_policy=7), IMAGE)


def test_privileged_means_everything():
    made = spec(secured(privileged=True, masked_paths=["/proc/kcore"], readonly_paths=["/proc/sys"]))
    assert made.capabilities == CAPABILITIES
    assert made.all_devices and made.writable_sys
    assert made.masked_paths == made.readonly_paths == ()


def test_capabilities_are_added_and_dropped():
    asked = pb.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"])
    assert spec(secured(capabilities=asked)).capabilities == ("NET_ADMIN",)
    both = pb.Capability(add_capabilities=["ALL", "KILL"], drop_capabilities=["all"])
    assert spec(secured(capabilities=both)).capabilities == ("KILL",)
    assert spec(secured(capabilities=both)).ambient_capabilities == ()


@pytest.mark.parametrize(
    ("pid", "host", "own", "target"),
    [
        (pb.POD, False, False, ""),
        (pb.CONTAINER, False, True, ""),
        (pb.NODE, True, False, ""),
        (pb.TARGET, False, False, "other"),
    ],
)
def test_the_pid_namespace(pid, host, own, target):
    made = spec(secured(namespace_options=pb.NamespaceOption(pid=pid, target_id="other")))
    assert (made.host_pid, made.own_pid, made.target_container) == (host, own, target)


@pytest.mark.parametrize("readonly", [False, True])
def test_the_small_files_are_as_writable_as_the_root(readonly):
    mounts = mounts_of(secured(readonly_rootfs=readonly), PLACE)
    assert {item.target for item in mounts} == {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
    assert {item.readonly for item in mounts} == {readonly}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"recursive_read_only": True}, "needs readonly"),
        ({"recursive_read_only": True, "readonly": True, "propagation": 1}, "PROPAGATION_PRIVATE"),
        ({"recursive_read_only": True, "readonly": True, "propagation": 2}, "PROPAGATION_PRIVATE"),
        ({"propagation": 9}, "propagation 9"),
    ],
)
def test_mount_flags_that_contradict_each_other_are_refused(fields, words):
    made = config(mounts=[pb.Mount(container_path="/x", host_path="/h", **fields)])
    with pytest.raises(InputError, match=words):
        check_config(made, pb.PodSandboxConfig())
        mounts_of(made, PLACE)


def test_a_privileged_container_needs_a_privileged_pod():
    pod = pb.PodSandboxConfig()
    with pytest.raises(InputError, match="not privileged"):
        check_config(secured(privileged=True), pod)
    pod.linux.security_context.privileged = True
    check_config(secured(privileged=True), pod)


MOUNTINFO = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /priv rw - tmpfs none rw
23 21 0:6 / /slave rw master:1 - tmpfs none rw
24 21 0:7 / /both rw shared:7 master:1 - tmpfs none rw
25 21 0:8 / /odd\\040name rw unbindable - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("mount_id", "found"),
    [
        (21, ("/", {"shared"})),
        (22, ("/priv", set())),
        (23, ("/slave", {"master"})),
        (24, ("/both", {"shared", "master"})),
        (25, ("/odd\\040name", set())),
        (2, ("", set())),
    ],
)
def test_peer_groups_of_a_mount(mount_id, found):
    assert peer_groups(MOUNTINFO, mount_id) == found


@pytest.mark.parametrize(
    "name", ["", "../x", "a/../../x", "/etc/passwd", ".", "a//b", "none.json", "link.json", "dir"]
)
def test_a_seccomp_profile_stays_in_its_folder(tmp_path, name):
    (tmp_path / "dir").mkdir()
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    with pytest.raises(InputError):
        read_profile(name, tmp_path)


def test_seccomp_kinds(tmp_path):
    (tmp_path / "mine.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')

    def found(security: dict) -> bytes:
        return seccomp_filter(pb.LinuxContainerSecurityContext(**security), root=tmp_path)

    profile = pb.SecurityProfile
    assert found({}) == found({"seccomp": profile(profile_type=profile.Unconfined)}) == b""
    assert len(found({"seccomp": profile(profile_type=profile.RuntimeDefault)})) % 8 == 0
    local = profile(profile_type=profile.Localhost, localhost_ref=str(tmp_path / "mine.json"))
    assert found({"seccomp": local})
    assert found({"seccomp": local, "privileged": True}) == b""
    assert found({"seccomp_profile_path": "unconfined"}) == b""
    for word in ("runtime/default", "docker/default"):
        assert found({"seccomp_profile_path": word}) == found({"seccomp": profile()})
    assert found({"seccomp_profile_path": "localhost/mine.json"}) == found({"seccomp": local})
    assert found({"seccomp_profile_path": f"localhost/{tmp_path}/mine.json"}) == found({"seccomp": local})
    for wrong in (
        {"seccomp_profile_path": "mine.json"},
        {"seccomp_profile_path": "localhost/"},
        {"seccomp": profile(localhost_ref="mine.json")},
        {"seccomp": profile(profile_type=7)},
    ):
        with pytest.raises(InputError):
            found(wrong)


@pytest.mark.parametrize(
    ("given", "network", "made"),
    [
        ({}, pb.POD, {"port": "0", "ping": "0 2147483647"}),
        ({"port": "1024"}, pb.POD, {"port": "1024", "ping": "0 2147483647"}),
        ({}, pb.NODE, {}),
    ],
)
def test_low_ports_and_ping_are_for_everybody_in_a_pods_own_network(given, network, made):
    names = {"port": "net.ipv4.ip_unprivileged_port_start", "ping": "net.ipv4.ping_group_range"}
    pod = sandbox()
    pod.linux.sysctls.update({names[word]: value for word, value in given.items()})
    pod.linux.security_context.namespace_options.network = network
    found = sandbox_spec(pod, sandbox_id="ab", netns_dir=Path("/n"), node_name="node").sysctls
    assert found == {names[word]: value for word, value in made.items()}
