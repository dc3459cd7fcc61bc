"""How long an image of about 300 MB takes from PullImage to ready layers: nodelet-cri beside containerd.

Both pull the same bytes over loopback from one registry, in turns, and unpack them to the same disk. The
content is this machine's own programs and libraries, so that it compresses as real images do. Each round has
an image of its own and nothing is removed in between: ext4 searches long for an inode (200 us instead of 10)
where many were freed within the last half minute (recently_deleted in fs/ext4/ialloc.c).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import zstandard

from cri.images import manifest
from deploy.labkit.layout import Layout
from deploy.labkit.registry import RegistryStore
from proto.cri import runtime_pb2 as pb
from tests.bench import runtimes
from tests.bench.report import Figure, percentile
from tests.bench.runtime import throw_away_namespaces
from tests.bench.runtimes import Runtime

ROUNDS = 3
_TOTAL = 300_000_000
_LAYERS = 3
_SHAPES = {"12 files": 12, "20,000 files": 20_000}
_CORPUS = (Path("/usr/lib"), Path("/usr/bin"), Path("/usr/share"))
_PULL_SECONDS = 600
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 6),
    "zstd": lambda data: zstandard.ZstdCompressor(level=3, threads=-1).compress(data),
}


def _corpus(size: int) -> bytes:
    """Bytes of files of this machine, in a fixed order."""
    data = bytearray()
    for top in _CORPUS:
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    data += path.read_bytes()
                if len(data) >= size:
                    return bytes(data[:size])
    return bytes(data)


def _tars(corpus: bytes, files: int, mark: str) -> Iterator[bytes]:
    """Layers with the corpus cut into equal files, a hundred to a folder; `mark` makes them new."""
    share, piece = files // _LAYERS, len(corpus) // files
    for layer in range(_LAYERS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            _add_folder(tar, "opt")  # builders list every folder on the way to what changed
            for number in range(layer * share, (layer + 1) * share):
                folder = f"opt/part-{mark}-{number // 100}"
                if number == layer * share or number % 100 == 0:
                    _add_folder(tar, folder)
                entry = tarfile.TarInfo(f"{folder}/file-{number}")
                entry.size, entry.mode, entry.mtime = piece, 0o644, 1_700_000_000
                tar.addfile(entry, io.BytesIO(corpus[number * piece : (number + 1) * piece]))
        yield buffer.getvalue()


def _add_folder(tar: tarfile.TarFile, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(entry)


def publish(store: RegistryStore, name: str, tars: Sequence[bytes], compression: str) -> None:
    """Put an image with these layers into a registry."""
    layers, diff_ids = [], []
    for tar in tars:
        packed = _COMPRESSIONS[compression](tar)
        layers.append(_described(store, packed, f"{_LAYER_TYPE}+{compression}"))
        diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
    config = {
        "architecture": manifest.this_platform().architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "config": _described(store, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    data = json.dumps(document).encode()
    store.put_manifest(name, data, media_type=manifest.OCI_MANIFEST, tags=("1",))


def _described(store: RegistryStore, data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": store.put_blob(data), "size": len(data)}


def measure(sides: Sequence[Runtime], images: Sequence[str]) -> list[list[tuple[float, float]]]:
    """Seconds and seconds of CPU of the pull of each image, for each runtime."""
    costs: list[list[tuple[float, float]]] = [[] for _ in sides]
    for image in images:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        for side, kept in zip(sides, costs, strict=True):
            os.sync()  # what the other one wrote is not to be paid for here
            began, used = time.perf_counter(), _cpu(side.process.pid)
            side.images.PullImage(request, timeout=_PULL_SECONDS)
            kept.append((time.perf_counter() - began, _cpu(side.process.pid) - used))
    return costs


def _cpu(pid: int) -> float:
    """Seconds of CPU of a process and of its children that have ended (proc_pid_stat(5), fields 14 to 17)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def run(lab: Layout, *, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `images`. Without containerd in the lab's cache there is no second column."""
    figures = []
    corpus = _corpus(_TOTAL)
    with ExitStack() as stack:
        folder = stack.enter_context(throw_away_namespaces())
        store = RegistryStore(root=folder / "registry")
        sides = runtimes.start_sides(folder, lab, stack=stack, say=say)
        for shape, files in _SHAPES.items():
            for compression in _COMPRESSIONS:
                what = f"{shape}, {compression}"
                say(f"{what}: {ROUNDS} pulls on each runtime, in turns")
                costs = measure(sides, _publish_rounds(store, corpus, files, compression))
                for at, unit in enumerate(("", ", CPU")):
                    ours, *stock = (percentile([cost[at] for cost in kept], 0.5) for kept in costs)
                    title = f"pull and unpack 300 MB, {what}{unit}"
                    figures.append(Figure(what=title, ours=ours, stock=stock[0] if stock else None, unit="s"))
    return figures


def _publish_rounds(store: RegistryStore, corpus: bytes, files: int, compression: str) -> list[str]:
    """An image for each round; their names."""
    names = []
    for number in range(ROUNDS):
        name = f"registry.test/{compression}-{files}-{number}"
        publish(store, name, list(_tars(corpus, files, f"{compression}-{number}")), compression)
        names.append(f"{name}:1")
    return names
