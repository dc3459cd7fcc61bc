"""Filling a lab's registry: the standard images, made once into the cache, and CoreDNS.

Each lab has a registry of its own, so that what is pushed to one is gone with it; the layers are hard links
to those in the cache, so a lab's registry costs no time and no space.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from deploy.labkit import images, oci, processes, versions
from deploy.labkit.errors import LabError
from deploy.labkit.layout import Layout
from deploy.labkit.progress import Note, Progress


def fill_cache(layout: Layout, progress: Progress) -> Path:
    """Make the images once; the folder of the cached registry content. CoreDNS must be built already.

    The folder is named after the code that makes the images: changed code makes them anew.
    """
    cached = layout.cache / f"registry-{_recipe()}"
    marker = cached / ".complete"
    if not marker.exists():
        with progress.step("images") as note:
            cached.mkdir(parents=True, exist_ok=True)
            _standard_images(layout, cached, note)
            _build_coredns(layout, cached)
            _build_pause(cached)
            marker.touch()
    return cached


def _recipe() -> str:
    sources = [Path(module.__file__ or "") for module in (images, oci, versions)] + [Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def seed_registry(layout: Layout, progress: Progress) -> None:
    """Busybox, nginx, pause and CoreDNS in the lab's registry."""
    copy_store(fill_cache(layout, progress), layout.registry)


def _standard_images(layout: Layout, store: Path, note: Note) -> None:
    packages = layout.cache / "packages"
    try:
        images.ensure_standard_images(packages, store, note)
    except RuntimeError:
        # A fresh machine has no package lists yet.
        note("fetching package lists")
        processes.run(["apt-get", "update", "-qq"], timeout=300)
        try:
            images.ensure_standard_images(packages, store, note)
        except RuntimeError as exc:
            raise LabError(f"images cannot be made: {exc}") from exc


def _build_pause(store: Path) -> None:
    """The image whose only work is to be there, for stock nodes; nodelet needs none."""
    busybox = Path(shutil.which("busybox", path=processes.CLEAN_PATH) or "/usr/bin/busybox")
    if b"/lib64/ld-linux" in busybox.read_bytes()[:4096]:
        raise LabError("the busybox of this machine is not static; apt-get install busybox-static")
    name, _, tag = versions.PAUSE_IMAGE.rpartition(":")
    entrypoint = ["/busybox", "sleep", "infinity"]
    images.build_image(store, name, tags=[tag], files={"/busybox": busybox}, entrypoint=entrypoint)


def _build_coredns(layout: Layout, store: Path) -> None:
    name, _, tag = versions.COREDNS_IMAGE.rpartition(":")
    images.build_image(
        store,
        name,
        tags=[tag],
        files={"/coredns": layout.binary(versions.COREDNS_SERVER)},
        entrypoint=["/coredns"],
    )


def copy_store(source: Path, target: Path) -> None:
    """Add a registry's content to another on the same disk: layers as hard links, names as copies."""
    for folder, _, names in os.walk(source):
        there = target / Path(folder).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (there / name).exists():
                continue
            if there.parts[-2:] == ("blobs", "sha256"):
                (there / name).hardlink_to(Path(folder) / name)
            else:
                shutil.copy2(Path(folder) / name, there / name)
