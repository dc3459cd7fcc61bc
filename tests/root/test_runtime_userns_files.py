"""Pods with a user namespace: whose files are whose, inside and on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import runtime_kit
import userns_kit
from runtime_kit import Lab, no_leaks, user
from userns_kit import ALL, ROOT, maps, refused

from cri.runtime.security import CAPABILITIES
from cri.runtime.spec import IdMaps, IdRange, Mount, Tmpfs
from host import syscalls

lab, pod = runtime_kit.lab, userns_kit.pod


def owners_and_modes(folder: Path) -> dict[Path, tuple[int, int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (entry.st_uid, entry.st_gid, entry.st_mode) for path, entry in found.items()}


class TestFiles:
    async def test_image_files_and_what_is_made(self, pod: Lab) -> None:
        os.chown(pod.image / "etc/group", 1000, 1000)
        before = owners_and_modes(pod.image)
        script = """
            stat -c '%n %u:%g' / /bin/busybox /etc/passwd /etc/group /dev /dev/null /dev/console /work /mnt/x
            touch /made /suid; chmod 4755 /suid; chmod 600 /etc/passwd; rm /etc/group
            chown 1000:1000 /made; stat -c '%n %u:%g' /made /etc/passwd"""
        mount = Mount(source=pod.image, target="/mnt/x", idmaps=maps(), readonly=True)
        lines = await pod.sh(script, cwd="/work", mounts=(mount,), tty=True)
        expected = {"/etc/group": "1000:1000", "/made": "1000:1000", "/dev/console": "0:5"}
        assert len(lines) == 11
        assert lines == [f"{line.split()[0]} {expected.get(line.split()[0], '0:0')}" for line in lines]
        assert owners_and_modes(pod.image) == before
        upper = pod.base / "layers/c1/upper"
        owners = {
            name: (upper / name).stat().st_uid for name in ("", "made", "suid", "etc/passwd", "work", "dev")
        }
        assert owners == dict.fromkeys(owners, ROOT) | {"made": ROOT + 1000}
        assert (upper / "suid").stat().st_mode & stat.S_ISUID

    async def test_set_user_id_program_of_the_image(self, pod: Lab) -> None:
        program = pod.image / "tmp/su"  # this one wants to be root before it looks at anything
        program.write_bytes((pod.image / "bin/busybox").read_bytes())
        for mode, words in ((0o755, "must be suid"), (0o4755, "unknown user nobody-here")):
            program.chmod(mode)
            lines = await pod.sh("/tmp/su nobody-here 2>&1 || true", user=user(uid=1000))
            assert words in lines[0]

    async def test_volume_with_the_pods_maps(self, pod: Lab) -> None:
        volume = pod.base / "volume"
        volume.mkdir()
        (volume / "root").write_text("x")
        (volume / "bob").write_text("x")
        os.chown(volume / "bob", 1000, 2000)
        script = (
            "stat -c '%n %u:%g' /v/*; echo y > /v/root; echo new > /v/new; mkdir /v/dir; chown 5:6 /v/dir"
        )
        lines = await pod.sh(script, mounts=(Mount(source=volume, target="/v", idmaps=maps()),))
        assert lines == ["/v/bob 1000:2000", "/v/root 0:0"]
        found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in volume.iterdir()}
        assert found == {"root": (0, 0), "bob": (1000, 2000), "new": (0, 0), "dir": (5, 6)}

    async def test_volume_without_maps_is_nobodys(self, pod: Lab) -> None:
        volume = pod.base / "volume"
        volume.mkdir()
        (volume / "secret").write_text("x")
        (volume / "secret").chmod(0o600)
        script = "stat -c %u:%g /v; (echo > /v/new) 2>&1; cat /v/secret 2>&1; chown 0 /v 2>&1; true"
        lines = await pod.sh(script, mounts=(Mount(source=volume, target="/v"),), **ALL)
        assert lines[0] == "65534:65534"
        assert [line.rsplit(": ", 1)[1] for line in lines[1:]] == [
            "Permission denied",
            "Permission denied",
            "Operation not permitted",
        ]

    async def test_volume_with_maps_of_its_own(self, pod: Lab) -> None:
        volume = pod.base / "volume"
        volume.mkdir()
        span = (IdRange(inside=500, outside=ROOT + 1000, length=1),)
        os.chown(volume, 500, 500)
        mount = Mount(source=volume, target="/v", idmaps=IdMaps(uids=span, gids=span))
        lines = await pod.sh("stat -c %u:%g /v; touch /v/new", mounts=(mount,), user=user(uid=1000, gid=1000))
        assert lines == ["1000:1000"]
        assert (volume / "new").stat().st_uid == 500

    async def test_mapped_volume_in_a_plain_pod(self, lab: Lab) -> None:
        await lab.runtime.create_sandbox(lab.sandbox())
        volume = lab.base / "volume"
        volume.mkdir()
        mount = Mount(source=volume, target="/v", idmaps=maps(outside=1000, length=10))
        lines = await lab.sh("stat -c %u:%g /v; touch /v/new", mounts=(mount,), user=user(uid=1000, gid=1000))
        assert lines == ["1000:1000"]
        assert (volume / "new").stat().st_uid == 0

    async def test_file_system_that_cannot_be_mapped(self, pod: Lab) -> None:
        with no_leaks(pod):
            mount = Mount(source=Path("/sys/kernel"), target="/v", idmaps=maps())
            words = await refused(pod, "true", mounts=(mount,))
            await pod.runtime.remove_container("pod", "c1")
        assert "ID-mapped mount of /sys/kernel at /v: its file system cannot be ID-mapped" in words

    async def test_shared_memory_tmpfs_and_queues(self, pod: Lab) -> None:
        script = """
            stat -c '%n %u:%g %a' /dev/shm /dev/mqueue /own; echo x > /dev/shm/a; stat -c %u:%g /dev/shm/a
            mount -t tmpfs none /tmp && touch /tmp/x && echo mounted"""
        lines = await pod.sh(script, tmpfs=(Tmpfs(target="/own", mode=0o700),), **ALL)
        assert lines == ["/dev/shm 0:0 1777", "/dev/mqueue 0:0 1777", "/own 0:0 700", "0:0", "mounted"]
        assert (pod.base / "state/sandboxes/pod/shm/a").stat().st_uid == ROOT

    async def test_what_is_read_only_stays_so(self, pod: Lab) -> None:
        volume = pod.base / "volume"
        volume.mkdir()
        script = """
            for path in / /v /proc/sys /sys; do mount -o remount,bind,rw $path 2>&1; done
            umount /proc/keys 2>&1; umount /proc/sys 2>&1; umount /v 2>&1
            for path in /x /v/x; do (echo > $path) 2>&1; done; true"""
        mount = Mount(source=volume, target="/v", readonly=True, idmaps=maps())
        lines = await pod.sh(script, mounts=(mount,), readonly_rootfs=True, capabilities=CAPABILITIES)
        words = [line.rsplit(": ", 1)[1] for line in lines]
        refused = ["permission denied (are you root?)"] * 4 + ["Invalid argument"] * 3
        assert words == [*refused, *["Read-only file system"] * 2], lines
        assert os.listdir(volume) == []

    async def test_bidirectional_mount_is_refused(self, pod: Lab) -> None:
        mount = Mount(source=pod.base, target="/v", propagation="shared")
        with pytest.raises(ValueError, match="mount /v: bidirectional"):
            await pod.runtime.create_container(pod.container("true", mounts=(mount,)))

    async def test_mounts_of_the_host_come_in(self, pod: Lab) -> None:
        volume = pod.base / "volume"
        (volume / "sub").mkdir(parents=True)
        syscalls.mount(volume, volume, "", syscalls.MS_BIND)
        syscalls.mount("", volume, "", syscalls.MS_SHARED)
        try:
            mount = Mount(source=volume, target="/v", propagation="slave", idmaps=maps())
            spec = await pod.start("sleep", "1000", mounts=(mount,))
            syscalls.mount("late", volume / "sub", "tmpfs")
            (volume / "sub/late").touch()
            done = await pod.runtime.exec_sync("pod", spec.id, ("ls", "/v/sub"), timeout=60)
            assert done.stdout == b"late\n"
        finally:
            syscalls.umount(volume, syscalls.MNT_DETACH)
