"""Pods with a user namespace: who root is, what it may do inside, and what it cannot do outside."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import runtime_kit
import userns_kit
from runtime_kit import Lab, no_leaks, user
from test_runtime_birth import wait_for_spare
from test_runtime_recovery import eventually
from userns_kit import ALL, ROOT, in_userns, maps, owner_of, refused, userns_of

from cri.runtime import seccomp
from cri.runtime.errors import StartFailed
from cri.runtime.process import collect
from cri.runtime.security import CAPABILITIES, DEFAULT_CAPABILITIES
from cri.runtime.spec import ExecSpec, Mount, Rlimit
from host.errors import HostError

lab, pod = runtime_kit.lab, userns_kit.pod


def ids(pid: int, name: str) -> list[int]:
    """Real, effective, saved and file system id, as the host sees them; or the groups."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:(.*)$", text, re.M)
    assert found is not None
    return [int(word) for word in found[1].split()]


class TestWho:
    async def test_root_inside_is_nobody_outside(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000", **ALL)
        pid = pod.runtime.container_pid("pod", spec.id)
        assert (ids(pid, "Uid"), ids(pid, "Gid")) == ([ROOT] * 4, [ROOT] * 4)
        done = await pod.runtime.exec_sync("pod", spec.id, ("cat", "/proc/1/uid_map"), timeout=60)
        assert done.stdout.split() == [b"0", b"%d" % ROOT, b"65536"]
        assert Path(f"/proc/{pid}/uid_map").read_text() == Path(f"/proc/{pid}/gid_map").read_text()
        full = (1 << len(CAPABILITIES)) - 1
        assert (
            re.search(r"^CapEff:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M)[1] == f"{full:016x}"
        )  # type: ignore[index]

    async def test_every_namespace_belongs_to_the_pods(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        pid = pod.runtime.container_pid("pod", spec.id)
        own = userns_of(pid)
        assert own != userns_of(os.getpid())
        kinds = ("net", "ipc", "uts", "pid", "mnt", "cgroup")
        assert {kind: owner_of(pid, kind) for kind in kinds} == dict.fromkeys(kinds, own)
        supervisor = (await pod.runtime.sandbox_facts("pod")).pid
        assert userns_of(supervisor) == userns_of(os.getpid())
        assert in_userns(own) == [pid]

    async def test_the_spares_network_is_not_the_pods(self, lab: Lab) -> None:
        """A supervisor that was forked ahead has made a network namespace, which belongs to the node."""
        wait_for_spare(lab)
        await lab.runtime.create_sandbox(lab.sandbox(user_namespace=maps()))
        spec = await lab.start("sleep", "1000")
        pid = lab.runtime.container_pid("pod", spec.id)
        assert owner_of(pid, "net") == userns_of(pid)
        assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(lab.base / "netns/pod").st_ino

    async def test_containers_of_a_pod_share_it(self, pod: Lab) -> None:
        first, second = await pod.start("sleep", "1000"), await pod.start("sleep", "1000")
        pids = [pod.runtime.container_pid("pod", spec.id) for spec in (first, second)]
        assert userns_of(pids[0]) == userns_of(pids[1])
        assert owner_of(pids[0], "net") == owner_of(pids[1], "net") == userns_of(pids[0])

    async def test_a_user_and_its_groups(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000", user=user(name="bob", supplementary=(7,)))
        pid = pod.runtime.container_pid("pod", spec.id)
        assert ids(pid, "Uid") == ids(pid, "Gid") == [ROOT + 1000] * 4
        assert ids(pid, "Groups") == [ROOT + 7, ROOT + 1000, ROOT + 2000]
        done = await pod.runtime.exec_sync("pod", spec.id, ("id",), timeout=60)
        assert done.stdout == b"uid=1000(bob) gid=1000(bob) groups=7,1000(bob),2000(extra)\n"

    async def test_a_user_beyond_the_map(self, pod: Lab) -> None:
        spec = pod.container("true", user=user(uid=70000))
        await pod.runtime.create_container(spec)
        with pytest.raises(StartFailed, match="user"):
            await pod.runtime.start_container("pod", spec.id)

    async def test_a_map_of_one_id(self, lab: Lab) -> None:
        await lab.runtime.create_sandbox(lab.sandbox(user_namespace=maps(length=1)))
        assert await lab.sh("echo $(id -u):$(id -g); tty > /dev/null || true", tty=True) == ["0:0"]

    async def test_two_pods_with_different_maps(self, lab: Lab) -> None:
        for name, outside in (("a", 100000), ("b", 300000)):
            await lab.runtime.create_sandbox(lab.sandbox(name, user_namespace=maps(outside)))
            spec = await lab.start("sleep", "1000", pod=name)
            assert ids(lab.runtime.container_pid(name, spec.id), "Uid") == [outside] * 4


class TestPower:
    async def test_network_of_the_pod(self, pod: Lab) -> None:
        script = """
            ip link add dev v0 type veth && ip addr add 10.1.1.1/24 dev v0 && ip link set v0 up
            ip -o addr show v0 | grep -c 10.1.1.1
            echo 1 > /proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/ip_forward
            hostname mine; hostname"""
        assert await pod.sh(script, **ALL) == ["1", "1", "mine"]

    async def test_not_without_the_capability(self, pod: Lab) -> None:
        script = "ip link add dev d0 type veth 2>&1; hostname mine 2>&1; mount -t tmpfs none /tmp 2>&1; true"
        lines = await pod.sh(script)
        assert len(lines) == 3
        assert all(re.search("not permitted|denied", line) for line in lines), lines

    async def test_nothing_outside(self, pod: Lab) -> None:
        device = os.stat("/").st_dev
        script = f"""
            mknod /disk b {os.major(device)} {os.minor(device)} 2>&1; mknod /null c 1 3 2>&1
            (echo x > /proc/sys/kernel/core_pattern) 2>&1; (echo 1 > /proc/sys/kernel/panic) 2>&1
            (echo 3 > /proc/sys/vm/drop_caches) 2>&1
            mount -t ext4 /dev/disk /tmp 2>&1; dmesg -n 1 2>&1; chown 70000 /tmp 2>&1
            (echo -1000 > /proc/self/oom_score_adj) 2>&1; true"""
        lines = await pod.sh(script, all_devices=True, masked_paths=(), **ALL)
        assert len(lines) == 9, lines
        assert all(re.search("not permitted|denied|Invalid argument|No such", line) for line in lines), lines

    async def test_devices_of_the_host_are_not_its_own(self, pod: Lab) -> None:
        disk = next((path for path in Path("/dev").iterdir() if path.is_block_device()), None)
        if disk is None:
            pytest.skip("machine has no block device")
        lines = await pod.sh(
            f"stat -c %u /dev/{disk.name}; head -c 1 /dev/{disk.name} 2>&1 || true", all_devices=True, **ALL
        )
        assert lines[0] == "65534"
        assert "denied" in lines[1]
        assert await pod.sh("echo x > /dev/null; head -c 3 /dev/zero | wc -c") == ["3"]

    async def test_sysctls_of_the_pod(self, lab: Lab) -> None:
        values = {
            "net.ipv4.ip_local_port_range": "3000\t4000",
            "kernel.shm_rmid_forced": "1",
            "kernel.msgmax": "9000",
        }
        await lab.runtime.create_sandbox(lab.sandbox(user_namespace=maps(), sysctls=values))
        paths = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in values)
        assert await lab.sh(f"cat {paths}") == list(values.values())

    async def test_filter_and_no_new_privileges(self, pod: Lab) -> None:
        program = seccomp.compile_default(capabilities=DEFAULT_CAPABILITIES)
        for locked in (False, True):
            fields = {"seccomp": program, "no_new_privileges": locked}
            script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; unshare -U true 2>&1; true"
            lines = await pod.sh(script, **fields)
            assert lines[:2] == [f"NoNewPrivs:\t{locked:d}", "Seccomp:\t2"]
            assert lines[2].endswith("Operation not permitted")

    async def test_a_namespace_inside(self, pod: Lab) -> None:
        script = "unshare -U -r id -u; unshare -U -m -n true && echo nested; unshare -p -f sh -c 'echo $$'"
        assert await pod.sh(script, user=user(uid=0), capabilities=CAPABILITIES) == ["0", "nested", "1"]


class TestProcesses:
    @pytest.mark.parametrize("mode", ["container", "pod", "target"])
    async def test_cgroup_of_every_process(self, lab: Lab, mode: str) -> None:
        """CVE-2025-47291: a process of such a pod outside of the pod's cgroup."""
        sandbox = lab.sandbox(
            user_namespace=maps(), share_pid=mode == "pod", cgroup_path=f"{lab.cgroup}/pod-pod/pause"
        )
        await lab.runtime.create_sandbox(sandbox)
        first = await lab.start("sleep", "1000")
        fields = {"target_container": first.id} if mode == "target" else {}
        spec = await lab.start("sleep", "1000", **fields)
        await lab.runtime.exec("pod", spec.id, ExecSpec(argv=("sleep", "999")))
        own = userns_of(lab.runtime.container_pid("pod", spec.id))
        pids = in_userns(own)
        assert len(pids) == (4 if mode == "pod" else 3)
        used = {str(folder).split("/nodelet-test", 1)[1] for folder in lab.cgroups.folders(lab.cgroup)}
        assert len(used) == 1
        trees = {tree.name for tree in lab.cgroups.trees}
        for pid in pids:
            lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
            mine = [path for _, name, path in lines if name.removeprefix("name=") in trees or not name]
            assert mine
            assert all(path.startswith(f"{lab.cgroup}/pod-pod/") for path in mine), (pid, lines)

    async def test_one_pid_namespace_for_all(self, lab: Lab) -> None:
        sandbox = lab.sandbox(
            user_namespace=maps(), share_pid=True, cgroup_path=f"{lab.cgroup}/pod-pod/pause"
        )
        await lab.runtime.create_sandbox(sandbox)
        first = await lab.start("sleep", "1234")
        pid = lab.runtime.container_pid("pod", first.id)
        assert owner_of(pid, "pid") == userns_of(pid)
        script = """ps; ls /proc/1/root/ 2>&1; grep -h CapEff /proc/1/status
            (sleep 0.05 &) ; sleep 0.3; grep -l ') Z ' /proc/[0-9]*/stat || echo no zombie"""
        lines = await lab.sh(script, **ALL)
        assert any(line.rstrip().endswith("sleep 1234") for line in lines)
        assert lines[-2:] == ["CapEff:\t0000000000000000", "no zombie"]

    async def test_join_another_containers_processes(self, pod: Lab) -> None:
        target = await pod.start("sleep", "4321")
        assert any("sleep 4321" in line for line in await pod.sh("ps", target_container=target.id))

    async def test_exec(self, pod: Lab) -> None:
        spec = await pod.start(
            "sleep", "1000", user=user(uid=1000), rlimits=(Rlimit(name="RLIMIT_CORE", soft=0, hard=0),)
        )
        script = "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; echo > /dev/stderr"
        done = await pod.runtime.exec_sync("pod", spec.id, ("sh", "-c", script), timeout=60)
        lines = done.stdout.decode().splitlines()
        assert lines[0] == "1000"
        assert lines[1].split() == ["0", str(ROOT), "65536"]
        assert lines[2].startswith("user:[")
        assert (done.code, done.stderr) == (0, b"\n")

    async def test_terminals(self, pod: Lab) -> None:
        script = "tty; stat -c %u:%g $(tty) /dev/console"
        assert await pod.sh(script, tty=True, user=user(uid=1000)) == ["/dev/pts/0", "1000:5", "1000:5"]
        spec = await pod.start("sleep", "1000", user=user(uid=1000))
        process = await pod.runtime.exec(
            "pod", spec.id, ExecSpec(argv=("sh", "-c", "tty; stat -c %u:%g $(tty)"), tty=True)
        )
        result = await collect(process, limit=1000, timeout=10)
        assert (result.code, result.stdout) == (0, b"/dev/pts/0\r\n1000:5\r\n")

    async def test_output_can_be_opened_again(self, pod: Lab) -> None:
        lines = await pod.sh("echo a > /dev/stdout; echo b > /proc/self/fd/2", user=user(uid=1000))
        assert sorted(lines) == ["a", "b"]

    async def test_nothing_of_the_host_stays_open(self, pod: Lab) -> None:
        mount = Mount(source=pod.image, target="/v", idmaps=maps(outside=1000))
        assert await pod.sh("ls /proc/self/fd | wc -l", mounts=(mount,)) == ["4"]

    async def test_waiting_process_is_shut_to_the_pod(self, lab: Lab) -> None:
        """Between create and start, in the pod's own PID namespace, our process is there to be looked at."""
        sandbox = lab.sandbox(user_namespace=maps(), share_pid=True)
        await lab.runtime.create_sandbox(sandbox)
        spec = lab.container("true")
        await lab.runtime.create_container(spec)
        script = """for pid in $(ls /proc | grep '^[0-9]*$'); do
            grep -q nodelet /proc/$pid/comm 2>/dev/null && ls /proc/$pid/fd /proc/$pid/root 2>&1
            done; true"""
        lines = await lab.sh(script, **ALL)
        assert lines
        assert all("Permission denied" in line for line in lines if not line.endswith(":")), lines


class TestEnds:
    async def test_nothing_is_left_behind(self, lab: Lab) -> None:
        with no_leaks(lab):
            sandbox = lab.sandbox(user_namespace=maps())
            await lab.runtime.create_sandbox(sandbox)
            spec = await lab.start("sh", "-c", "sleep 1000 & sleep 1000")
            await lab.runtime.create_container(lab.container("true"))
            own = userns_of(lab.runtime.container_pid("pod", spec.id))
            await lab.runtime.stop_sandbox("pod")
            assert in_userns(own) == []
            await lab.runtime.remove_sandbox("pod")

    async def test_failed_sandbox_leaves_nothing(self, lab: Lab) -> None:
        with no_leaks(lab):
            sandbox = lab.sandbox(user_namespace=maps(), sysctls={"net.ipv4.no_such": "1"})
            with pytest.raises(HostError):
                await lab.runtime.create_sandbox(sandbox)

    async def test_root_that_cannot_be_mounted_leaves_nothing(self, pod: Lab) -> None:
        with no_leaks(pod):
            words = await refused(pod, "true", lower_dirs=(Path("/nowhere"),))
            assert "/nowhere" in words
            assert await pod.sh("echo works") == ["works"]
            for name in pod.runtime._state.container_ids("pod"):
                await pod.runtime.remove_container("pod", name)

    async def test_supervisor_is_lost(self, pod: Lab) -> None:
        spec = await pod.start("sh", "-c", "sleep 1000 & sleep 1000")
        waiting = pod.container("true")
        await pod.runtime.create_container(waiting)
        own = userns_of(pod.runtime.container_pid("pod", spec.id))
        os.kill((await pod.runtime.sandbox_facts("pod")).pid, signal.SIGKILL)
        await eventually(lambda: in_userns(own) == [])

    async def test_a_damaged_record_makes_no_root_of_the_node(self, pod: Lab) -> None:
        """Without the record the maps are not known: then no container may start as the node's root."""
        records = list((pod.base / "state/sandboxes/pod").glob("sandbox*"))
        assert records
        for record in records:
            record.write_bytes(b"damaged")
        assert "user namespace" in await refused(pod, "true")
