"""What a container's process is and may do, whatever pod and image say; the table is in test_cve_entering."""

from __future__ import annotations

import asyncio
import errno
import platform
from pathlib import Path
from typing import Any

import grpc
import pytest
import runtime_kit
import security_kit
from crinode import CriNode, base_files
from machinecode import X32, Call, probe, results
from runtime_kit import Lab, user
from security_kit import CORE_PATTERN, PRIVILEGES, refused, status

from cri.runtime import seccomp
from cri.runtime.security import CAPABILITIES, DEFAULT_CAPABILITIES, capability_mask
from cri.runtime.spec import User
from deploy.labkit.images import build_image
from proto.cri import runtime_pb2 as pb

lab, pod = runtime_kit.lab, runtime_kit.pod
unchanged_host = security_kit.unchanged_host
FILTER = seccomp.compile_default(capabilities=DEFAULT_CAPABILITIES)
NET_RAW = capability_mask(["NET_RAW"])
PROFILES: dict[str, dict[str, Any]] = {
    "default": {},
    "user": {"user": user(uid=1000)},
    "none": {"capabilities": ()},
    "locked": {"no_new_privileges": True, "seccomp": FILTER},
    "filtered": {"seccomp": FILTER, "user": user(name="bob")},
    "privileged": {"capabilities": CAPABILITIES, "all_devices": True, "writable_sys": True},
    "ambient": {"user": user(uid=1000), "ambient_capabilities": ("NET_RAW",)},
}


class TestCapabilities:
    @pytest.mark.parametrize("profile", PROFILES)
    async def test_nothing_is_inherited_that_was_not_asked_for(self, pod: Lab, profile: str) -> None:
        spec = await pod.start("sleep", "1000", **PROFILES[profile])
        pid = pod.runtime.container_pid("pod", spec.id)
        first = status(Path(f"/proc/{pid}/status").read_text().splitlines())
        done = await pod.runtime.exec_sync("pod", spec.id, ("cat", "/proc/self/status"), timeout=60)
        second = status(done.stdout.decode().splitlines())
        wanted = f"{NET_RAW if profile == 'ambient' else 0:016x}"
        for found in (first, second):
            assert (found["CapInh"], found["CapAmb"]) == (wanted, wanted)
        assert {name: second[name] for name in PRIVILEGES} == {name: first[name] for name in PRIVILEGES}


