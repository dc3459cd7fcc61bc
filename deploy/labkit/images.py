"""Container images made on the spot from Debian packages, for machines without a registry at hand.

`ensure_standard_images` fills a `registry.RegistryStore` with docker.io/library/busybox and
docker.io/library/nginx; `build_image` packs any directory or file map; `push_directory` packs a folder
with a `rootfs/` and an `image.toml`. Images are reproducible: same input, same digests.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

if __package__:
    from deploy.labkit.registry import RegistryStore
else:
    from registry import RegistryStore

Progress = Callable[[str], None]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_EPOCH = 1_700_000_000
_NGINX_PACKAGES = ("nginx-light", "nginx-common")
_NGINX_CONF = b"""\
user www-data;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 512; }
http {
    include /etc/nginx/mime.types;
    access_log /dev/stdout;
    server {
        listen 80;
        server_name localhost;
        location / { root /usr/share/nginx/html; index index.html; }
    }
}
"""
_NGINX_PAGE = b"""\
<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One member of an image's file map, when content alone does not say enough."""

    data: bytes = b""
    link: str = ""
    """Target: makes a symbolic link."""
    directory: bool = False
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


def build_image(
    store_dir: Path,
    name: str,
    *,
    tags: Sequence[str] = ("latest",),
    files: Mapping[str, Path | bytes | Entry] | None = None,
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
        files: path in the image -> `Path` (a host file, its mode kept), bytes (mode 0644), or `Entry`.
        tree: a directory that becomes the root file system; `files` are a second layer over it.
        entrypoint: start of the command line; likewise `cmd`, `env`, `user`, `workdir`, `stop_signal`.
        exposed: ports such as `80/tcp`.
        volumes: paths of anonymous volumes.
        compression: gzip, zstd or none.
    """
    store = RegistryStore(root=store_dir)
    layers = []
    if tree is not None:
        layers.append(_add_layer(store, _tree_members(tree), compression))
    if files or not layers:
        layers.append(_add_layer(store, _file_members(files or {}), compression))
    inner: dict[str, Any] = {
        "Env": [f"{key}={value}" for key, value in (env or {}).items()],
        "Entrypoint": list(entrypoint),
        "Cmd": list(cmd),
        "User": user,
        "WorkingDir": workdir,
        "ExposedPorts": {port: {} for port in exposed},
        "Volumes": {path: {} for path in volumes},
        "Labels": dict(labels or {}),
        "StopSignal": stop_signal,
    }
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {key: value for key, value in inner.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]},
        "history": [{"created_by": "nodelet lab"} for _ in layers],
    }
    document = _json(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": store.put_blob(document), "size": len(document)},
        "layers": [{key: layer[key] for key in ("mediaType", "digest", "size")} for layer in layers],
    }
    return store.put_manifest(name, _json(manifest), media_type=MANIFEST, tags=tuple(tags))


def ensure_standard_images(
    cache_dir: Path, store_dir: Path, progress: Progress = lambda text: None
) -> dict[str, str]:
    """Make sure the store has busybox and nginx; returns reference -> manifest digest.

    Debian packages are taken from `cache_dir`, or fetched there by `apt-get download`. A second call
    finds everything in place and only reads. RuntimeError when a package cannot be had.
    """
    store = RegistryStore(root=store_dir)
    images: dict[str, str] = {}
    for name, tags, build in (
        ("docker.io/library/busybox", ("latest", "1.36", "1.28"), _build_busybox),
        ("docker.io/library/nginx", ("latest", "alpine", "stable"), _build_nginx),
    ):
        found = [store.resolve(name, tag) for tag in tags]
        if not all(found):
            progress(f"building image {name}")
            build(cache_dir, store_dir, name, tags)
        for tag in tags:
            resolved = store.resolve(name, tag)
            if resolved:
                images[f"{name}:{tag}"] = resolved[0]
    return images


def push_directory(store_dir: Path, image_dir: Path, name: str, *, tags: Sequence[str] = ("latest",)) -> str:
    """Pack a directory with `rootfs/` and `image.toml` or `config.json` into the store; manifest digest.

    The file has the words of `build_image` as keys: entrypoint, cmd, env, user, workdir, exposed, volumes,
    labels, stop_signal. Both files may be missing. ValueError for an unknown key.
    """
    settings: dict[str, Any] = {}
    if (image_dir / "image.toml").is_file():
        settings = tomllib.loads((image_dir / "image.toml").read_text())
    elif (image_dir / "config.json").is_file():
        settings = json.loads((image_dir / "config.json").read_text())
    known = {"entrypoint", "cmd", "env", "user", "workdir", "exposed", "volumes", "labels", "stop_signal"}
    if unknown := settings.keys() - known:
        raise ValueError(f"{image_dir}: unknown setting {sorted(unknown)[0]!r}")
    return build_image(store_dir, name, tags=tags, tree=image_dir / "rootfs", **settings)


def _build_busybox(cache_dir: Path, store_dir: Path, name: str, tags: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=_made(cache_dir)) as work:
        binary = _busybox(cache_dir, Path(work) / "deb")
        applets = subprocess.run(
            [binary, "--list"], capture_output=True, check=True, text=True
        ).stdout.split()
        files: dict[str, Path | bytes | Entry] = dict(_base_files())
        files["bin/busybox"] = Entry(data=binary.read_bytes(), mode=0o755)
        for applet in applets:
            if applet != "busybox":
                files[f"bin/{applet}"] = Entry(link="/bin/busybox")
        build_image(
            store_dir,
            name,
            tags=tags,
            files=files,
            cmd=["sh"],
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )


def _build_nginx(cache_dir: Path, store_dir: Path, name: str, tags: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=_made(cache_dir)) as work:
        deb = Path(work) / "deb"
        packages = _closure(_NGINX_PACKAGES[0])
        _unpack_packages(cache_dir, packages, deb)
        files: dict[str, Path | bytes | Entry] = dict(_base_files())
        for path in _needed_by(deb, deb / "usr/sbin/nginx"):
            files[str(path.relative_to(deb))] = path
        files["etc/nginx/mime.types"] = deb / "etc/nginx/mime.types"
        files["etc/nginx/nginx.conf"] = _NGINX_CONF
        files["usr/share/nginx/html/index.html"] = _NGINX_PAGE
        for folder in ("body", "fastcgi", "proxy", "scgi", "uwsgi"):
            files[f"var/lib/nginx/{folder}"] = Entry(directory=True, mode=0o700, uid=33)
        files["var/log/nginx/access.log"] = Entry(link="/dev/stdout")
        files["var/log/nginx/error.log"] = Entry(link="/dev/stderr")
        files.update(_busybox_shell(cache_dir, Path(work)))
        build_image(
            store_dir,
            name,
            tags=tags,
            files=files,
            entrypoint=["/usr/sbin/nginx"],
            cmd=["-c", "/etc/nginx/nginx.conf"],
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            exposed=["80/tcp"],
            stop_signal="SIGQUIT",
        )


def _busybox_shell(cache_dir: Path, work: Path) -> dict[str, Entry]:
    """A shell and the tools people use in `kubectl exec`, for images that lack them."""
    files = {"bin/busybox": Entry(data=_busybox(cache_dir, work / "shell").read_bytes(), mode=0o755)}
    for applet in ("sh", "ls", "cat", "echo", "env", "sleep", "wget", "ps", "id", "hostname", "kill", "ip"):
        files[f"bin/{applet}"] = Entry(link="/bin/busybox")
    return files


def _busybox(cache_dir: Path, work: Path) -> Path:
    """The static busybox program, unpacked below `work`."""
    _unpack_packages(cache_dir, ("busybox-static",), work)
    return next(path for path in (work / "bin/busybox", work / "usr/bin/busybox") if path.is_file())


def _base_files() -> dict[str, Entry]:
    passwd = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"
    passwd += b"nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    group = b"root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
    folders = (
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "proc",
        "root",
        "run",
        "sys",
        "usr/bin",
        "usr/sbin",
        "var/log",
    )
    files = {folder: Entry(directory=True, mode=0o755) for folder in folders}
    files["tmp"] = Entry(directory=True, mode=0o1777)
    files["etc/passwd"] = Entry(data=passwd)
    files["etc/group"] = Entry(data=group)
    files["etc/nsswitch.conf"] = Entry(data=b"hosts: files dns\n")
    return files


def _closure(package: str) -> tuple[str, ...]:
    """A package and everything it depends on, by apt's own account."""
    argv = ["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"]
    argv += ["--no-breaks", "--no-replaces", "--no-enhances", package]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    skip = (
        "debconf",
        "perl",
        "cdebconf",
        "dpkg",
        "iproute2",
        "init-system-helpers",
        "libdb",
        "libbpf",
        "tar",
    )
    names = {line.strip() for line in done.stdout.splitlines() if line[:1].isalnum()}
    kept = sorted(name for name in names if ":" not in name and not name.startswith(skip))
    return tuple(kept)


def _unpack_packages(cache_dir: Path, packages: Sequence[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for deb in _package_files(cache_dir, packages):
        subprocess.run(["dpkg-deb", "-x", deb, target], check=True, capture_output=True)


def _package_files(cache_dir: Path, packages: Sequence[str]) -> list[Path]:
    """The packages' files, fetched in one go where missing."""
    folder = _made(cache_dir / "debs")
    missing = [name for name in packages if not any(folder.glob(f"{name}_*.deb"))]
    if missing:
        argv = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *missing]
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = done.stderr.strip()[-200:]
            raise RuntimeError(f"packages {' '.join(missing)} cannot be downloaded: {reason}")
    return [max(folder.glob(f"{name}_*.deb")) for name in packages]


def _needed_by(root: Path, program: Path) -> list[Path]:
    """A program below `root` with the shared libraries it loads, links to them included."""
    libraries: dict[str, list[Path]] = {}
    for path in root.rglob("*.so*"):
        libraries.setdefault(path.name, []).append(path)
    waiting, found = [program], {program: None}
    while waiting:
        for name in _dynamic_names(waiting.pop()):
            for path in libraries.get(name, []):
                if path in found:
                    continue
                found[path] = None
                if not path.is_symlink():
                    waiting.append(path)
                    continue
                link = os.readlink(path)
                target = root / link.lstrip("/") if link.startswith("/") else path.parent / link
                if target.is_file() and target not in found:
                    found[target] = None
                    waiting.append(target)
    return list(found)


def _dynamic_names(file: Path) -> list[str]:
    """Libraries and the loader a program names, by file name."""
    argv = ["objdump", "-p", str(file)]
    names = []
    if shutil.which("objdump"):
        text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        names = [line.split()[1] for line in text.splitlines() if line.strip().startswith("NEEDED")]
    else:
        text = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False).stdout
        names = [Path(line.split()[0]).name for line in text.splitlines() if ".so" in line]
    return [*names, "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libnss_dns.so.2", "libnss_files.so.2"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


Member = tuple[tarfile.TarInfo, BinaryIO | None]


def _file_members(files: Mapping[str, Path | bytes | Entry]) -> Iterator[Member]:
    """Tar members for a file map, parents first."""
    folders: dict[str, Entry] = {}
    for path in files:
        parts = path.strip("/").split("/")
        for end in range(1, len(parts)):
            folders["/".join(parts[:end])] = Entry(directory=True, mode=0o755)
    items: dict[str, Path | bytes | Entry] = {**folders}
    items.update({path.strip("/"): item for path, item in files.items()})
    for path in sorted(items):
        yield _member(path, items[path])


def _member(path: str, item: Path | bytes | Entry) -> Member:
    if isinstance(item, Path):
        if item.is_symlink():
            item = Entry(link=os.readlink(item))
        else:
            item = Entry(data=item.read_bytes(), mode=stat.S_IMODE(item.stat().st_mode))
    elif isinstance(item, bytes):
        item = Entry(data=item)
    info = tarfile.TarInfo(path)
    info.mtime, info.mode, info.uid, info.gid = _EPOCH, item.mode, item.uid, item.gid
    if item.directory:
        info.type = tarfile.DIRTYPE
    elif item.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, item.link, 0o777
    info.size = len(item.data)
    return info, io.BytesIO(item.data)


def _tree_members(tree: Path) -> Iterator[Member]:
    """Tar members for everything below a directory, sorted."""
    for path in sorted(tree.rglob("*")):
        info = tarfile.TarInfo(str(path.relative_to(tree)))
        facts = path.lstat()
        info.mtime, info.mode = int(facts.st_mtime), stat.S_IMODE(facts.st_mode)
        info.uid, info.gid = facts.st_uid, facts.st_gid
        if path.is_symlink():
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
            yield info, None
        elif path.is_dir():
            info.type = tarfile.DIRTYPE
            yield info, None
        elif path.is_file():
            info.size = facts.st_size
            with path.open("rb") as file:
                yield info, file


class _Hashing(io.RawIOBase):
    """Passes bytes on to a file and hashes them."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self._target.write(data)
        return len(data)


def _add_layer(store: RegistryStore, members: Iterator[Member], compression: str) -> dict[str, Any]:
    uploads = _made(store.root / "uploads")
    with tempfile.NamedTemporaryFile(dir=uploads, delete=False) as file:
        with _compressor(file, compression) as packed:
            plain = _Hashing(packed)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for info, data in members:
                    tar.addfile(info, data)
            plain.close()
        file.flush()
        size = file.tell()
    suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compression]
    return {
        "mediaType": LAYER + suffix,
        "digest": store.adopt_blob(Path(file.name)),
        "size": size,
        "diff_id": "sha256:" + plain.hash.hexdigest(),
    }


class _Plain:
    """The file itself, as a context manager that leaves it open."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, *_: object) -> None:
        return None


def _compressor(file: Any, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False)
    if compression == "none":
        return _Plain(file)
    raise ValueError(f"compression {compression!r} is not gzip, zstd or none")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def main(argv: list[str] | None = None) -> int:
    """Command line: `standard` builds the standard images, `push` packs a directory."""
    parser = argparse.ArgumentParser(prog="images", description="make container images for the lab")
    verbs = parser.add_subparsers(dest="verb", required=True)
    standard = verbs.add_parser("standard", help="busybox and nginx from Debian packages")
    standard.add_argument("--cache", type=Path, required=True)
    push = verbs.add_parser("push", help="a directory with rootfs/ and image.toml")
    push.add_argument("directory", type=Path)
    push.add_argument("name", help="full name, such as docker.io/me/app:1.0")
    for verb in (standard, push):
        verb.add_argument("--store", type=Path, required=True, help="root of the registry")
    arguments = parser.parse_args(argv)
    if arguments.verb == "standard":
        for ref, digest in ensure_standard_images(arguments.cache, arguments.store, print).items():
            print(ref, digest)
        return 0
    name, colon, tag = arguments.name.rpartition(":")
    if not colon or "/" in tag:
        name, tag = arguments.name, "latest"
    print(push_directory(arguments.store, arguments.directory, name, tags=(tag,)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
