"""A second kernel: Debian's cloud kernel with systemd as process 1, in qemu without virtualisation (TCG).

For what the machine's own kernel lacks: cgroup v2 alone, device control by eBPF, a systemd that is process 1,
IPVS, AppArmor. It is 10 to 20 times slower than the machine, so it is for behaviour and never for timing.

Two disks. The base is made once by mmdebstrap from Debian packages and kept in the cache; runs get a snapshot
of it. The project's disk is made for each run: the checkout and its virtual environment at the paths they
have here, and `run`, what to do. Whatever `run` prints comes back over a serial line, its exit status as the
last line. There is no network device.

user-mode-linux would boot in a tenth of the time, but Debian's (6.1) cannot save the registers of a processor
with AVX-512: it dies before its first process.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("/var/cache/nodelet/vm")
CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
PACKAGES = (
    "apparmor,busybox-static,dbus,initramfs-tools,ipset,iproute2,iptables,kmod,libseccomp2,"
    "linux-image-cloud-amd64,nfs-common,nfs-kernel-server,procps,python3,systemd-sysv,udev"
)
SUITE = "bookworm"
_STATUS = "exit status "
_BASE_MB, _SPARE_MB = 900, 64
_UNIT = """[Unit]
Description=What this machine was started for
After=multi-user.target
[Service]
Type=oneshot
ExecStartPre=/bin/mount -o ro /dev/vdb /mnt
ExecStart=/bin/sh /mnt/run
ExecStopPost=/bin/systemctl poweroff --force
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
TimeoutStartSec=infinity
Delegate=yes
[Install]
WantedBy=default.target
"""
_RUN = """set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
mkdir -p {checkout} {environment}
mount --bind /mnt/checkout {checkout}
mount --bind /mnt/environment {environment}
mount -t tmpfs tmpfs /tmp
modprobe overlay
cd {checkout}
{command}
echo "{status}$?"
sync
"""


@dataclass(frozen=True)
class Outcome:
    """How a run in the second kernel ended."""

    status: int
    output: str


def prepare() -> None:
    """Install what is missing of qemu and its friends; needs root and a Debian.

    Raises:
        subprocess.CalledProcessError: apt has failed.
    """
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        apt = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(apt, check=True, stdout=subprocess.DEVNULL)


def base_disk() -> Path:
    """The folder of the base: `disk`, `vmlinuz` and `initrd`; made at the first call, in a few minutes."""
    key = hashlib.sha256(f"{SUITE} {PACKAGES} {_UNIT}".encode()).hexdigest()[:12]
    folder = CACHE / key
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        root, made = Path(scratch, "root"), Path(scratch, "made")
        made.mkdir()
        options = [f"--aptopt={file}" for file in sorted(Path("/etc/apt/apt.conf.d").glob("99*"))]
        argv = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", *options, SUITE, str(root)]
        subprocess.run(argv, check=True, cwd=CACHE)
        (root / "etc/systemd/system/nodelet-vm.service").write_text(_UNIT)
        wants = root / "etc/systemd/system/default.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / "nodelet-vm.service").symlink_to("/etc/systemd/system/nodelet-vm.service")
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
            (source,) = (root / "boot").glob(pattern)
            shutil.copy(source, made / name)
        _disk(made / "disk", root, _BASE_MB)
        made.rename(folder)
    return folder


def _disk(path: Path, root: Path, megabytes: int) -> None:
    argv = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(path), f"{megabytes}M"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _project_disk(command: str) -> Iterator[Path]:
    """The checkout as git knows it (with what is new in it) and the environment this Python is of."""
    environment = Path(sys.prefix)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        names = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(names, cwd=CHECKOUT, check=True, capture_output=True).stdout.split(b"\0")
        for name in (os.fsdecode(name) for name in listed if name):
            if (CHECKOUT / name).is_file():
                (root / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, root / "checkout" / name)
        shutil.copytree(environment, root / "environment", symlinks=True)
        words = {"checkout": CHECKOUT, "environment": environment, "command": command, "status": _STATUS}
        (root / "run").write_text(_RUN.format(**words))
        size = sum(path.lstat().st_blocks for path in root.rglob("*")) // 2048
        _disk(Path(scratch, "disk"), root, size + size // 4 + _SPARE_MB)
        shutil.rmtree(root)
        yield Path(scratch, "disk")


def run(command: str, *, timeout: float = 1800.0, memory_mb: int = 1536) -> Outcome:
    """Boot, run a shell command in the checkout, power off.

    Args:
        command: what to do; the environment's Python is `sys.executable`, as here.
        timeout: seconds after which the machine is killed.

    Raises:
        AssertionError: the machine ended without telling a status; with what it printed.
    """
    base = base_disk()
    with _project_disk(command) as project, tempfile.TemporaryDirectory() as scratch:
        told, console = Path(scratch, "told"), Path(scratch, "console")
        argv = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
            *("-m", str(memory_mb), "-display", "none", "-nic", "none", "-no-reboot"),
            *("-kernel", str(base / "vmlinuz"), "-initrd", str(base / "initrd")),
            *("-append", "root=/dev/vda rw console=ttyS0 quiet psi=1 panic=-1"),
            *("-drive", f"file={base / 'disk'},format=raw,if=virtio,snapshot=on"),
            *("-drive", f"file={project},format=raw,if=virtio,readonly=on"),
            *("-serial", f"file:{console}", "-serial", f"file:{told}"),
        ]
        with suppress(subprocess.TimeoutExpired):  # what it has told by then says where it hangs
            subprocess.run(argv, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
        text = told.read_text(errors="replace").replace("\r\n", "\n")
        lines = text.rstrip().splitlines()
        if not lines or not lines[-1].startswith(_STATUS):
            shown = console.read_text(errors="replace")[-4000:]
            raise AssertionError(f"no exit status:\n{text[-4000:]}\n{shown}")
        return Outcome(int(lines[-1].removeprefix(_STATUS)), "\n".join(lines[:-1]))


def pytest_inside(paths: Sequence[str], *arguments: str, first: str = "", **variables: str) -> Outcome:
    """Run tests of this checkout in the second kernel, each file's fixtures and all.

    Args:
        arguments: further ones for pytest.
        first: shell commands that make the machine what the tests need.
        variables: of the environment.
    """
    options = ["-q", "-p", "no:cacheprovider", "--color=no", "--timeout=900", *arguments]
    words = [*(f"{name}={value}" for name, value in variables.items()), sys.executable, "-m", "pytest"]
    return run(first + shlex.join(["env", *words, *options, *paths]))