class TestSysctls:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
            ("kernel.shm_rmid_forced", "1,kernel.core_pattern=|/evil"),
            ("net.ipv4.ip_unprivileged_port_start", "1\nkernel.core_pattern=|/evil"),
            ("kernel.core_pattern", "|/evil"),
            ("net/../kernel.core_pattern", "|/evil"),
            ("kernel.shm_rmid_forced/../core_pattern", "|/evil"),
            ("vm.overcommit_memory", "1"),
        ],
    )
    async def test_of_the_node_and_two_in_one_are_refused(self, node: CriNode, name: str, value: str) -> None:
        config = node.sandbox_config()
        config.linux.sysctls[name] = value
        with pytest.raises(grpc.aio.AioRpcError, match="sysctl") as caught:
            await node.run_pod(config)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not (await node.runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items
        assert "evil" not in CORE_PATTERN.read_text()

    @pytest.mark.parametrize("field", ["network", "ipc"])
    async def test_of_a_namespace_that_is_the_nodes_are_refused(self, node: CriNode, field: str) -> None:
        config = node.sandbox_config()
        setattr(config.linux.security_context.namespace_options, field, pb.NODE)
        name = "net.ipv4.ip_forward" if field == "network" else "kernel.shm_rmid_forced"
        config.linux.sysctls[name] = "1"
        with pytest.raises(grpc.aio.AioRpcError, match="node's own namespace"):
            await node.run_pod(config)


@pytest.mark.parametrize(
    "name",
    ["", "../x.json", "a/../../x", "/etc/passwd", "missing.json", "bad.json", "empty.json", "what.json"],
)
async def test_localhost_is_never_unconfined(node: CriNode, name: str) -> None:
    folder = node.folder / "seccomp"
    (folder / "bad.json").write_text("{")
    (folder / "empty.json").write_text("")
    (folder / "what.json").write_text('{"defaultAction": "SCMP_ACT_PLEASE"}')
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    linux = pb.LinuxContainerConfig()
    linux.security_context.seccomp.profile_type = pb.SecurityProfile.Localhost
    linux.security_context.seccomp.localhost_ref = name
    with pytest.raises(grpc.aio.AioRpcError, match="seccomp") as caught:
        await node.create(sandbox, config, "true", linux=linux)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not (await node.runtime.ListContainers(pb.ListContainersRequest())).containers


async def probed(pod: Lab, *calls: Call, **fields: Any) -> list[int]:
    """What the calls answer in a container with the default filter."""
    (pod.image / "bin/probe").write_bytes(probe(*calls))
    (pod.image / "bin/probe").chmod(0o755)
    spec = await pod.start("sleep", "1000", **{"seccomp": FILTER, **fields})
    done = await pod.runtime.exec_sync("pod", spec.id, ("/bin/probe",), timeout=60)
    assert done.code == 0
    return results(done.stdout)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code is x86-64's")
class TestFilter:
    """Numbers are those of asm/unistd_64.h, unistd_32.h and unistd_x32.h."""

    async def test_families_of_sockets(self, pod: Lab) -> None:
        """The kernel uses 32 bits of the argument: what is above must not hide a family that is refused."""
        refused_ones = [38, 40, (1 << 32) + 40, (1 << 63) + 38, (7 << 32) + 40]
        allowed = [1, 2, 10, 16, 17, (1 << 32) + 2]
        kinds = {16: 3, 17: 3}
        calls = [Call(41, (family, kinds.get(family & 0xFFFF, 1), 0)) for family in (*refused_ones, *allowed)]
        found = await probed(pod, *calls)
        assert found[: len(refused_ones)] == [-errno.EPERM] * len(refused_ones)
        assert all(value >= 0 for value in found[len(refused_ones) :]), found

    async def test_the_32_bit_gate(self, pod: Lab) -> None:
        calls = (
            Call(20, gate="i386"),  # getpid
            Call(359, (2, 1, 0), gate="i386"),  # socket, of the internet
            Call(359, (40, 1, 0), gate="i386"),  # socket, of the hypervisor
            Call(102, (1, 0), gate="i386"),  # socketcall: its arguments are out of a filter's sight
            Call(21, (0, 0, 0, 0, 0), gate="i386"),  # mount
            Call(310, (0x10000000,), gate="i386"),  # unshare a user namespace
        )
        found = await probed(pod, *calls)
        if found[0] == -errno.ENOSYS:
            pytest.skip("kernel has no CONFIG_IA32_EMULATION")
        assert found[0] > 0 and found[1] > 0
        assert found[2:] == [-errno.EPERM, -errno.ENOSYS, -errno.EPERM, -errno.EPERM]

    async def test_x32_calls(self, pod: Lab) -> None:
        """Refused by the filter (EPERM) also where the kernel has no x32 and would say ENOSYS itself."""
        calls = (Call(41 | X32, (40, 1, 0)), Call(165 | X32), Call(272 | X32, (0x10000000,)), Call(101 | X32))
        allowed_without = await probed(pod, *calls, seccomp=b"")
        found = await probed(pod, *calls)
        assert found[:3] == [-errno.EPERM] * 3
        assert found[:3] != allowed_without[:3]

    async def test_64_bit_calls(self, pod: Lab) -> None:
        flags = [0x10000000 | 17, 0x00020000 | 17, 0x40000000 | 17, 0x02000000 | 17]
        calls = [Call(56, (flag, 0, 0, 0, 0)) for flag in flags]  # clone with a new namespace
        calls += [Call(435, (0, 0))]  # clone3
        calls += [Call(number) for number in (165, 166, 272, 308, 321, 323, 425, 248, 250, 175, 304)]
        calls += [Call(135, (0x40000,)), Call(135, (0,))]  # personality: no random addresses; plain Linux
        found = await probed(pod, *calls)
        assert found[:4] == [-errno.EPERM] * 4
        assert found[4] == -errno.ENOSYS
        assert found[5:-1] == [-errno.EPERM] * 12
        assert found[-1] == 0


class TestUsers:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("2147483648", "out of range"),
            ("4294967296", "out of range"),
            ("18446744073709551616", "out of range"),
            ("0:4294967296", "out of range"),
            ("+0", "unable to find user"),
            ("-1", "unable to find user"),
            ("0x0", "unable to find user"),
        ],
    )
    async def test_numbers_out_of_range_and_words_like_numbers(self, pod: Lab, name: str, words: str) -> None:
        assert words in await refused(pod, "true", user=User(name=name))

    async def test_a_number_is_never_looked_up_as_a_name(self, pod: Lab) -> None:
        passwd = pod.image / "etc/passwd"
        passwd.write_text("1000000000:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n00:x:5:5::/:/bin/sh\n")
        assert await pod.sh("id -u; id -g", user=User(name="1000000000")) == ["1000000000", "0"]
        assert "out of range" in await refused(pod, "true", user=User(name="4294967296"))
        assert await pod.sh("id -u", user=User(name="00")) == ["0"]
        assert "runAsNonRoot" in await refused(pod, "true", user=User(name="00", require_nonroot=True))

    async def test_the_kubelet_is_told_the_number(self, node: CriNode) -> None:
        """Its runAsNonRoot looks at ImageStatus: a spelling of 0 must be the number 0 there."""
        for name, uid in (("00", 0), ("8", 8), ("mail", None)):
            image = await pushed(node, f"user-{name}", user=name)
            found = (await node.images.ImageStatus(pb.ImageStatusRequest(image=image))).image
            assert (found.uid.value if found.HasField("uid") else None) == uid
            assert found.username == ("" if uid is not None else name)


