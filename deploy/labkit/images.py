"""Container images made on the spot from Debian packages, for machines without a registry at hand.

`ensure_standard_images` fills a `registry.RegistryStore` with docker.io/library/busybox and
docker.io/library/nginx; `build_image` packs any file map or directory.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Progress = Callable[[str], None]


def build_image(
    store_dir: Path,
    name: str,
    *,
    tags: Sequence[str] = ("latest",),
    files: "Mapping[str, object] | None" = None,
    tree: Path | None = None,
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    user: str = "",
    workdir: str = "",
    exposed: Sequence[str] = (),
    volumes: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    stop_signal: str = "",
    compression: str = "gzip",
) -> str:
    """Pack one image into the registry store and return its manifest digest.

    Args:
        store_dir: root of a `registry.RegistryStore`.
        name: full repository name, such as `docker.io/coredns/coredns`.
        tags: tags to point at it.
        files: path in the image -> `Path` (host file, mode kept), bytes (0644), or `Entry`.
        tree: a directory that becomes the root file system; `files` go over it.
        env: variables of the image.
        exposed: `80/tcp`.
        compression: gzip, zstd or none.
    """
    raise NotImplementedError


def ensure_standard_images(
    cache_dir: Path, store_dir: Path, progress: Progress = lambda text: None
) -> dict[str, str]:
    """Make sure the store has busybox and nginx; returns reference -> manifest digest.

    Debian packages are taken from `cache_dir`, or fetched there by `apt-get download`. A second call
    finds everything in place and only reads.
    """
    raise NotImplementedError


def push_directory(store_dir: Path, image_dir: Path, name: str, *, tags: Sequence[str] = ("latest",)) -> str:
    """Pack a directory with `rootfs/` and `image.toml` (or `config.json`) into the store; manifest digest."""
    raise NotImplementedError
