"""Entering the container: each published way out of one, tried on ours.

    incident                                   test
    CVE-2019-5736 runtime overwritten          here: TestInterpreter
    CVE-2016-9962 entering process read        here: test_a_process_on_its_way_in_cannot_be_read
    CVE-2024-21626 WORKDIR /proc/self/fd       here: TestWorkingDirectory
    CVE-2019-14271 helper loads image's code   here: TestNothingOfTheImageIsLoaded
    CVE-2025-23266 helper inherits pod's env   here: test_helpers_do_not_see_the_pods_environment
    CVE-2021-21334 env leaks between two       here: test_environments_of_two_containers_stay_apart
    CVE-2025-31133 CVE-2026-88265 /dev/null    test_cve_mounts.TestDevices
    CVE-2025-52565 CVE-2026-88264
      CVE-2026-41579 /dev/console, /dev/pts    test_cve_mounts.TestDevices
    CVE-2025-52881 CVE-2019-19921
      CVE-2023-27561 procfs redirected         test_cve_mounts.TestProc
    CVE-2026-115521 late read-only remount     test_cve_mounts.test_read_only_root_with_a_hostile_proc
    CVE-2021-30465 CVE-2024-45310 mount race   test_cve_mounts.test_mount_targets_that_are_swapped_meanwhile
    GHSA-7ww5-4wqc-m92c power figures          test_cve_mounts.TestMasks
    CVE-2022-29162 -24769 -27652 inheritable   test_cve_privileges.TestCapabilities
    CVE-2022-0811 CVE-2022-0532 sysctl value   test_cve_privileges.TestSysctls
    CVE-2023-2431 empty Localhost profile      test_cve_privileges.test_localhost_is_never_unconfined
    CVE-2026-123876 socket rule bypassed       test_cve_privileges.TestFilter
    CVE-2024-40635 CVE-2026-46680 huge USER    test_cve_privileges.TestUsers
    CVE-2019-11245 root after a restart        test_cve_privileges.test_the_same_user_after_every_restart
    CVE-2022-2995 -36109 CVE-2023-25173 groups test_cve_privileges.test_groups
    CVE-2023-6476 CVE-2024-3154 annotations    test_cve_privileges.test_annotations_and_labels_change_nothing
    CVE-2025-47291 outside of the pod's cgroup test_cve_privileges.TestPlacement; with user namespaces
                                               test_runtime_userns.*.test_cgroup_of_every_process

After each of the three modules the kernel's core_pattern and the interpreter must be what they were.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runtime_kit
import security_kit
from runtime_kit import Lab, user
from security_kit import refused

from cri.runtime.errors import StartFailed
from cri.runtime.security import DEFAULT_CAPABILITIES, capability_mask
from cri.runtime.spec import Mount
from host.processes import SAFE_ENV

lab, pod = runtime_kit.lab, runtime_kit.pod
unchanged_host = security_kit.unchanged_host
F_GET_SEALS, SEALS = 1034, 0x17  # no further seals, no shrinking, no growing, no write from now on
PACKAGE = Path(__file__).parents[2]


class TestInterpreter:
    async def test_what_a_container_could_reach_of_it_is_sealed(self, pod: Lab) -> None:
        """The supervisor and an init that waits run from a copy that nobody can write, not even host root."""
        spec = pod.container("true")
        await pod.runtime.create_container(spec)
        supervisor = (await pod.runtime.sandbox_facts("pod")).pid
        for pid in (supervisor, pod.runtime.container_pid("pod", spec.id)):
            exe = f"/proc/{pid}/exe"
            assert os.readlink(exe).startswith("/memfd:nodelet-python")
            fd = os.open(exe, os.O_RDONLY)
            assert fcntl.fcntl(fd, F_GET_SEALS) == SEALS
            os.close(fd)

    async def test_it_cannot_be_run_by_way_of_itself(self, pod: Lab) -> None:
        (pod.image / "bin/self").write_text("#!/proc/self/exe\n")
        (pod.image / "bin/self").chmod(0o755)
        for argv in (("/proc/self/exe", "-c", "open('/marker', 'w')"), ("/bin/self",)):
            with contextlib.suppress(StartFailed):
                await pod.run(*argv)
        assert await pod.sh("ls -d /marker 2>/dev/null || echo none") == ["none"]


_READER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from host import syscalls
mask, children = int(sys.argv[2]), sys.argv[3]
for bit in range(41):
    if not mask >> bit & 1:
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, bit)
syscalls.capset(effective=mask, permitted=mask, inheritable=0)
print("ready", flush=True)
seen = set()
while True:
    try:
        for pid in open(children).read().split():
            try:
                exe = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                continue
            if "memfd" in exe and exe not in seen:
                seen.add(exe)
                print(exe, flush=True)
    except ProcessLookupError:
        break
"""