async def pushed(node: CriNode, name: str, **fields: Any) -> pb.ImageSpec:
    """An image of busybox with another configuration, pulled."""
    build_image(node.folder / "registry", f"registry.test/{name}", tags=("1",), files=base_files(), **fields)
    image = pb.ImageSpec(image=f"registry.test/{name}:1")
    await node.images.PullImage(pb.PullImageRequest(image=image))
    return image


async def output(
    node: CriNode, sandbox: str, config: pb.PodSandboxConfig, *command: str, **fields: Any
) -> list[str]:
    """What a container prints until it ends."""
    container = await node.create(sandbox, config, *command, **fields)
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    await node.wait_exit(container)
    return node.container_log(config, fields.get("name", "main"))


async def test_the_same_user_after_every_restart(node: CriNode) -> None:
    image = await pushed(node, "nonroot", user="mail")
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    for attempt in range(4):
        name = f"try{attempt}"
        lines = await output(node, sandbox, config, "id", "-u", image=image.image, name=name, attempt=attempt)
        assert lines == ["8"]
        await node.restart()


@pytest.mark.parametrize(
    ("fields", "groups"),
    [
        ({}, {0}),
        ({"run_as_user": 1000}, {0}),
        ({"run_as_user": 1000, "run_as_group": 2000}, {2000}),
        ({"run_as_username": "mail"}, {8, 50}),
        ({"run_as_user": 8}, {8, 50}),
        ({"run_as_user": 8, "supplemental_groups": [7]}, {8, 50, 7}),
        ({"run_as_user": 8, "supplemental_groups": [7], "supplemental_groups_policy": pb.Strict}, {8, 7}),
        ({"run_as_user": 8, "run_as_group": 9, "supplemental_groups": [7, 7]}, {9, 50, 7}),
        ({"supplemental_groups": [1234, 5678]}, {0, 1234, 5678}),
    ],
)
async def test_groups(node: CriNode, fields: dict[str, Any], groups: set[int]) -> None:
    """As critest's matrix: primary, the image's own unless Strict, the pod's; of container and exec."""
    numbers = {
        name: pb.Int64Value(value=fields[name]) for name in ("run_as_user", "run_as_group") if name in fields
    }
    linux = pb.LinuxContainerConfig(
        security_context=pb.LinuxContainerSecurityContext(**{**fields, **numbers})
    )
    _, container, config = await node.launch("sh", "-c", "id -G; exec sleep 1000", linux=linux)
    done = await node.exec(container, "id", "-G")
    assert set(done.stdout.split()) == {b"%d" % number for number in groups}
    while not (lines := node.container_log(config)):
        await asyncio.sleep(0.02)
    assert {int(word) for word in lines[0].split()} == groups


HOSTILE = {
    "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
    "io.kubernetes.cri-o.UnifiedCgroup.main": "memory.max=max;pids.max=max",
    "io.kubernetes.cri-o.userns-mode": "auto",
    "io.kubernetes.cri-o.Devices": "/dev/kmsg",
    "cpu-quota.crio.io": "disable",
    "org.systemd.property.MemoryMax": "18446744073709551615",
    "run.oci.hooks.stdout": "/evil",
    "run.oci.handler": "krun",
    "run.oci.keep_original_groups": "1",
    "io.katacontainers.config.hypervisor.path": "/bin/sh",
    "io.containerd.cri.privileged": "true",
    "io.podman.annotations.privileged": "TRUE",
    "io.podman.annotations.seccomp": "unconfined",
    "cdi.k8s.io/evil": "vendor.com/class=all",
    "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
    "container.seccomp.security.alpha.kubernetes.io/main": "unconfined",
    "container.apparmor.security.beta.kubernetes.io/main": "unconfined",
    "blockio.resources.beta.kubernetes.io/pod": "fast",
    "rdt.resources.beta.kubernetes.io/pod": "all",
    "devices.gvisor.dev": "/dev/mem",
    "x" * 5000: "\n`reboot`$(reboot)",
}


