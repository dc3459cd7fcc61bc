"""Images on real overlay mounts, with root's rights, limits and a TCP registry in a private network."""

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from images_kit import FakeRegistry, archive, image, member, opened_store, pax, serving

from cri.images.deferred import Deferred, finish
from cri.images.errors import StoreFull
from cri.images.rootdir import RootDir
from cri.images.store import ImageStore
from cri.images.tarstream import Entry
from deploy.labkit import oci, registry
from host import syscalls

REF = "registry.test/app:1"
DIR = b"5"


@pytest.fixture
def tmpfs(tmp_path):
    """Makes tmpfs mounts of a given size, unmounted afterwards."""
    mounted = []

    def make(options: str) -> Path:
        target = tmp_path / f"tmpfs{len(mounted)}"
        target.mkdir()
        syscalls.mount("tmpfs", str(target), "tmpfs", 0, options)
        mounted.append(target)
        return target

    yield make
    for target in mounted:
        syscalls.umount(str(target), syscalls.MNT_DETACH)


async def pulled(folder: Path, *layers: bytes):
    """A store in which REF with these layers has been pulled."""
    fake = FakeRegistry()
    fake.add(image(*layers), "1")
    async with serving(fake, folder) as session, opened_store(folder, session) as store:
        got = await store.pull(REF)
        return store.layers(got.id)


def overlay(lower: tuple[Path, ...], tmpfs) -> Path:
    base = tmpfs("size=16m")
    for name in ("upper", "work", "merged"):
        (base / name).mkdir()
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={base}/upper,workdir={base}/work"
    syscalls.mount("overlay", str(base / "merged"), "overlay", 0, options)
    return base / "merged"


async def test_whiteouts_and_opaque_directories_hide_in_overlayfs(tmp_path, tmpfs):
    base = archive(
        member(b"etc/", kind=DIR, mode=0o755),
        member(b"etc/old", b"1"),
        member(b"etc/kept", b"1"),
        member(b"cache/", kind=DIR, mode=0o755),
        member(b"cache/a", b"1"),
    )
    top = archive(
        member(b"etc/.wh.old"),
        member(b"cache/", kind=DIR, mode=0o700),
        member(b"cache/.wh..wh..opq"),
        member(b"cache/b", b"2"),
    )
    merged = overlay(await pulled(tmp_path, base, top), tmpfs)
    try:
        assert sorted(os.listdir(merged / "etc")) == ["kept"]
        assert os.listdir(merged / "cache") == ["b"]
    finally:
        syscalls.umount(str(merged), syscalls.MNT_DETACH)


async def test_owners_devices_and_capabilities(tmp_path):
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    layer = archive(
        pax(uid=b"70000", gid=b"70001", SCHILY__xattr__security__capability=capability),
        member(b"ping", b"x", mode=0o6755),
        member(b"null", kind=b"3", mode=0o666, device=(1, 3)),
        pax(SCHILY__xattr__trusted__overlay__opaque=b"y"),
        member(b"d/", kind=DIR, mode=0o755),
    )
    (path,) = await pulled(tmp_path, layer)
    facts = (path / "ping").stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (70000, 70001, 0o6755)
    assert os.getxattr(path / "ping", "security.capability") == capability
    assert (path / "null").stat().st_rdev == os.makedev(1, 3)
    assert os.listxattr(path / "d") == []


async def test_only_root_can_enter_the_store(tmp_path):
    (path,) = await pulled(tmp_path, archive(member(b"su", b"x", mode=0o4755)))
    store = path.parents[2]
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize("options", ["size=8m", "nr_inodes=60"])
async def test_a_full_disk_leaves_the_store_whole(tmp_path, tmpfs, options):
    folder = tmpfs(options)
    fake = FakeRegistry()
    small = image(archive(member(b"small", b"x")))
    fake.add(small, "1")
    files = [member(b"f%d" % n, os.urandom(100_000)) for n in range(200)]
    fake.add(image(archive(*files)), "2")
    async with serving(fake, tmp_path) as session, opened_store(folder, session) as store:
        got = await store.pull(REF)
        before = sorted(folder.rglob("*"))
        with pytest.raises(StoreFull, match=os.strerror(errno.ENOSPC).lower()) as caught:
            await store.pull("registry.test/app:2")
        assert ("inodes" in str(caught.value)) == options.startswith("nr_inodes")
        await store.collect()
        assert store.list() == (got,)
        assert os.listdir(folder / "images/tmp") == []
        assert sorted(folder.rglob("*")) == before
        assert (await store.pull(REF)).id == got.id


async def test_the_lab_registry_over_tcp_and_a_killed_daemon(tmp_path):
    tree = tmp_path / "image"
    (tree / "rootfs/bin").mkdir(parents=True)
    (tree / "rootfs/bin/tool").write_text("#!/bin/sh\n")
    (tree / "rootfs/big").write_bytes(os.urandom(3 << 20))
    (tree / "image.toml").write_text('cmd = ["tool"]\nenv = { A = "1" }\nexposed = ["80/tcp"]\n')
    digest = oci.push_directory(tmp_path / "registry", tree, "docker.io/me/tool", tags=("1",))
    runner = await registry.serve(tmp_path / "registry", port=0)
    try:
        certs = tmp_path / "certs/_default"
        certs.mkdir(parents=True)
        server = f"http://127.0.0.1:{runner.addresses[0][1]}"
        (certs / "hosts.toml").write_text(f'server = "{server}"\n')
        await asyncio.to_thread(_pull_and_die, tmp_path)
        store = ImageStore(tmp_path / "images", registry_config_dir=tmp_path / "certs")
        await store.open()
        assert os.listdir(tmp_path / "images/tmp") == []
        got = await store.pull("me/tool:1")
        assert got.repo_digests == (f"docker.io/me/tool@{digest}",)
        assert (got.config.cmd, got.config.env, got.config.exposed_ports) == (
            ("tool",),
            ("A=1",),
            ("80/tcp",),
        )
        assert (store.layers(got.id)[0] / "big").stat().st_size == 3 << 20
        await store.close()
    finally:
        await runner.cleanup()


