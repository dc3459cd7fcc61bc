"""Container images made on the spot from Debian packages, for machines without a registry at hand.

`ensure_standard_images` fills a `registry.RegistryStore` with docker.io/library/busybox and
docker.io/library/nginx. Packing itself is `deploy.labkit.oci`, whose entry points are at hand here too.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.labkit.oci import Entry, build_image, push_directory
from deploy.labkit.registry import RegistryStore

__all__ = ["Entry", "build_image", "ensure_standard_images", "push_directory"]

Progress = Callable[[str], None]

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
