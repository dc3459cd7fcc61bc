"""Containers made for real: life, namespaces, limits, mounts, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest
import runtime_kit
from runtime_kit import Lab, no_leaks

from cri.runtime.errors import StartFailed
from cri.runtime.spec import Device, Mount, Rlimit, Tmpfs
from host.cgroups import Resources
from host.errors import Exists, HostError, InputError, NotFound

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) [FP] .*")
lab, pod = runtime_kit.lab, runtime_kit.pod


class TestLife:
    async def test_exit_code_times_and_log(self, pod: Lab) -> None:
        spec = pod.container("sh", "-c", "echo out; echo err >&2; printf rest; exit 7")
        made = await pod.runtime.create_container(spec)
        assert made.state == "created"
        started = await pod.runtime.start_container("pod", spec.id)
        assert started.state == "running"
        assert pod.runtime.container_pid("pod", spec.id) == started.pid
        facts = await pod.runtime.wait_container("pod", spec.id)
        assert facts.state == "exited"
        assert facts.exit is not None
        assert (facts.exit.code, facts.exit.signal, facts.exit.error) == (7, 0, "")
        assert made.created_at <= facts.started_at <= facts.exit.finished_at
        text = (pod.base / "logs" / f"{spec.id}.log").read_text()
        assert all(LOG_LINE.fullmatch(line) for line in text.splitlines())
        assert sorted(line.split(" ", 1)[1] for line in text.splitlines()) == [
            "stderr F err",
            "stdout F out",
            "stdout F rest",
        ]
        mode = (pod.base / "logs" / f"{spec.id}.log").stat().st_mode & 0o777
        assert mode == 0o640

    async def test_events_tell_the_exit(self, pod: Lab) -> None:
        spec = await pod.start("false")
        async with asyncio.timeout(60):
            event = await anext(pod.runtime.events())
        assert (event.kind, event.container_id) == ("exited", spec.id)
        assert event.exit is not None
        assert event.exit.code == 1

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (("nothing",), 'exec: "nothing": executable file not found in $PATH'),
            (("/no/such",), 'exec: "/no/such": no such file or directory'),
            (("/etc/passwd",), 'exec: "/etc/passwd": permission denied'),
        ],
    )
    async def test_what_cannot_be_executed(self, pod: Lab, argv: tuple[str, ...], words: str) -> None:
        spec = pod.container(*argv)
        await pod.runtime.create_container(spec)
        with pytest.raises(StartFailed) as caught:
            await pod.runtime.start_container("pod", spec.id)
        assert (str(caught.value), caught.value.step) == (words, "exec")
        facts = await pod.runtime.wait_container("pod", spec.id)
        assert facts.exit is not None
        assert (facts.exit.code, facts.exit.error) == (128, words)

    async def test_root_that_cannot_be_mounted_leaves_nothing(self, pod: Lab) -> None:
        with no_leaks(pod):
            spec = pod.container("true", mounts=(Mount(source=Path("/no/such"), target="/x"),))
            with pytest.raises(StartFailed, match="/no/such: no such file or directory"):
                await pod.runtime.create_container(spec)
        await pod.runtime.create_container(pod.container("true", name=spec.id))

    async def test_signals_reach_the_first_process(self, pod: Lab) -> None:
        script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
        spec = await pod.start("sh", "-c", script)
        while pod.output(spec.id) != ["ready"]:
            await asyncio.sleep(0.01)
        await pod.runtime.signal_container("pod", spec.id, signal.SIGTERM)
        facts = await pod.runtime.wait_container("pod", spec.id)
        assert facts.exit is not None
        assert facts.exit.code == 5
        await pod.runtime.signal_container("pod", spec.id, signal.SIGTERM)

    async def test_kill_takes_every_process(self, pod: Lab) -> None:
        spec = await pod.start("sh", "-c", "setsid sleep 1000 & sleep 1000")
        await pod.runtime.signal_container("pod", spec.id, signal.SIGKILL, all=True)
        facts = await pod.runtime.wait_container("pod", spec.id)
        assert facts.exit is not None
        assert (facts.exit.code, facts.exit.signal) == (137, 9)
        assert not facts.exit.oom_killed

    async def test_started_twice_and_created_twice(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        with pytest.raises(HostError, match="started before"):
            await pod.runtime.start_container("pod", spec.id)
        with pytest.raises(Exists):
            await pod.runtime.create_container(pod.container("true", name=spec.id))
        with pytest.raises(Exists):
            await pod.runtime.create_sandbox(pod.sandbox())
        with pytest.raises(NotFound):
            await pod.runtime.start_container("pod", "other")

    async def test_created_but_never_started_is_removed(self, pod: Lab) -> None:
        with no_leaks(pod):
            spec = pod.container("true")
            await pod.runtime.create_container(spec)
            await pod.runtime.remove_container("pod", spec.id)
            await pod.runtime.remove_container("pod", spec.id)


async def test_nothing_is_left_behind(lab: Lab) -> None:
    with no_leaks(lab):
        await lab.runtime.create_sandbox(lab.sandbox())
        running = await lab.start("sh", "-c", "sleep 1000 & sleep 1000")
        done, _ = await lab.run("true")
        await lab.runtime.exec_sync("pod", running.id, ("true",), timeout=60)
        await lab.runtime.remove_container("pod", done.id)
        await lab.runtime.stop_sandbox("pod")
        facts = await lab.runtime.sandbox_facts("pod")
        assert (facts.alive, [item.exit.code for item in facts.containers if item.exit]) == (False, [137])
        await lab.runtime.stop_sandbox("pod")
        await lab.runtime.remove_sandbox("pod")
        await lab.runtime.remove_sandbox("pod")
        async with asyncio.timeout(60):
            assert (await anext(lab.runtime.events())).kind == "exited"


class TestNamespaces:
    async def test_shared_between_containers_of_a_pod(self, pod: Lab) -> None:
        await pod.start("sh", "-c", "echo x > /dev/shm/file; sleep 1000")
        script = (
            "while ! test -s /dev/shm/file; do sleep 0.01; done; hostname; ip link | grep -c LOOPBACK,UP; "
        )
        script += "ps | grep -c '[s]leep 1000' || true"
        assert await pod.sh(script) == ["host-pod", "1", "0"]

    async def test_one_pid_namespace_for_all(self, lab: Lab) -> None:
        await lab.runtime.create_sandbox(
            lab.sandbox(share_pid=True, cgroup_path=f"{lab.cgroup}/pod-pod/pause")
        )
        first = await lab.start("sleep", "1234")
        lines = await lab.sh("ps; ls /proc/1/root/ 2>&1; readlink /proc/1/exe || echo hidden")
        assert any(line.rstrip().endswith("sleep 1234") for line in lines)
        assert "hidden" in lines
        assert "etc" not in lines
        zombies = "(sleep 0.05 &) ; sleep 0.3; grep -l ') Z ' /proc/[0-9]*/stat || true"
        assert await lab.sh(zombies) == []
        await lab.runtime.remove_container("pod", first.id)

    async def test_join_another_containers_processes(self, pod: Lab) -> None:
        target = await pod.start("sleep", "4321")
        lines = await pod.sh("ps", target_container=target.id)
        assert any("sleep 4321" in line for line in lines)

    async def test_host_network_and_processes(self, lab: Lab) -> None:
        spec = lab.sandbox(host_network=True, host_uts=True, host_ipc=True)
        await lab.runtime.create_sandbox(spec)
        script = "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; readlink /proc/self/ns/pid"
        lines = await lab.sh(script, host_pid=True)
        assert lines == [os.readlink(f"/proc/self/ns/{name}") for name in ("net", "uts", "pid")]

    async def test_sysctls(self, lab: Lab) -> None:
        wanted = {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
        await lab.runtime.create_sandbox(lab.sandbox(sysctls=wanted))
        script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
        assert await lab.sh(script) == ["80", "1"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("kernel.core_pattern", "x"),
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=x"),
            ("net/../kernel.core_pattern", "x"),
            ("vm.overcommit_memory", "1"),
        ],
    )
    async def test_sysctls_of_the_node_are_refused(self, lab: Lab, name: str, value: str) -> None:
        with no_leaks(lab), pytest.raises(InputError, match="sysctl"):
            await lab.runtime.create_sandbox(lab.sandbox(sysctls={name: value}))

    async def test_sysctl_that_fails_leaves_nothing(self, lab: Lab) -> None:
        with no_leaks(lab), pytest.raises(HostError, match="no_such_name"):
            await lab.runtime.create_sandbox(lab.sandbox(sysctls={"net.no_such_name": "1"}))


class TestLimits:
    async def test_out_of_memory(self, pod: Lab) -> None:
        limits = Resources(memory_limit=16 << 20, memory_swap_limit=16 << 20)
        facts, _ = await pod.run("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1", resources=limits)
        assert facts.exit is not None
        assert (facts.exit.code, facts.exit.oom_killed) == (137, True)

    async def test_stats_and_limits(self, pod: Lab) -> None:
        limits = Resources(cpu_shares=512, cpu_quota_us=50_000, cpu_period_us=100_000, pids_limit=33)
        spec = await pod.start("sleep", "1000", resources=limits)
        stats = pod.cgroups.stats(spec.cgroup_path)
        assert (stats.pids, stats.pids_limit) == (1, 33)
        facts = await pod.runtime.container_facts("pod", spec.id)
        assert pod.cgroups.pids(spec.cgroup_path) == [facts.pid]

    async def test_rlimits_and_oom_score(self, pod: Lab) -> None:
        limits = (Rlimit(name="RLIMIT_NOFILE", soft=100, hard=200),)
        script = "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj"
        assert await pod.sh(script, rlimits=limits, oom_score_adj=321) == ["100", "200", "321"]


class TestMounts:
    async def test_bind_read_only_and_order(self, pod: Lab) -> None:
        outer, inner = pod.base / "outer", pod.base / "inner"
        for folder in (outer, inner):
            folder.mkdir()
        (inner / "file").write_text("inner\n")
        (pod.base / "hosts").write_text("hosts\n")
        mounts = (
            Mount(source=inner, target="/data/sub", readonly=True),
            Mount(source=outer, target="/data"),
            Mount(source=pod.base / "hosts", target="/etc/hosts"),
        )
        script = "cat /data/sub/file /etc/hosts; touch /data/sub/no 2>&1; touch /data/yes"
        lines = await pod.sh(script, mounts=mounts)
        assert lines == ["inner", "hosts", "touch: /data/sub/no: Read-only file system"]
        assert (outer / "yes").exists()

    async def test_propagation_both_ways(self, pod: Lab) -> None:
        from host import syscalls

        share = pod.base / "share"
        share.mkdir()
        syscalls.mount("tmpfs", str(share), "tmpfs")
        syscalls.mount("", str(share), "", syscalls.MS_SHARED)
        for name in ("in", "out"):
            (share / name).mkdir()
        everything = {"capabilities": ("SYS_ADMIN",), "seccomp": b""}
        mounts = (Mount(source=share, target="/share", propagation="shared"),)
        script = "mount -t tmpfs made /share/out && echo mounted; "
        script += "while ! test -e /share/in/x; do sleep 0.02; done; echo seen"
        spec = await pod.start("sh", "-c", script, mounts=mounts, **everything)
        while pod.output(spec.id) != ["mounted"]:
            await asyncio.sleep(0.01)
        assert os.path.ismount(share / "out")
        syscalls.mount("tmpfs", str(share / "in"), "tmpfs")
        (share / "in/x").write_text("")
        await pod.runtime.wait_container("pod", spec.id)
        assert pod.output(spec.id) == ["mounted", "seen"]
        for name in ("in", "out", ""):
            syscalls.umount(str(share / name), syscalls.MNT_DETACH)

    async def test_tmpfs_devices_and_cwd(self, pod: Lab) -> None:
        fields = {
            "tmpfs": (Tmpfs(target="/scratch", size=1 << 20, mode=0o700),),
            "devices": (Device(source=Path("/dev/zero"), target="/dev/mine/zero"),),
            "cwd": "/made/here",
        }
        lines = await pod.sh(
            "readlink /proc/self/cwd; stat -c %a /scratch; stat -c %t:%T /dev/mine/zero", **fields
        )
        assert lines == ["/made/here", "700", "1:5"]

    async def test_read_only_root(self, pod: Lab) -> None:
        lines = await pod.sh("touch /x 2>&1; touch /dev/shm/y && echo shm", readonly_rootfs=True)
        assert lines == ["touch: /x: Read-only file system", "shm"]

    async def test_many_layers(self, pod: Lab) -> None:
        layers = []
        for number in range(60):
            layer = pod.base / f"layer-with-a-rather-long-name-{number:060}"
            layer.mkdir()
            (layer / f"f{number}").write_text("")
            layers.append(layer)
        assert await pod.sh("ls / | grep -c ^f", lower_dirs=(*layers, pod.image)) == ["60"]

    async def test_privileged(self, pod: Lab) -> None:
        fields = {"masked_paths": (), "readonly_paths": (), "writable_sys": True, "all_devices": True}
        lines = await pod.sh("ls /dev/null; grep ' /sys ' /proc/mounts", **fields)
        assert lines[0] == "/dev/null"
        assert " rw," in lines[1]