async def test_a_process_on_its_way_in_cannot_be_read(pod: Lab) -> None:
    """A root with a container's capabilities watches exec after exec arrive, and can open none before it is
    the container's own program. The reader runs on the host, where it sees at least what a pod with a shared
    PID namespace does."""
    spec = await pod.start("sleep", "1000")
    supervisor = (await pod.runtime.sandbox_facts("pod")).pid
    mask = str(capability_mask(DEFAULT_CAPABILITIES))
    argv = [
        sys.executable,
        "-c",
        _READER,
        str(PACKAGE),
        mask,
        f"/proc/{supervisor}/task/{supervisor}/children",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as reader:  # noqa: ASYNC220 - a witness, not waited for
        assert reader.stdout is not None
        assert await asyncio.to_thread(reader.stdout.readline) == b"ready\n"
        for _ in range(150):
            done = await pod.runtime.exec_sync("pod", spec.id, ("true",), timeout=60)
            assert done.code == 0
        reader.send_signal(signal.SIGTERM)
        assert reader.stdout.read() == b""


class TestWorkingDirectory:
    @pytest.mark.parametrize("number", range(3, 65))
    async def test_of_a_container(self, pod: Lab, number: int) -> None:
        assert "cwd" in await refused(pod, "true", cwd=f"/proc/self/fd/{number}")

    async def test_of_an_exec(self, pod: Lab) -> None:
        """The folder the container began in has since become a link to a descriptor."""
        volume = pod.base / "volume"
        (volume / "here").mkdir(parents=True)
        mounts = (Mount(source=volume, target="/volume"),)
        spec = await pod.start("sleep", "1000", cwd="/volume/here", mounts=mounts)
        (volume / "here").rmdir()
        for number in range(3, 65):
            os.symlink(f"/proc/self/fd/{number}", volume / "here")
            with pytest.raises(StartFailed, match="cwd"):
                await pod.runtime.exec_sync("pod", spec.id, ("true",), timeout=60)
            (volume / "here").unlink()


class TestNothingOfTheImageIsLoaded:
    async def test_python_modules(self, pod: Lab) -> None:
        """A late import or codec look-up after the pivot would run these as root of the host."""
        marker = "open('/tmp/marker', 'w').close()\n"
        for folder in {path for path in sys.path if path.startswith("/")}:
            for name in ("encodings/idna", "encodings/latin_1", "traceback", "linecache", "codecs", "pwd"):
                path = pod.image / folder.lstrip("/") / f"{name}.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(marker)
        (pod.image / "etc/nsswitch.conf").write_text("passwd: evil\nhosts: evil\n")
        await pod.sh("true", user=user(name="bob"))
        await refused(pod, "\udcff\udcfe")
        await refused(pod, "/bin/\N{SNOWMAN}")
        spec = await pod.start("sleep", "1000")
        with pytest.raises(StartFailed):
            await pod.runtime.exec_sync("pod", spec.id, ("\N{SNOWMAN}",), timeout=60)
        assert "marker" not in await pod.sh("ls /tmp")

    def test_what_runs_inside_has_no_name_service(self) -> None:
        """libnss_*.so of the image is loaded by whoever asks the C library for a user, a host or a locale."""
        forbidden = {"pwd", "grp", "locale", "subprocess", "ssl", "getpass", "encodings", "importlib"}
        for name in ("init", "rootfs", "rooted", "identity", "namespaces", "wire", "container", "execution"):
            tree = ast.parse((PACKAGE / f"cri/runtime/{name}.py").read_text())
            for node in ast.walk(tree):
                words = [item.name for item in node.names] if isinstance(node, ast.Import) else []
                words += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not forbidden & {word.split(".")[0] for word in words}, name
                if isinstance(node, ast.Attribute):
                    assert node.attr not in ("getaddrinfo", "gethostbyname", "getfqdn", "expanduser"), name


async def test_helpers_do_not_see_the_pods_environment(pod: Lab) -> None:
    env = (("PATH", "/evil"), ("LD_PRELOAD", "/evil.so"), ("PYTHONPATH", "/evil"), ("PYTHONHOME", "/evil"))
    spec = pod.container("/bin/env", env=env)
    await pod.runtime.create_container(spec)
    supervisor = (await pod.runtime.sandbox_facts("pod")).pid
    for pid in (pod.spawner.pid, supervisor, pod.runtime.container_pid("pod", spec.id)):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found = dict(word.decode().split("=", 1) for word in words if word)
        assert found == dict(SAFE_ENV)
    await pod.runtime.start_container("pod", spec.id)
    await pod.runtime.wait_container("pod", spec.id)
    assert sorted(pod.output(spec.id)) == sorted([*(f"{name}={value}" for name, value in env), "HOME=/root"])


async def test_environments_of_two_containers_stay_apart(pod: Lab) -> None:
    async def names(mine: str, count: int) -> set[str]:
        env = (("PATH", "/bin"), (f"{mine}{count}", "x"))
        _, lines = await pod.run("env", env=env)
        return {line.partition("=")[0] for line in lines}

    for count in range(50):
        ours, theirs = await asyncio.gather(names("A", count), names("B", count))
        assert ours == {"PATH", "HOME", f"A{count}"}
        assert theirs == {"PATH", "HOME", f"B{count}"}
