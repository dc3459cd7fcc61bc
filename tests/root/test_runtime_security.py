"""What a container must not be able to do: identity, privileges, filters, and hostile images."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
from pathlib import Path

import pytest
import runtime_kit
from runtime_kit import Lab, user
from security_kit import refused, status

from cri.runtime import seccomp
from cri.runtime.launch import sealed_copy
from cri.runtime.security import CAPABILITIES, DEFAULT_CAPABILITIES, capabilities, capability_mask
from cri.runtime.spec import User
from host.lsm import SecurityModules, security_modules

DEFAULT_FILTER = seccomp.compile_default(capabilities=DEFAULT_CAPABILITIES)
lab, pod = runtime_kit.lab, runtime_kit.pod


class TestPrivileges:
    async def test_capabilities_of_root(self, pod: Lab) -> None:
        found = status(await pod.sh("cat /proc/self/status"))
        mask = f"{capability_mask(DEFAULT_CAPABILITIES):016x}"
        assert [found[name] for name in ("CapPrm", "CapEff", "CapBnd")] == [mask] * 3
        assert [found[name] for name in ("CapInh", "CapAmb")] == ["0" * 16] * 2
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("0", "0")

    async def test_capabilities_of_a_user(self, pod: Lab) -> None:
        found = status(await pod.sh("cat /proc/self/status", user=user(uid=1000)))
        assert [found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == ["0" * 16] * 4
        assert found["CapBnd"] == f"{capability_mask(DEFAULT_CAPABILITIES):016x}"

    async def test_ambient_capabilities(self, pod: Lab) -> None:
        fields = {"user": user(uid=1000), "ambient_capabilities": ("NET_RAW",)}
        found = status(await pod.sh("cat /proc/self/status", **fields))
        assert found["CapAmb"] == found["CapEff"] == f"{1 << 13:016x}"

    async def test_none_and_exec_has_the_same(self, pod: Lab) -> None:
        fields = {"capabilities": (), "no_new_privileges": True, "seccomp": DEFAULT_FILTER}
        spec = await pod.start("sleep", "1000", **fields)
        done = await pod.runtime.exec_sync("pod", spec.id, ("cat", "/proc/self/status"), timeout=60)
        found = status(done.stdout.decode().splitlines())
        assert [found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 5
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")

    @pytest.mark.parametrize("locked", [False, True])
    async def test_default_filter(self, pod: Lab, locked: bool) -> None:
        fields = {"seccomp": DEFAULT_FILTER, "no_new_privileges": locked}
        script = "grep Seccomp: /proc/self/status; unshare -U true 2>&1; unshare -n true 2>&1; echo works"
        lines = await pod.sh(script, **fields)
        assert lines[0] == "Seccomp:\t2"
        assert [line.endswith("Operation not permitted") for line in lines[1:3]] == [True, True]
        assert lines[3] == "works"

    async def test_own_profile(self, pod: Lab) -> None:
        profile = b"""{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
            [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"""
        program = seccomp.compile_profile(profile)
        lines = await pod.sh("mkdir /tmp/x 2>&1 || echo refused", seccomp=program)
        assert lines == ["mkdir: can't create directory '/tmp/x': No space left on device", "refused"]

    async def test_masks(self, pod: Lab) -> None:
        script = """
            for path in /proc/kcore /proc/keys /proc/timer_list; do cat $path 2>/dev/null; done
            ls -A /sys/firmware /proc/acpi 2>/dev/null | grep -v :
            (echo x > /proc/sys/kernel/hostname) 2>&1 | grep -c 'Read-only file system'
            mkdir /sys/fs/cgroup/pids/x 2>&1 | grep -c 'Read-only file system'
            grep -cE ' (/proc/bus|/proc/fs|/proc/irq|/proc/sys) ro,' /proc/self/mountinfo"""
        facts, lines = await pod.run("sh", "-c", script)
        assert facts.exit is not None
        assert [line for line in lines if line] == ["1", "1", "4"]

    async def test_only_hierarchies_with_controllers_are_shown(self, pod: Lab) -> None:
        script = "grep -o '/sys/fs/cgroup.* - cgroup2*' /proc/self/mountinfo | grep -o 'cgroup2*$' | sort -u"
        assert await pod.sh(script) == ["cgroup2" if pod.cgroups.mode == "v2" else "cgroup"]

    async def test_devices_cgroup(self, pod: Lab) -> None:
        if pod.cgroups.mode == "v2":
            pytest.skip("kernel has no v1 devices controller mounted")
        script = "mknod /tmp/disk b 254 0; head -c 1 /tmp/disk 2>&1 || true; head -c 2 /dev/zero | wc -c"
        lines = await pod.sh(script)
        assert lines == ["head: /tmp/disk: Operation not permitted", "2"]

    async def test_nothing_of_the_host_stays_open(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        assert await pod.sh("ls /proc/self/fd | wc -l") == ["4"]
        done = await pod.runtime.exec_sync("pod", spec.id, ("ls", "/proc/self/fd"), timeout=60)
        assert done.stdout.split() == [b"0", b"1", b"2", b"3"]
        mounts = await pod.sh("cat /proc/self/mountinfo")
        roots = [line.split()[4] for line in mounts]
        assert all(root.startswith(("/proc", "/dev", "/sys")) or root == "/" for root in roots)


async def test_only_a_privileged_container_sees_the_nodes_cgroups(pod: Lab) -> None:
    def paths(lines: list[str]) -> set[str]:
        return {line.split(":", 2)[2] for line in lines if pod.cgroup in line or line.endswith(":/")}

    assert paths(await pod.sh("cat /proc/self/cgroup")) == {"/"}
    fields = {"capabilities": CAPABILITIES, "writable_sys": True, "name": "most"}
    assert f"{pod.cgroup}/pod-pod/most" in paths(await pod.sh("cat /proc/self/cgroup", **fields))


class TestIdentity:
    @pytest.mark.parametrize(
        ("who", "expected"),
        [
            (User(), "0 0 0"),
            (User(name="bob"), "1000 1000 1000 2000"),
            (User(name="bob:extra"), "1000 2000 2000"),
            (User(name="1000"), "1000 1000 1000 2000"),
            (User(name="4711"), "4711 0 0"),
            (User(name="4711:42"), "4711 42 42"),
            (User(name="bob", uid=5, gid=6), "5 6 6"),
            (User(uid=1000, merge_groups=False, supplementary=(7, 8)), "1000 1000 7 8 1000"),
            (User(name="1234567"), "1234567 0 0"),
        ],
    )
    async def test_resolved(self, pod: Lab, who: User, expected: str) -> None:
        lines = await pod.sh("echo $(id -u) $(id -g) $(id -G)", user=who)
        numbers = [int(word) for word in lines[0].split()]
        wanted = [int(word) for word in expected.split()]
        assert numbers[:2] == wanted[:2]
        assert sorted(set(numbers[1:])) == sorted(set(wanted[1:]))

    @pytest.mark.parametrize(
        ("who", "words"),
        [
            (User(name="nobody-here"), "unable to find user nobody-here"),
            (User(name="bob:nogroup"), "unable to find group nogroup"),
            (User(name="2147483648"), "out of range"),
            (User(name="4294967296"), "out of range"),
            (User(name="99999999999999999999"), "out of range"),
            (User(name="+0"), "unable to find user"),
            (User(name="bob:4294967296"), "out of range"),
            (User(require_nonroot=True), "runAsNonRoot"),
            (User(name="00", require_nonroot=True), "runAsNonRoot"),
        ],
    )
    async def test_refused(self, pod: Lab, who: User, words: str) -> None:
        assert words in await refused(pod, "true", user=who)

    async def test_home_and_standard_output_belong_to_the_user(self, pod: Lab) -> None:
        lines = await pod.sh(
            "echo $HOME; echo again > /dev/stdout; echo more > /dev/stderr", user=user(name="bob")
        )
        assert sorted(lines) == ["/home/bob", "again", "more"]

    @pytest.mark.parametrize("kind", ["fifo", "huge", "device-link"])
    async def test_passwd_that_is_no_passwd(self, pod: Lab, kind: str) -> None:
        path = pod.image / "etc/passwd"
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(4 << 30)
        else:
            os.mknod(path, 0o20666, os.makedev(1, 5))
        assert "etc/passwd" in await refused(pod, "true", user=user(name="bob"))


class TestHostileImages:
    async def test_mount_targets_stay_inside(self, pod: Lab) -> None:
        from cri.runtime.spec import Mount

        os.symlink("/", pod.image / "rootlink")
        os.symlink("/../../../../tmp", pod.image / "up")
        source = pod.base / "source"
        source.mkdir()
        name = f"nodelet-escape-{os.getpid()}"
        mounts = (
            Mount(source=source, target=f"/rootlink/{name}"),
            Mount(source=source, target=f"/up/{name}"),
        )
        assert await pod.sh(f"ls -d /{name} /tmp/{name}", mounts=mounts) == [f"/{name}", f"/tmp/{name}"]
        assert not Path("/", name).exists()
        assert not Path("/tmp", name).exists()

    def test_the_copy_is_sealed(self) -> None:
        fd = sealed_copy(Path("/bin/busybox"))
        for work in (
            lambda: os.write(fd, b"x"),
            lambda: os.ftruncate(fd, 1),
            lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            lambda: fcntl.fcntl(fd, 1033, 0x20),  # F_ADD_SEALS
        ):
            with pytest.raises(OSError, match="Operation not permitted") as caught:
                work()
            assert caught.value.errno == errno.EPERM
        os.close(fd)

    async def test_environment_is_only_the_containers(self, pod: Lab) -> None:
        env = (("PATH", "/bin"), ("LD_PRELOAD", "/evil.so"), ("PYTHONPATH", "/evil"))
        lines = await pod.sh("env", env=env)
        assert {"LD_PRELOAD=/evil.so", "PYTHONPATH=/evil", "HOME=/root"} < set(lines)
        assert not any(line.startswith(("LC_", "VIRTUAL", "KUBE")) for line in lines)

    async def test_supervisor_is_out_of_reach(self, pod: Lab) -> None:
        """Even root of the host, with the capabilities of a container, may not read a waiting init."""
        spec = pod.container("true")
        await pod.runtime.create_container(spec)
        facts = await pod.runtime.sandbox_facts("pod")
        folder = pod.base / "state/sandboxes/pod"
        assert (folder.stat().st_mode & 0o777, (folder / "sock").stat().st_mode & 0o777) == (0o700, 0o600)
        assert facts.alive
        shutil.rmtree(pod.base / "nothing", ignore_errors=True)


async def test_a_label_that_no_module_takes_is_an_error(pod: Lab) -> None:
    if security_modules() != SecurityModules():
        pytest.skip("kernel has a security module: a label of a policy's own would be needed")
    for fields in ({"apparmor_profile": "mine"}, {"selinux_label": "u:r:t:s0"}):
        assert "security label" in await refused(pod, "true", **fields)


def test_capability_arithmetic() -> None:
    assert set(capabilities(drop=["ALL"], add=["net_admin"])) == {"NET_ADMIN"}
    assert set(capabilities(add=["CAP_SYS_TIME"], drop=["KILL"])) == DEFAULT_CAPABILITIES - {"KILL"} | {
        "SYS_TIME"
    }
