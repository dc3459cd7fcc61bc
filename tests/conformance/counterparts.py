"""The runtimes that the conformance cases run against, and the images they need.

nodelet-cri always; containerd with runc and the reference plugins where the lab's cache has them; instead of
both, any runtime whose socket is in $CRI_CONFORMANCE_ENDPOINT (unix:///PATH). Such a runtime is used where
it is, in this machine's namespaces: run the cases on its node, as root, with `IMAGES` in its store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import crinode
from criclient import BUSYBOX, CriClient

from deploy.labkit import stocknode, versions
from deploy.labkit.images import Entry, build_image
from deploy.labkit.layout import Layout
from host import syscalls
from host.cgroups import Cgroups
from tests.bench import runtimes

ENDPOINT = "CRI_CONFORMANCE_ENDPOINT"
NUMBERED = "registry.test/user-number:1"
NAMED = "registry.test/user-name:1"
GROUPED = "registry.test/user-grouped:1"
DATA = "registry.test/data:1"
VOLUME = "registry.test/volume:1"
IMAGES = (BUSYBOX, NUMBERED, NAMED, GROUPED, DATA, VOLUME)
PULLED = ("registry.test/pulled:1", "registry.test/pulled:2", "other.test/pulled:1")
"""One image under three names; not in any store before a test pulls it."""

_APPLETS = (
    "cat echo env grep head hostname id ip kill ls mkdir mount nc ps pwd seq sh sleep stty tail touch wget"
)
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nmail:x:8:8:mail:/var/mail:/bin/sh\n"
_GROUP = b"root:x:0:\nmail:x:8:\nextra:x:50:mail\n"


def build_images(store: Path) -> None:
    """Fill a registry's store with `IMAGES`, `PULLED` and the pause image that containerd needs."""
    shell = Entry(data=Path("/bin/busybox").read_bytes(), mode=0o755)
    files: dict[str, Path | bytes | Entry] = {
        "bin/busybox": shell,
        "bin/true": shell,  # a file of its own, so that masking it masks nothing else
        "tmp": Entry(directory=True, mode=0o1777),
        "etc/passwd": _PASSWD,
        "etc/group": _GROUP,
    }
    files |= {f"bin/{name}": Entry(link="/bin/busybox") for name in _APPLETS.split()}
    data: dict[str, bytes | Entry] = {"data/file": b"from the image", "data/link": Entry(link="/etc/passwd")}
    pause, _, pause_tag = versions.PAUSE_IMAGE.rpartition(":")

    def build(
        name: str,
        *tags: str,
        cmd: str = "sleep 1000",
        user: str = "",
        volumes: tuple[str, ...] = (),
        more: dict[str, bytes | Entry] | None = None,
    ) -> None:
        build_image(
            store,
            name,
            tags=tags,
            files=files | (more or {}),
            cmd=cmd.split(),
            env={"PATH": "/bin", "FROM": "image"},
            user=user,
            volumes=volumes,
        )

    build("registry.test/busybox", "1")
    build(pause, pause_tag, cmd="tail -f /dev/null")
    build("registry.test/user-number", "1", user="1002")
    build("registry.test/user-name", "1", user="mail")
    build("registry.test/user-grouped", "1", user="8:root")
    build("registry.test/data", "1", more=data)
    build("registry.test/volume", "1", more=data, volumes=("/data",))
    for name, tags in (("registry.test/pulled", ("1", "2")), ("other.test/pulled", ("1",))):
        build(name, *tags, more={"pulled": b""})


def missing_for_containerd() -> list[str]:
    """The programs that the lab's cache lacks for the containerd leg (`deploy/lab` builds them)."""
    lab = Layout()
    projects = (versions.CONTAINERD_RUNTIME, versions.RUNC_RUNTIME, versions.REFERENCE_CNI)
    paths = [lab.binary(project, name) for project in projects for name in project.programs]
    return [path.name for path in paths if not path.exists()]


@contextmanager
def containerd(folder: Path, *, registry: int) -> Iterator[CriClient]:
    """containerd in this process's namespaces, with a /run of its own."""
    syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=0755")
    try:
        parent = f"/nodelet-test-{os.getpid()}-containerd"
        started = runtimes.start_stock(folder, registry=registry, lab=Layout())
        try:
            socket = Path(stocknode.SOCKET.removeprefix("unix://"))
            yield CriClient(socket, name="containerd", cgroup_parent=parent, logs=folder / "logs")
        finally:
            started.stop()
            Cgroups().remove(parent)
    finally:
        syscalls.umount("/run", syscalls.MNT_DETACH)


def external(endpoint: str, logs: Path) -> CriClient:
    """A runtime that runs already."""
    parent = f"/nodelet-test-{os.getpid()}"
    return CriClient(Path(endpoint.removeprefix("unix://")), name="external", cgroup_parent=parent, logs=logs)


@contextmanager
def ours(folder: Path, *, registry: int) -> Iterator[CriClient]:
    """nodelet-cri of this checkout."""
    folder.mkdir()
    with crinode.running(folder, registry=registry) as node:
        yield node
