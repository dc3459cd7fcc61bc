"""Putting a container's root together out of a hostile image; the table is in test_cve_entering."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import runtime_kit
import security_kit
from runtime_kit import Lab
from security_kit import CORE_PATTERN, refused

from cri.runtime.errors import StartFailed
from cri.runtime.security import MASKED_PATHS, READONLY_PATHS
from cri.runtime.spec import Mount
from host import syscalls
from host.errors import HostError

lab, pod = runtime_kit.lab, runtime_kit.pod
unchanged_host = security_kit.unchanged_host

CONTAINERD_MASKED_PATHS = {
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
}
"""pkg/oci/spec.go, populateDefaultUnixSpec."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A folder of the host that no container may reach."""
    path = tmp_path / "canary"
    path.mkdir(mode=0o777)
    return path


class TestDevices:
    async def test_a_null_device_that_is_a_link(self, pod: Lab) -> None:
        """Masks and standard input are the null device of our own making, whatever the image has."""
        (pod.image / "dev").mkdir()
        os.symlink("/proc/sys/kernel/core_pattern", pod.image / "dev/null")
        before = CORE_PATTERN.read_bytes()
        script = "stat -c %t:%T:%F /dev/null /proc/keys /proc/self/fd/0 -L; echo '|/evil' > /dev/null"
        assert await pod.sh(script) == ["1:3:character special file"] * 3
        assert CORE_PATTERN.read_bytes() == before

    @pytest.mark.parametrize("name", ["console", "pts", "ptmx", "shm", "mqueue", "tty", "fd"])
    async def test_links_below_dev(self, pod: Lab, canary: Path, name: str) -> None:
        (pod.image / "dev").mkdir()
        (canary / "file").write_text("untouched")
        os.symlink(canary / "file", pod.image / "dev" / name)
        facts, _ = await pod.run("sh", "-c", "tty; echo x > /dev/console", tty=True)
        assert facts.exit is not None
        assert facts.exit.code == 0
        assert [path.name for path in canary.iterdir()] == ["file"]
        assert (canary / "file").read_text() == "untouched"

    @pytest.mark.parametrize("name", ["proc", "dev", "sys"])
    async def test_links_in_place_of_kernel_folders(self, pod: Lab, canary: Path, name: str) -> None:
        os.symlink(canary, pod.image / name)
        assert f"/{name} of the image must be a folder" in await refused(pod, "true")
        assert list(canary.iterdir()) == []

    async def test_a_terminal_is_a_device_of_the_containers_own(self, pod: Lab) -> None:
        _, lines = await pod.run("sh", "-c", "tty; stat -c %t /dev/console -L", tty=True)
        assert [line.strip() for line in lines] == ["/dev/pts/0", "88"]


class TestProc:
    async def test_a_sysctl_that_another_folder_lies_over(self, lab: Lab, canary: Path) -> None:
        fake = canary / "shm_rmid_forced"
        fake.write_text("untouched")
        place = b"/proc/sys/kernel"
        syscalls.mount(os.fsencode(canary), place, b"", syscalls.MS_BIND)
        try:
            with pytest.raises(HostError, match="shm_rmid_forced"):
                await lab.runtime.create_sandbox(lab.sandbox(sysctls={"kernel.shm_rmid_forced": "1"}))
        finally:
            syscalls.umount(place)
        assert fake.read_text() == "untouched"

    async def test_a_volume_at_proc_does_not_get_what_is_written_to_procfs(
        self, pod: Lab, canary: Path
    ) -> None:
        """Scores and labels are set before the container's root is entered, so its /proc is never asked."""
        (canary / "self/attr/apparmor").mkdir(parents=True)
        for name in ("oom_score_adj", "attr/exec", "attr/apparmor/exec"):
            (canary / "self" / name).write_text("untouched")
        os.symlink("self", canary / "thread-self")
        mounts = (Mount(source=canary, target="/proc"),)
        spec = await pod.start("sleep", "1000", mounts=mounts, oom_score_adj=321)
        pid = pod.runtime.container_pid("pod", spec.id)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "321\n"
        for name in ("oom_score_adj", "attr/exec", "attr/apparmor/exec"):
            assert (canary / "self" / name).read_text() == "untouched"