def _pull_and_die(tmp_path: Path) -> None:
    """Another process pulls and is killed at its first progress report."""
    code = """
import asyncio, os, sys
from pathlib import Path
from cri.images.store import ImageStore
from cri.images.tarstream import Entry
async def main():
    root = Path(sys.argv[1])
    store = ImageStore(root / "images", registry_config_dir=root / "certs")
    await store.open()
    await store.pull("me/tool:1", progress=lambda p: p.bytes_done and os.kill(os.getpid(), 9))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -9


def unpacking(tmp_path: Path, spy: str) -> dict[str, Any]:
    """What a spy in the place of the applier found out; its text is `def spy(self, stream)`'s body."""
    code = f"""
import json, os, socket, sys
from cri.images import apply, sandbox, unpack
def tried(work):
    try:
        work()
    except OSError as exc:
        return exc.errno
def spy(self, stream):
    facts = {{}}
{textwrap.indent(textwrap.dedent(spy), "    ")}
    sys.stderr.write(json.dumps(facts))
    sys.stderr.flush()
    os._exit(3)
confine = sandbox._confine
def confined(root, rights):
    global STATUS, NAMESPACE
    STATUS, NAMESPACE = open("/proc/self/status"), os.stat("/proc/self/ns/user").st_ino
    confine(root, rights)
sandbox._confine = confined
OUTSIDE = os.open(sys.argv[1], os.O_RDONLY)
apply.Applier.apply = spy
unpack.main()
"""
    for name in ("diff", "trash", "below", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "blob").write_bytes(archive(member(b"f")))
    request = {
        "blob": f"{tmp_path}/blob",
        "blob_digest": "x",
        "blob_size": 1,
        "diff_id": "x",
        "target": str(tmp_path),
        "parents": [f"{tmp_path}/below"],
    }
    done = subprocess.run(
        [sys.executable, "-c", code, f"{tmp_path}/outside"],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b'"corrupt"' in done.stdout, done  # a worker without an answer is the layer's fault
    facts: dict[str, Any] = json.loads(done.stderr)
    return facts


def test_the_unpack_worker_has_no_rights_of_its_own(tmp_path):
    """Its root is the layer; its few capabilities hold in a user namespace of its own."""
    facts = unpacking(
        tmp_path,
        """
        status = dict(line.split(":", 1) for line in STATUS.read().splitlines() if ":" in line)
        facts["root"] = os.listdir("/")
        facts["caps"] = [status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")]
        facts["userns"] = NAMESPACE
        facts["nnp"] = status["NoNewPrivs"].strip()
        facts["interfaces"] = len(socket.if_nameindex())
        """,
    )
    assert facts["root"] == []
    assert {int(mask, 16) for mask in facts["caps"]} == {0x8000001B}
    assert facts["nnp"] == "1"
    assert facts["userns"] != os.stat("/proc/self/ns/user").st_ino
    assert facts["interfaces"] <= 1


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("block device", "os.mknod('sda', 0o60600, os.makedev(8, 0))"),
        ("character device", "os.mknod('mem', 0o20600, os.makedev(1, 1))"),
        ("overlay mark", "os.setxattr('/', 'trusted.overlay.opaque', b'y')"),
        ("file in a lower layer", "os.open('f', os.O_CREAT | os.O_WRONLY, dir_fd=self._lower._layers[0].fd)"),
        ("file outside by a leaked descriptor", "os.open('f', os.O_CREAT | os.O_WRONLY, dir_fd=OUTSIDE)"),
        ("reading outside by a leaked descriptor", "os.listdir(os.open('..', os.O_RDONLY, dir_fd=OUTSIDE))"),
        ("a chroot of its own", "os.chroot('/')"),
        ("program", "os.posix_spawn('/f', ['f'], {})"),
    ],
)
def test_the_unpack_worker_may_not(tmp_path, what, code):
    facts = unpacking(tmp_path, f"facts['errno'] = tried(lambda: {code})")
    assert facts["errno"] in (errno.EPERM, errno.EACCES, errno.ENOENT), what
    assert os.listdir(tmp_path / "outside") == []


async def test_hostile_lists_stay_inside(tmp_path):
    """What the worker asks to be finished is resolved in the layer, whatever links it has put there."""
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/file").touch(0)
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "out").symlink_to(f"{tmp_path}/canary")
    (layer / "up").symlink_to("../canary")
    device = Entry(kind=b"3", name=b"", mode=0o666, major=1, minor=3)
    places = [(b"out",), (b"up",), (b"..", b"canary")]
    deferred = Deferred(opaque=set(places), devices={(*place, b"file"): device for place in places})
    root = RootDir(layer)
    finish(root, Deferred.from_json(deferred.to_json()), opaque_name="trusted.overlay.opaque")
    root.close()
    assert os.listxattr(tmp_path / "canary") == []
    assert stat.S_ISREG((tmp_path / "canary/file").stat().st_mode)
