"""How processes of a pod come to be where they belong: born in cgroups, supervisors forked ahead of pods."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import runtime_kit
from runtime_kit import Lab, no_leaks

from cri.runtime.launch import rehearsal_container
from cri.runtime.rehearsal import rehearse
from host import rtnl, syscalls
from host.linkremoval import remove_link
from host.netlink import Netlink

lab, pod = runtime_kit.lab, runtime_kit.pod


def spares_of(spawner: int) -> list[int]:
    """Supervisors without a pod that this spawner has."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text()
            except OSError:
                continue
            name, state, parent = fields.split("(")[1].split(")")[0], *fields.rpartition(")")[2].split()[:2]
            if name == "nodelet-spare" and int(parent) == spawner and state != "Z":
                found.append(int(folder.name))
    return found


def wait_for_spare(lab: Lab) -> int:
    """The process id of the spare, in a network namespace of its own."""
    mine = os.stat("/proc/self/ns/net").st_ino
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in spares_of(lab.spawner.pid):
            if os.stat(f"/proc/{pid}/ns/net").st_ino != mine:
                return pid
        time.sleep(0.01)
    raise AssertionError("no spare supervisor")


def memberships(pid: int) -> list[str]:
    """Its cgroup in every hierarchy."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return [line.split(":", 2)[2] for line in lines]


class TestCgroups:
    async def test_container_and_exec_are_in_every_hierarchy(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "100")
        pids = [pod.runtime.container_pid("pod", spec.id)]
        result = await pod.runtime.exec_sync("pod", spec.id, ("cat", "/proc/self/cgroup"), timeout=60)
        inside = [line.split(":", 2)[2] for line in result.stdout.decode().splitlines()]
        used = {str(folder) for folder in pod.cgroups.folders(spec.cgroup_path)}
        assert len(used) == len(pod.cgroups.trees)
        for tree in pod.cgroups.trees:
            listed = (tree / spec.cgroup_path.strip("/") / "cgroup.procs").read_text().split()
            assert listed == [str(pid) for pid in pids]
        expected = {"/exec-1"} if pod.cgroups.mode == "v2" else {"/", "/exec-1"}
        assert set(inside) == expected, "the cgroup namespace begins at the container"

    async def test_shared_reaper_is_in_its_cgroup(self, lab: Lab) -> None:
        path = f"{lab.cgroup}/pod-shared/reaper"
        await lab.runtime.create_sandbox(lab.sandbox("shared", share_pid=True, cgroup_path=path))
        counts = {len((folder / "cgroup.procs").read_text().split()) for folder in lab.cgroups.folders(path)}
        assert counts == {1}
        await lab.runtime.remove_sandbox("shared")

    def test_fork_gives_a_pidfd_and_the_child_its_own_ids(self) -> None:
        read, write = os.pipe()
        pid, pidfd = syscalls.fork()
        if pid == 0:
            os.write(write, f"{os.getpid()} {pidfd}".encode())
            os._exit(7)
        os.close(write)
        assert os.read(read, 100).decode() == f"{pid} -1"
        assert os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status == 7
        os.close(read)
        os.close(pidfd)


class TestSpare:
    async def test_a_pod_gets_the_spare_and_another_one_follows(self, lab: Lab) -> None:
        spare = wait_for_spare(lab)
        facts = await lab.runtime.create_sandbox(lab.sandbox("one"))
        assert facts.pid == spare
        assert wait_for_spare(lab) != spare
        await lab.runtime.remove_sandbox("one")

    async def test_no_spare_is_as_good(self, lab: Lab) -> None:
        with no_leaks(lab):
            for name in ("one", "two", "three"):  # faster than spares are forked
                await lab.runtime.create_sandbox(lab.sandbox(name))
            for name in ("one", "two", "three"):
                await lab.runtime.remove_sandbox(name)

    async def test_a_killed_spare_is_as_good(self, lab: Lab) -> None:
        spare = wait_for_spare(lab)
        pidfd = os.pidfd_open(spare)
        os.kill(spare, signal.SIGKILL)
        assert _ended(pidfd)
        os.close(pidfd)
        facts = await lab.runtime.create_sandbox(lab.sandbox("one"))
        assert facts.pid != spare
        await lab.runtime.remove_sandbox("one")

    async def test_on_the_node_s_network_it_leaves_its_own(self, lab: Lab) -> None:
        spare = wait_for_spare(lab)
        facts = await lab.runtime.create_sandbox(lab.sandbox("host", host_network=True))
        assert facts.pid == spare
        assert os.stat(f"/proc/{facts.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
        await lab.runtime.remove_sandbox("host")

    async def test_it_ends_with_the_spawner(self, lab: Lab) -> None:
        spare = wait_for_spare(lab)
        pidfd = os.pidfd_open(spare)
        lab.spawner.close()
        assert _ended(pidfd)
        os.close(pidfd)


class TestRehearsal:
    def test_it_goes_as_far_as_exec_and_leaves_nothing(self) -> None:
        before = _possessions()
        pid = os.fork()  # it makes a subreaper of its process and leaves descriptors to the caller
        if pid == 0:
            answers = rehearse(rehearsal_container())
            told = [answer.get("step", "ok") for answer in answers]
            same = _possessions() == before
            os._exit(0 if told == ["ok", "exec", "ok", "ok"] and same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert _possessions() == before


def _possessions() -> list[str]:
    """Mounts and namespaces of this process."""
    names = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
    return [
        Path("/proc/self/mountinfo").read_text(),
        *(os.readlink(f"/proc/self/ns/{name}") for name in names),
    ]


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 5)[0])


class TestSignals:
    async def test_a_supervisor_ignores_broken_pipes_and_its_containers_do_not(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "100")
        supervisor = (await pod.runtime.sandbox_facts("pod")).pid
        ignored = {pid: _ignored(pid) for pid in (supervisor, pod.spawner.pid)}
        assert all(mask >> (signal.SIGPIPE - 1) & 1 for mask in ignored.values())
        assert _ignored(pod.runtime.container_pid("pod", spec.id)) == 0


def _ignored(pid: int) -> int:
    """The mask of signals it ignores (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("SigIgn:")), 16)


class TestLinkRemoval:
    def test_gone_on_return(self) -> None:
        with Netlink() as netlink:
            for _ in range(5):
                netlink.execute(rtnl.add_bridge("birth0", mac="0a:58:01:02:03:04", mtu=None))
                remove_link("birth0")
                assert netlink.find_link("birth0") is None

    def test_a_missing_device_is_success(self) -> None:
        remove_link("birth9")