async def test_read_only_root_with_a_hostile_proc(pod: Lab, canary: Path) -> None:
    """The flag is set on the mount itself before anything of the image is looked at again."""
    (pod.image / "proc/self").mkdir(parents=True)
    os.symlink(canary, pod.image / "proc/self/fd")
    script = """
        touch /x 2>&1; touch /etc/x 2>&1; mount -o remount,rw / 2>&1
        grep -c ' / / ro,' /proc/self/mountinfo; ls /proc/self/fd/0 > /dev/null && echo proc"""
    _, lines = await pod.run("sh", "-c", script, readonly_rootfs=True)
    assert [line.rpartition(": ")[2] for line in lines[:2]] == ["Read-only file system"] * 2
    assert lines[-2:] == ["1", "proc"]
    assert list(canary.iterdir()) == []


_SWAP = """
import ctypes, sys
libc, exchange = ctypes.CDLL(None), 2
print("ready", flush=True)
while True:
    libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), exchange)
"""


async def test_mount_targets_that_are_swapped_meanwhile(pod: Lab, canary: Path) -> None:
    """A neighbour with the same volume exchanges a folder and a link to the host, as fast as it can."""
    volume, source = pod.base / "volume", pod.base / "source"
    (volume / "folder").mkdir(parents=True)
    source.mkdir()
    os.symlink(canary, volume / "link")
    mounts = (Mount(source=volume, target="/volume"), Mount(source=source, target="/volume/folder/mine"))
    argv = [sys.executable, "-c", _SWAP, str(volume / "folder"), str(volume / "link")]
    before = Path("/proc/self/mountinfo").read_text().count("\n")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as swapper:  # noqa: ASYNC220 - it ends with the test
        assert swapper.stdout is not None
        swapper.stdout.readline()
        found = []
        for _ in range(60):
            spec = pod.container(
                "sh", "-c", "grep -E '/source | /.*/mine ' /proc/self/mountinfo", mounts=mounts
            )
            with suppress(StartFailed):
                await pod.runtime.create_container(spec)
                await pod.runtime.start_container("pod", spec.id)
                await pod.runtime.wait_container("pod", spec.id)
                found += [line.split()[4] for line in pod.output(spec.id)]
        swapper.send_signal(signal.SIGTERM)
    assert set(found) <= {"/volume/folder/mine", "/volume/link/mine", f"{canary}/mine"}
    assert found
    assert list(canary.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text().count("\n") == before


class TestMasks:
    def test_the_list_is_containerds(self) -> None:
        """And /proc/interrupts, which kubelet hides since 1.33."""
        assert set(MASKED_PATHS) == CONTAINERD_MASKED_PATHS | {"/proc/interrupts"}

    async def test_each_is_empty(self, pod: Lab) -> None:
        script = (
            "for path in $PATHS; do if [ -d $path ]; then ls -A $path; else cat $path; fi; done 2>/dev/null"
        )
        facts, lines = await pod.run(
            "sh", "-c", script, env=(("PATH", "/bin"), ("PATHS", " ".join(MASKED_PATHS)))
        )
        assert (facts.exit is not None, lines) == (True, [])

    async def test_each_hidden_file_is_a_null_device_that_cannot_be_written(self, pod: Lab) -> None:
        files = [path for path in MASKED_PATHS if Path(path).exists() and not Path(path).is_dir()]
        spec = await pod.start("sleep", "1000")
        root = Path(f"/proc/{pod.runtime.container_pid('pod', spec.id)}/root")
        assert files
        for path in files:
            found = os.stat(f"{root}{path}")
            assert stat.S_ISCHR(found.st_mode)
            assert found.st_rdev == os.makedev(1, 3)

    async def test_read_only_paths(self, pod: Lab) -> None:
        here = [path for path in READONLY_PATHS if Path(path).exists()]
        mounts = [line.split() for line in await pod.sh("cat /proc/self/mountinfo")]
        flags = {words[4]: words[5].split(",") for words in mounts}
        assert {path: "ro" in flags.get(path, ()) for path in here} == dict.fromkeys(here, True)