async def test_annotations_and_labels_change_nothing(node: CriNode) -> None:
    """Of pod, container and image: privileges and limits are those of a pod that has none."""
    image = await pushed(node, "labels", labels=HOSTILE, cmd=["sleep", "1000"])

    async def found(words: dict[str, str], image_name: str) -> dict[str, Any]:
        config = node.sandbox_config(annotations=words, labels=words)
        linux = pb.LinuxContainerConfig()
        linux.resources.memory_limit_in_bytes = 64 << 20
        linux.resources.cpu_shares = 256
        linux.security_context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
        more = {"image": image_name, "annotations": words, "labels": words, "linux": linux}
        _, container = await node.launch_with(config, "sleep", "1000", **more)
        text = (await node.exec(container, "cat", "/proc/self/status")).stdout.decode()
        mounts = (await node.exec(container, "cat", "/proc/self/mounts")).stdout.decode()
        path = f"{config.linux.cgroup_parent}/{container}"
        facts = {name: status(text.splitlines())[name] for name in PRIVILEGES}
        facts["devices"] = (await node.exec(container, "ls", "/dev")).stdout
        facts["mounts"] = sorted(line.split()[1] for line in mounts.splitlines())
        return facts | limits(path)

    plain = await found({}, image_name="registry.test/busybox:1")
    assert plain["Seccomp"] == "2"
    assert await found(HOSTILE, image_name=image.image) == plain


def limits(path: str) -> dict[str, str]:
    """What a cgroup's files say of memory, processor, processes and devices, in every hierarchy."""
    names = ("memory.limit_in_bytes", "memory.max", "cpu.shares", "cpu.weight", "pids.max", "devices.list")
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    files = [root / path.strip("/") / name for root in roots for name in names]
    return {file.name: file.read_text() for file in files if file.exists()}


class TestPlacement:
    """Every process of a container is below its pod's cgroup, in every hierarchy that we use."""

    @pytest.mark.parametrize(
        ("network", "pid", "ipc"),
        [
            (pb.POD, pb.CONTAINER, pb.POD),
            (pb.POD, pb.POD, pb.POD),
            (pb.NODE, pb.NODE, pb.NODE),
            (pb.NODE, pb.CONTAINER, pb.POD),
        ],
    )
    async def test_of_a_container_and_an_exec(self, node: CriNode, network: int, pid: int, ipc: int) -> None:
        config = node.sandbox_config()
        options = pb.NamespaceOption(network=network, pid=pid, ipc=ipc)
        config.linux.security_context.namespace_options.CopyFrom(options)
        linux = pb.LinuxContainerConfig()
        linux.security_context.namespace_options.CopyFrom(options)
        _, container = await node.launch_with(config, "sleep", "1000", linux=linux)
        path = f"{config.linux.cgroup_parent}/{container}"
        running = asyncio.ensure_future(node.exec(container, "sleep", "2"))
        while len(members := pids(path)) < 2 and not running.done():
            await asyncio.sleep(0.02)
        assert len(members) == 2
        for member in members:
            lines = Path(f"/proc/{member}/cgroup").read_text().splitlines()
            outside = [line for line in lines if not f"{line}/".split(":")[2].startswith(f"{path}/")]
            assert [line for line in outside if line.split(":")[1] in USED] == []
        await running


USED = {"", "memory", "cpu", "cpu,cpuacct", "cpuacct,cpu", "pids", "devices", "cpuset", "hugetlb"}
"""Controllers of the hierarchies that hold containers; the empty name is cgroup2."""


def pids(path: str) -> list[int]:
    """The members of a cgroup and those below that are programs of the container already."""
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    folder = next(name for root in roots if (name := root / path.strip("/")).exists())
    found = [int(word) for file in folder.rglob("cgroup.procs") for word in file.read_text().split()]
    return [pid for pid in found if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep")]


async def test_the_devices_of_a_container_are_those_it_asked_for(node: CriNode) -> None:
    """Its cgroup says so (v1); a node made by hand is not enough."""
    script = "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg"
    device = pb.Device(host_path="/dev/kmsg", container_path="/dev/mine", permissions="r")
    _, container, config = await node.launch("sleep", "1000", devices=[device])
    found = limits(f"{config.linux.cgroup_parent}/{container}")
    if "devices.list" not in found:
        pytest.skip("kernel has no v1 devices controller mounted")
    assert "c 1:11 rm\n" in found["devices.list"] or "c 1:11 r\n" in found["devices.list"]
    assert "a *:* rwm" not in found["devices.list"]
    _, other, _ = await node.launch("sleep", "1000")
    done = await node.exec(other, "sh", "-c", script)
    assert (done.exit_code, b"not permitted" in done.stderr) == (1, True)
